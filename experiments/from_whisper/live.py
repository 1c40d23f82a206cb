#!/usr/bin/env python
"""What encoding in chunks costs a recogniser, and how far its live text lies behind.

    python -m experiments.from_whisper.live runs/mine/best --data DATA --utterances 100 --sessions 12

Word error rates of `generate` with the whole audio as context and under each chunk mask, as a session writes; and, for
a few utterances as sessions, delays in audio time. Whisper's features take the running maximum throughout. Texts are
compared in lower case, without what is neither a letter nor an apostrophe.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("--data", type=Path, required=True, help="a folder corpus")
    parser.add_argument("--split", default="test")
    parser.add_argument("--utterances", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=12, help="utterances that are streamed for their delays")
    parser.add_argument("--firing-probability", type=float, help="at which hard heads stop (default: the checkpoint's)")
    parser.add_argument("--chunks-ms", type=int, nargs="+", default=[1280, 640, 320])
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import numpy as np
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora import read_corpus
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.metrics import error_counts
from hf_entmax_asr.recognition.checkpoint import load_recogniser

BATCH = 20


def plain(text: str) -> str:
    """Letters and apostrophes, in lower case."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split())


def recognised(model: Any, processor: Any, audio: Sequence[np.ndarray], **options: Any) -> list[str]:
    """Texts of recordings that are sorted by length."""
    texts: list[str] = []
    for first in range(0, len(audio), BATCH):
        batch = processor(list(audio[first : first + BATCH]), sampling_rate=processor.feature_extractor.sampling_rate)
        texts += processor.batch_decode(model.generate(**batch, **options), skip_special_tokens=True)
    return [plain(text) for text in texts]


def delays(model: Any, processor: Any, audio: Sequence[np.ndarray], chunk_ms: float) -> str:
    """How far behind the place where it was heard each token was written, how many were written before the end, how far
    text lags behind speech, and seconds of the processor for one of audio."""
    behind: list[float] = []
    early: list[float] = []
    lags: list[tuple[float, float]] = []
    began = time.process_time()
    for waveform in audio:
        session = model.stream(processor, chunk_ms=chunk_ms)
        session.feed(waveform)
        session.finish()
        behind += [token.emitted_ms - token.time_ms for token in session.tokens]
        stats = session.stats()
        if stats.lagging is not None:
            early.append(stats.streamability)
            lags.append((stats.lagging.average_lagging, stats.lagging.differentiable_average_lagging))
    if not behind:
        return "no text"
    taken = time.process_time() - began
    seconds = sum(map(len, audio)) / processor.feature_extractor.sampling_rate
    lag, differentiable = np.mean(lags, axis=0)
    return (
        f"median {np.median(behind):.0f} ms, 90 % {np.percentile(behind, 90):.0f} ms, {np.mean(early):.0%} early, "
        f"AL {lag:.0f} ms, DAL {differentiable:.0f} ms, {taken / seconds:.2f} CPU-seconds a second"
    )


@reports_errors("live.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()
    model, processor = load_recogniser(arguments.checkpoint, "cpu")
    extractor = processor.feature_extractor
    extractor.maximum = "running"
    if arguments.firing_probability is not None:
        model.config.firing_probability = arguments.firing_probability
    rows = read_corpus("folder", arguments.data, splits=[arguments.split]).splits[arguments.split]
    chosen = [rows[int(index)] for index in evenly_spaced(len(rows), arguments.utterances)]
    pairs = [(np.asarray(read_audio(row["audio"], extractor.sampling_rate)), plain(row["text"])) for row in chosen]
    pairs.sort(key=lambda pair: len(pair[0]))
    audio, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    position_ms = round(1000 * extractor.seconds_per_frame * model.config.frames_per_position)
    for chunk_ms in (0, *arguments.chunks_ms):
        texts = recognised(model, processor, audio, encoder_chunk_size=chunk_ms // position_ms)
        line = f"{f'chunks of {chunk_ms} ms' if chunk_ms else 'whole audio'}: {error_counts(references, texts)}"
        if chunk_ms and arguments.sessions:
            few = [audio[int(index)] for index in evenly_spaced(len(audio), arguments.sessions)]
            line += f"; sessions: {delays(model, processor, few, chunk_ms)}"
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

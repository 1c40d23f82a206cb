#!/usr/bin/env python
"""Text while audio comes in: from a file, as fast as it goes or at the pace of speech, or from the standard input.

    python scripts/stream.py runs/mine/best recording.wav --chunk-ms 640
    python scripts/stream.py runs/mine/best recording.wav --paced --pause-ms 600
    arecord -q -f S16_LE -r 16000 -c 1 -t raw | python scripts/stream.py runs/mine/best - --pause-ms 600

CHECKPOINT is a folder or a Hub repository of a model whose heads are monotonic. AUDIO is a file, or - for raw 16-bit
mono samples, little-endian, at the sampling rate of the model. What is printed is never taken back, which with beams
comes later; --tokens prints a line for each token instead, and --json one for each event, with what may still change.
Figures of the session go to the error stream.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from program_options import add_language_model_options


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("audio", help="a file, or - for raw 16-bit samples on the standard input")
    parser.add_argument("--chunk-ms", type=float, default=640, help="audio that the encoder takes at a time")
    parser.add_argument("--left-chunks", type=int, default=-1, help="chunks before it that it reads (default: all)")
    parser.add_argument("--num-beams", type=int, default=1, help="texts that are tried at a time (default: 1)")
    parser.add_argument("--pause-ms", type=float, help="a pause so long ends an utterance (default: one utterance)")
    parser.add_argument("--longest-seconds", type=float, default=25.0, help="of an utterance, with --pause-ms")
    parser.add_argument(
        "--head-wait", type=int, help="positions that heads wait for slower ones (default: the model's)"
    )
    parser.add_argument("--firing-probability", type=float, help="at which heads stop (default: the model's)")
    parser.add_argument("--language", help="of a multilingual model")
    add_language_model_options(parser)
    parser.add_argument("--paced", action="store_true", help="feed a file at the pace of speech")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--tokens", action="store_true", help="print a line for each token, with its times")
    shape.add_argument("--json", action="store_true", help="print a JSON object for each event")
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import numpy as np
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.ngram_lm.options import with_language_model
from hf_entmax_asr.recognition.checkpoint import load_recogniser

PIECE_MS = 100  # that audio is fed in


def pieces(arguments: argparse.Namespace, sampling_rate: int) -> Iterator[np.ndarray]:
    """The audio, a tenth of a second at a time."""
    count = sampling_rate * PIECE_MS // 1000
    if arguments.audio == "-":
        while block := sys.stdin.buffer.read(2 * count):
            yield np.frombuffer(block[: len(block) // 2 * 2], dtype="<i2")
        return
    waveform = np.asarray(read_audio(Path(arguments.audio), sampling_rate))
    began = time.monotonic()
    for first in range(0, len(waveform), count):
        if arguments.paced:
            time.sleep(max(0.0, began + (first + count) / sampling_rate - time.monotonic()))
        yield waveform[first : first + count]


class Printer:
    """What is committed, on the screen as it comes."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.printed = 0

    def show(self, event: Any) -> None:
        if self.arguments.json:
            print(json.dumps(dataclasses.asdict(event), ensure_ascii=False), flush=True)
        elif self.arguments.tokens:
            for token in event.tokens:
                print(
                    f"{token.emitted_ms / 1000:8.2f} s  heard {token.time_ms / 1000:7.2f} s  {token.text!r}", flush=True
                )
        else:
            print(event.committed[self.printed :], end="\n" if event.final else "", flush=True)
            self.printed = len(event.committed)


def figures(stats: Any) -> str:
    """The figures of a session, in a line."""
    if not stats.tokens:
        return f"{stats.audio_seconds:.1f} s of audio, no text"
    lags = stats.lagging
    behind = (stats.first_token_delay_ms, stats.mean_token_delay_ms, stats.last_token_delay_ms)
    adaptive, differentiable = lags.length_adaptive_average_lagging, lags.differentiable_average_lagging
    return (
        f"{stats.audio_seconds:.1f} s of audio, real-time factor {stats.real_time_factor:.2f}; {stats.tokens} tokens, "
        f"{stats.streamability:.0%} before the end; behind their places: first {behind[0]:.0f} ms, mean "
        f"{behind[1]:.0f} ms, last {behind[2]:.0f} ms; AL {lags.average_lagging:.0f} ms, LAAL {adaptive:.0f} ms, DAL "
        f"{differentiable:.0f} ms"
    )


@reports_errors("stream.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading weights
    model, processor = load_recogniser(arguments.checkpoint, arguments.device)
    if arguments.head_wait is not None:
        model.config.monotonic_head_wait = arguments.head_wait
    if arguments.firing_probability is not None:
        model.config.firing_probability = arguments.firing_probability
    model = with_language_model(model, processor, arguments)
    session = model.stream(
        processor,
        chunk_ms=arguments.chunk_ms,
        left_chunks=arguments.left_chunks,
        num_beams=arguments.num_beams,
        pause_ms=arguments.pause_ms,
        longest_seconds=arguments.longest_seconds,
        language=arguments.language,
    )
    printer = Printer(arguments)
    try:
        for piece in pieces(arguments, processor.feature_extractor.sampling_rate):
            for event in session.feed(piece):
                printer.show(event)
    except KeyboardInterrupt:  # the speaker is done
        if arguments.audio != "-":
            raise
    printer.show(session.finish())
    print(f"stream.py: {figures(session.stats())}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""What a long recording costs: one of many clips against the clips themselves, in word errors and in memory.

    python -m experiments.from_whisper.joined_recording runs/mine/best --data DATA --minutes 30 --output FOLDER

Clips of a split, in a random order, are joined with pauses of 0.3 to 1 s of noise at -60 dB between them. The clips,
and the recording (read from a file, and by the pipeline from memory), are recognised in processes of their own, whose
peak memory is told; beside it that of the first minute of the recording, for what does not come from its length.
With --session a live session hears it too, whose utterances end at pauses or where the model ends them. What OUTPUT has
already is not made again.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("--data", type=Path, required=True, help="a folder corpus")
    parser.add_argument("--split", default="test")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--piece-seconds", type=float, default=30.0)
    parser.add_argument("--session", action="store_true", help="also by a live session, in chunks of 640 ms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="a folder for the audio and the texts")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import numpy as np
import soundfile
import torch
from experiments.from_whisper.live import plain
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora import read_corpus
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.metrics import error_counts
from hf_entmax_asr.model.long_audio import PieceRule
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.transcription import transcribe_files

RATE = 16_000
NOISE_DB = -60.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.3, 1.0
LIVE_PAUSE_MS = 400.0


@dataclass(frozen=True)
class Done:
    """What one process found: a text, its seconds, and the most memory that it held."""

    text: str
    seconds: float
    peak_gib: float


def join_clips(data: Path, split: str, minutes: float, output: Path) -> tuple[list[Path], str]:
    """Writes the clips and the recording of them; returns the clips and the text."""
    rows = read_corpus("folder", data, splits=[split]).splits[split]
    generator = np.random.default_rng(0)
    clips, texts, parts, seconds = list[Path](), list[str](), list[np.ndarray](), 0.0
    (output / "clips").mkdir(parents=True, exist_ok=True)
    for index in generator.permutation(len(rows)).tolist():
        waveform = read_audio(rows[index]["audio"], RATE)
        clips.append(output / "clips" / f"{len(clips):04}.wav")
        soundfile.write(clips[-1], waveform, RATE)
        pause = round(RATE * generator.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S))
        parts += [waveform, (10 ** (NOISE_DB / 20) * generator.standard_normal(pause)).astype(np.float32)]
        texts.append(plain(rows[index]["text"]))
        seconds += (len(waveform) + pause) / RATE
        if seconds >= 60 * minutes:
            break
    whole = np.concatenate(parts)
    soundfile.write(output / "recording.wav", whole, RATE)
    soundfile.write(output / "first_minute.wav", whole[: 60 * RATE], RATE)
    return clips, " ".join(texts)


def from_files(checkpoint: str, files: list[Path], piece_seconds: float, threads: int) -> Done:
    """The texts of files, one behind the other."""
    disable_progress_bar()
    torch.set_num_threads(threads)
    model, processor = load_recogniser(checkpoint, "cpu")
    began = time.perf_counter()
    rule = PieceRule(longest_seconds=piece_seconds)
    texts = [t.text or "" for t in transcribe_files(model, processor, files, piece_rule=rule)]
    return Done(plain(" ".join(texts)), time.perf_counter() - began, peak_gib())


def from_pipeline(checkpoint: str, file: Path, piece_seconds: float, threads: int) -> Done:
    """The text of a waveform in memory, by the package's pipeline."""
    from transformers import pipeline

    from hf_entmax_asr import EntmaxAsrPipeline

    disable_progress_bar()
    torch.set_num_threads(threads)
    recognise: Any = pipeline(
        "automatic-speech-recognition", checkpoint, pipeline_class=EntmaxAsrPipeline, device="cpu"
    )
    waveform = read_audio(file, RATE)
    began = time.perf_counter()
    said = recognise(waveform, chunk_length_s=piece_seconds, generate_kwargs={"num_beams": 1})
    return Done(plain(said["text"]), time.perf_counter() - began, peak_gib())


def from_session(checkpoint: str, file: Path, piece_seconds: float, threads: int) -> Done:
    """The text of a recording that comes in piece by piece."""
    disable_progress_bar()
    torch.set_num_threads(threads)
    model, processor = load_recogniser(checkpoint, "cpu")
    began = time.perf_counter()
    with model.stream(processor, pause_ms=LIVE_PAUSE_MS, longest_seconds=min(piece_seconds, 25)) as session:
        for block in soundfile.blocks(file, RATE // 10, dtype="float32"):
            session.feed(block)
        text = session.finish().committed
    return Done(plain(text), time.perf_counter() - began, peak_gib())


def peak_gib() -> float:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@reports_errors("joined_recording.py")
def main() -> int:
    arguments = parse()
    clips, reference = join_clips(arguments.data, arguments.split, arguments.minutes, arguments.output)
    recording, minute = (arguments.output / name for name in ("recording.wav", "first_minute.wav"))
    settings = (arguments.piece_seconds, arguments.threads)
    works: dict[str, tuple[Callable[..., Done], Any]] = {
        "first minute": (from_files, [minute]),
        f"{len(clips)} clips": (from_files, clips),
        "recording": (from_files, [recording]),
        "recording, pipeline": (from_pipeline, recording),
        **({"recording, session": (from_session, recording)} if arguments.session else {}),
    }
    seconds = soundfile.info(recording).duration
    print(f"{seconds / 60:.1f} minutes, {len(reference.split()):,} words", flush=True)
    for name, (work, given) in works.items():
        kept = arguments.output / f"{name.replace(' ', '_')}.json"
        if not kept.exists():
            # A fresh process each, for peak memory is that of a process's whole life.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                done = pool.submit(work, arguments.checkpoint, given, *settings).result()
            write_text_atomically(kept, json.dumps(asdict(done)) + "\n")
        done = Done(**json.loads(kept.read_text()))
        errors = "" if given == [minute] else f"{error_counts([reference], [done.text])}; "
        print(f"{name}: {errors}{done.seconds:.0f} s, peak memory {done.peak_gib:.2f} GiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

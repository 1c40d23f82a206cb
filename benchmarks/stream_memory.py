#!/usr/bin/env python
"""Memory and pace of a live session through hours of speech: clips of a corpus joined, with pauses between them.

    python benchmarks/stream_memory.py runs/mine/best DATA/test --hours 1

AUDIO is a folder of clips, joined in their order, again and again until the time is full. The session hears a second at
a time, as fast as it goes. Printed every so many minutes: the numbers that the session holds (audio, frames, keys and
values), the memory of the process, and the seconds of computing and the tokens since the line before.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("checkpoint", help="folder or Hub repository of a model that streams")
    options.add_argument("audio", type=Path, help="folder of clips")
    options.add_argument("--hours", type=float, default=1.0)
    options.add_argument("--every", type=float, default=5.0, help="minutes between two lines (default: 5)")
    options.add_argument("--chunk-ms", type=float, default=640)
    options.add_argument("--left-chunks", type=int, default=-1)
    options.add_argument("--pause-ms", type=float, default=600)
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.audio import AUDIO_SUFFIXES, read_audio
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from timing import machine, table

PIECE_SECONDS = 1
PAUSE_SECONDS = 0.8
PAGE_BYTES = 4096


def resident_megabytes() -> float:
    """What the process holds in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def seconds_of(folder: Path, rate: int) -> Iterator[np.ndarray]:
    """The clips and pauses in pieces of a second, without end."""
    clips = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not clips:
        raise FileNotFoundError(f"there is no audio below {folder}")
    count, rest = PIECE_SECONDS * rate, np.zeros(0, np.float32)
    pause = np.zeros(int(PAUSE_SECONDS * rate), np.float32)
    for clip in itertools.cycle(clips):
        rest = np.concatenate([rest, np.asarray(read_audio(clip, rate)), pause])
        while len(rest) >= count:
            yield rest[:count]
            rest = rest[count:]


def main() -> None:
    arguments = parse()
    disable_progress_bar()
    torch.set_num_threads(1)
    model, processor = load_recogniser(arguments.checkpoint, "cpu")
    extractor = processor.feature_extractor
    if extractor.kind == "whisper":
        extractor.maximum = "running"
    session = model.stream(
        processor, chunk_ms=arguments.chunk_ms, left_chunks=arguments.left_chunks, pause_ms=arguments.pause_ms
    )
    rows: list[list[object]] = []
    most, computed, tokens, began = 0, 0.0, 0, time.perf_counter()
    pieces = seconds_of(arguments.audio, extractor.sampling_rate)
    for second in range(1, round(arguments.hours * 3600) + 1):
        session.feed(next(pieces))
        most = max(most, session.held_numbers)
        if second % round(arguments.every * 60) == 0:
            stats = session.stats()
            spent, written = stats.compute_seconds - computed, stats.tokens - tokens
            computed, tokens = stats.compute_seconds, stats.tokens
            rows.append([f"{second / 60:g}", most, f"{resident_megabytes():.0f}", f"{spent:.1f}", written])
            print(*rows[-1], flush=True)
            most = 0
    session.finish()
    print(machine())
    print(table(["minutes heard", "most numbers held", "resident MB", "seconds computing", "tokens"], rows))
    stats = session.stats()
    print(
        f"{stats.audio_seconds:.0f} s of audio in {time.perf_counter() - began:.0f} s, real-time factor "
        f"{stats.real_time_factor:.3f}, {stats.tokens} tokens, {len(session.text)} characters"
    )


if __name__ == "__main__":
    main()

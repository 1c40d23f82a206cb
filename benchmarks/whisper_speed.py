#!/usr/bin/env python
"""A recogniser that started from Whisper against transformers' Whisper of that size, both in float32 and greedy.

    python benchmarks/whisper_speed.py WHISPER CHECKPOINT CORPUS [--split test] [--utterances 16] [--tokens 100]

Three parts. Transcription of a split, batch by batch: theirs from its own feature extractor with windows of 30 seconds,
ours with windows as long as the audio, in batches by length. The encoder on 30 seconds: ours as it is and ours with
softmax by F.scaled_dot_product_attention in place of its transform. Decoding of a 30-second window, of so many tokens.

The seconds are those of the processor (all threads of this process together), because other programs may run beside;
the contestants take turns. The number of tokens is capped alike: a Whisper converted and not trained further may not
stop on short windows. What CHECKPOINT writes is not judged here.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from timing_options import parser


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(rounds=3, threads=[1])
    options.add_argument("whisper", help="folder of transformers' Whisper")
    options.add_argument("checkpoint", help="recogniser of this package that started from it")
    options.add_argument("corpus", help="folder in this package's layout")
    options.add_argument("--split", default="test")
    options.add_argument("--utterances", type=int, default=16, help="of the split, evenly spaced (0: all)")
    options.add_argument("--tokens", type=int, default=100, help="at most, for a recording")
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoProcessor, WhisperForConditionalGeneration
from transformers.utils import logging

from hf_entmax_asr import kernels
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.model import transforms
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.utterances import read_split
from timing import compare, machine, table

RATE = 16000
BATCH_SIZES = (1, 8)


def evenly(count: int, wanted: int | None) -> list[int]:
    """Places of `wanted` of `count` rows, evenly spaced."""
    return np.linspace(0, count - 1, min(count, wanted or count)).round().astype(int).tolist()


def recordings(corpus: str, split: str, wanted: int | None) -> list[np.ndarray]:
    rows = read_split(corpus, split)
    return [read_audio(rows[i]["audio"], sampling_rate=RATE) for i in evenly(len(rows), wanted)]


def batches(waves: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    by_length = sorted(waves, key=len, reverse=True)
    for first in range(0, len(by_length), size):
        yield by_length[first : first + size]


@torch.no_grad()
def transcribe(model: Any, processor: Any, waves: Sequence[np.ndarray], size: int, tokens: int, **padding: Any) -> int:
    """How many tokens were written, in all."""
    written = 0
    for batch in batches(waves, size):
        inputs = processor(audio=batch, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **padding)
        written += model.generate(
            inputs["input_features"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            num_beams=1,
            max_new_tokens=tokens,
        ).numel()
    return written


@contextmanager
def softmax_by_torch() -> Iterator[None]:
    """Inside, α-entmax attention is softmax by torch's fused kernel: the same model, but for the transform."""

    def attention(query: Any, key: Any, value: Any, *_: Any, scale: float | None = None, **__: Any) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    before, transforms.entmax_attention = transforms.entmax_attention, attention
    try:
        yield
    finally:
        transforms.entmax_attention = before


def whole_split(ours: tuple, theirs: tuple, waves: list[np.ndarray], arguments: argparse.Namespace) -> None:
    rows: list[list[object]] = []
    for size in BATCH_SIZES:
        count: dict[str, int] = {}

        def run(
            name: str, pair: tuple[Any, Any], size: int = size, count: dict = count, **padding: Any
        ) -> Callable[[], object]:
            return lambda: count.update({name: transcribe(*pair, waves, size, arguments.tokens, **padding)})

        contestants = {"theirs": run("theirs", theirs), "ours": run("ours", ours, padding=True)}
        seconds = compare(contestants, arguments.rounds, warm_up=0, clock=time.process_time)
        ratio = seconds["theirs"] / seconds["ours"]
        rows.append([size, seconds["theirs"], count["theirs"], seconds["ours"], count["ours"], ratio, "≥ 4"])
    audio = sum(map(len, waves)) / RATE
    print(
        f"Transcription of {len(waves)} recordings, {audio:.0f} s of audio, at most {arguments.tokens} tokens each:\n"
    )
    heading = ["batch", "Whisper s", "its tokens", "ours s", "our tokens", "times faster", "aim"]
    print(table(heading, rows) + "\n")


@torch.no_grad()
def thirty_seconds(ours: tuple, theirs: tuple, waves: list[np.ndarray], arguments: argparse.Namespace) -> None:
    model, processor = ours
    whisper, whisper_processor = theirs
    wave = np.resize(np.concatenate(waves), 30 * RATE)
    features = processor(audio=[wave], sampling_rate=RATE, return_tensors="pt", padding=True)
    their_features = whisper_processor(audio=[wave], sampling_rate=RATE, return_tensors="pt")["input_features"]

    def encode() -> object:
        return model.get_encoder()(features["input_features"], attention_mask=features["attention_mask"])

    def encode_softmax() -> object:
        with softmax_by_torch():
            return encode()

    length = {"min_new_tokens": arguments.tokens, "max_new_tokens": arguments.tokens, "do_sample": False}

    def decode() -> object:
        return model.generate(**features, num_beams=1, **length)

    def decode_theirs() -> object:
        return whisper.generate(their_features, num_beams=1, **length)

    clock = time.process_time
    encoder = compare(
        {"ours": encode, "softmax": encode_softmax, "Whisper": lambda: whisper.get_encoder()(their_features)},
        arguments.rounds, warm_up=1, clock=clock,
    )  # fmt: skip
    decoding = compare({"ours": decode, "Whisper": decode_theirs}, arguments.rounds, warm_up=1, clock=clock)
    rows: list[list[object]] = [
        ["encoder, ours with softmax SDPA", encoder["ours"], encoder["softmax"], 0.9],
        ["encoder, Whisper's", encoder["ours"], encoder["Whisper"], ""],
        ["encoder and decoding, Whisper's", *decoding.values(), 0.9],
    ]
    for row in rows:
        row.insert(3, row[1] / row[2])  # type: ignore[operator]
    print(table(["30 s of audio, against", "ours s", "that s", "ratio", "aim"], rows) + "\n")


def main() -> None:
    arguments = parse()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ours = load_recogniser(arguments.checkpoint, device="cpu")
    ours[1].feature_extractor.min_seconds = 0.0  # windows as long as the audio
    theirs = (
        WhisperForConditionalGeneration.from_pretrained(arguments.whisper, dtype=torch.float32).eval(),
        AutoProcessor.from_pretrained(arguments.whisper),
    )
    waves = recordings(arguments.corpus, arguments.split, arguments.utterances)
    kernels.status()  # builds before the measurement
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(machine(), "\n")
        print(f"Whisper: {arguments.whisper}; ours: {arguments.checkpoint}\n")
        whole_split(ours, theirs, waves, arguments)
        thirty_seconds(ours, theirs, waves, arguments)


if __name__ == "__main__":
    main()

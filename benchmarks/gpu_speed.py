#!/usr/bin/env python
"""α-entmax attention by the Triton kernels on an NVIDIA GPU, forward and backward, against what is published.

    pip install adasplash && python benchmarks/gpu_speed.py [--dtype bfloat16]

Against FlashAttention (F.scaled_dot_product_attention, softmax), AdaSplash (α = 1.5, no gradient of α) and dense
attention with the entmax package. Queries, keys and values N(0, 1). Beside the time stands the peak memory. Also the
expected alignment against the closed form of alignment_speed.py.
"""

import argparse
import importlib
import sys
from collections.abc import Callable

from timing_options import parser


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import entmax as published
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignment_speed import SHAPE, closed_form
from hf_entmax_asr import entmax_attention, expected_alignment, kernels
from timing import machine, table, with_gradients

BATCH, HEADS, WIDTH = 8, 8, 64
LENGTHS = (128, 256, 512, 1024, 2048, 4096)


def measure(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds on the GPU's own clock, in turns, and the peak of memory in MiB."""
    result = {}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for name, run in contestants.items():
        for _ in range(3):
            run()  # compiles
        torch.cuda.reset_peak_memory_stats()
        run()
        result[name] = torch.cuda.max_memory_allocated() / 2**20
    for _ in range(rounds):
        for name, run in contestants.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: (sorted(values)[len(values) // 2], result[name]) for name, values in times.items()}


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention whose weights the published package makes."""
    return published.entmax15(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1) @ value


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    backend = SDPBackend.EFFICIENT_ATTENTION if query.dtype == torch.float32 else SDPBackend.FLASH_ATTENTION
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)


def attention(dtype: torch.dtype, rounds: int) -> None:
    try:
        adasplash = importlib.import_module("adasplash").adasplash
    except ImportError:
        adasplash = None
        print("adasplash is not installed; its column is missing\n")
    rows = []
    for length in LENGTHS:
        torch.manual_seed(0)
        inputs = [torch.randn(BATCH, HEADS, length, WIDTH, device="cuda", dtype=dtype) for _ in range(3)]
        contestants = {"softmax, flash": with_gradients(flash, inputs)}
        if adasplash is not None:
            contestants["AdaSplash, α = 1.5"] = with_gradients(
                lambda q, k, v: adasplash(q, k, v, alpha=1.5, is_causal=False), inputs
            )
        if length <= 1024:
            contestants["entmax package, α = 1.5"] = with_gradients(dense, inputs)
        for name, low, high in (("α = 1.5", 1.5, 1.5), ("α = 2", 2, 2), ("α 1.05 … 1.95", 1.05, 1.95)):
            alpha = torch.linspace(low, high, HEADS, device="cuda")
            contestants[f"ours, {name}, with dα"] = with_gradients(entmax_attention, [*inputs, alpha])
        measured = measure(contestants, rounds)
        base = measured["softmax, flash"][0]
        rows += [[length, name, ms, ms / base, mib] for name, (ms, mib) in measured.items()]
    print(table(["T", "attention", "ms", "ratio to flash", "peak MiB"], rows) + "\n")


def alignment(rounds: int) -> None:
    energy = torch.randn(SHAPE, device="cuda") - 4

    def eager(e: torch.Tensor) -> torch.Tensor:
        with kernels.use("eager"):
            return expected_alignment(e)

    forms = {"closed form": closed_form, "Triton": expected_alignment, "eager form": eager}
    measured = measure({name: with_gradients(form, [energy]) for name, form in forms.items()}, rounds)
    rows = [[name, ms, ms / measured["closed form"][0], mib] for name, (ms, mib) in measured.items()]
    print(table(["expected alignment", "ms", "ratio to the closed form", "peak MiB"], rows) + "\n")


def main() -> None:
    arguments = parse()
    if not torch.cuda.is_available():
        sys.exit("torch sees no NVIDIA GPU here; this program measures nothing else.")
    print(machine(), "\n")
    attention(getattr(torch, arguments.dtype), arguments.rounds)
    alignment(arguments.rounds)


if __name__ == "__main__":
    main()

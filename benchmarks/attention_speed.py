#!/usr/bin/env python
"""α-entmax attention, forward and backward with every gradient, against F.scaled_dot_product_attention (softmax).

    python benchmarks/attention_speed.py [--checkpoint FOLDER] [--plot FILE.png]

Queries, keys and values N(0, 1), which makes the scores so too, or those of a trained model. Every ratio is of one run.
Also the memory that a forward and a backward add at T = 4096, each in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from timing_options import parser

LENGTHS = (128, 256, 512, 1024, 2048)


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(rounds=7)
    options.add_argument("--checkpoint", type=Path, help="a trained model, for real maps")
    options.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="values of T")
    options.add_argument("--plot", type=Path, help="file for the plot of the ratios, of the last number of threads")
    options.add_argument("--peak", nargs=4, help="internal: mode, α, T, H of one measurement of memory")
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch
import torch.nn.functional as F

from hf_entmax_asr import kernels
from hf_entmax_asr.model.entmax_attention import entmax_attention
from hf_entmax_asr.training.memory import keep_freed_memory
from timing import attention_inputs, compare, machine, table, with_gradients

ALPHAS = (1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0, None)  # None: 1.05 … 1.95 over heads
HEADS, WIDTH = 4, 64
# One utterance, with heads as calibration of a softmax model leaves them: α 1.1 … 1.4, a third to all of the weights.
ONE_HEADS = 8
CALIBRATED = (1.1, 1.25, 1.5, None)  # None: 1.1 … 1.4 over heads


def gaussian(lengths: list[int], rounds: int) -> list[dict]:
    """Ratio and density for every length and α."""
    torch.manual_seed(0)
    results = []
    for length in lengths:
        query, key, value = (torch.randn(max(1, 1024 // length), HEADS, length, WIDTH) for _ in range(3))
        softmax = with_gradients(F.scaled_dot_product_attention, [query, key, value])
        for alpha in ALPHAS:
            alphas = torch.linspace(1.05, 1.95, HEADS) if alpha is None else torch.full((HEADS,), alpha)
            contestants = {"softmax": softmax, "entmax": with_gradients(entmax_attention, [query, key, value, alphas])}
            seconds = compare(contestants, rounds)
            weights = entmax_attention(query, key, value, alphas, return_weights=True)[1]
            results.append(
                {
                    "length": length,
                    "alpha": "1.05 … 1.95" if alpha is None else alpha,
                    "density": (weights > 0).float().mean().item(),
                    "ratio": seconds["entmax"] / seconds["softmax"],
                }
            )
    for result in results:
        sparse = result["density"] <= 0.05 and result["length"] >= 512
        result["aim"] = 0.35 if sparse else 1.3
    return results


def one_utterance(lengths: list[int], rounds: int) -> None:
    """B = 1: what a call itself costs is a part of it. In seconds of the processor, one clock for all threads."""
    torch.manual_seed(0)
    rows: list[list[object]] = []
    for length in lengths:
        query, key, value = (torch.randn(1, ONE_HEADS, length, WIDTH) for _ in range(3))
        for alpha in CALIBRATED:
            alphas = torch.linspace(1.1, 1.4, ONE_HEADS) if alpha is None else torch.full((ONE_HEADS,), alpha)
            both = {
                "softmax": with_gradients(F.scaled_dot_product_attention, [query, key, value]),
                "entmax": with_gradients(entmax_attention, [query, key, value, alphas]),
            }
            turns = max(rounds, min(200, 2_000_000 // length**2))
            seconds = compare(both, turns, clock=time.process_time)
            with torch.inference_mode():
                alone = compare(
                    {
                        "softmax": partial(F.scaled_dot_product_attention, query, key, value),
                        "entmax": partial(entmax_attention, query, key, value, alphas),
                    },
                    turns,
                    clock=time.process_time,
                )
                weights = entmax_attention(query, key, value, alphas, return_weights=True)[1]
            density = (weights > 0).float().mean().item()
            ratios = [taken["entmax"] / taken["softmax"] for taken in (seconds, alone)]
            rows.append([length, "1.1 … 1.4" if alpha is None else alpha, density, *ratios, 1.0])
    heading = [f"one utterance, H = {ONE_HEADS}: T", "α", "density", "ratio to SDPA", "forward alone", "aim"]
    print(table(heading, rows) + "\n")


def trained(checkpoint: Path, rounds: int) -> None:
    rows = []
    for name, (query, key, value, alpha) in attention_inputs(checkpoint, 2048).items():
        contestants = {
            "softmax": with_gradients(F.scaled_dot_product_attention, [query, key, value]),
            "entmax": with_gradients(entmax_attention, [query, key, value, alpha]),
        }
        seconds = compare(contestants, rounds)
        weights = entmax_attention(query, key, value, alpha, return_weights=True)[1]
        density = (weights > 0).float().mean().item()
        span = f"{alpha.min():.2f} … {alpha.max():.2f}"
        rows.append([name, tuple(weights.shape[1:]), span, density, seconds["entmax"] / seconds["softmax"]])
    print(table(["maps of a trained model", "(H, T, S)", "α", "density", "ratio to SDPA"], rows) + "\n")


def plot(results: list[dict], file: Path) -> None:
    """Ratio against density, and against T."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    lengths = sorted({r["length"] for r in results})
    for length, colour in zip(lengths, plt.cm.viridis(torch.linspace(0, 0.9, len(lengths))), strict=True):
        chosen = [r for r in results if r["length"] == length and isinstance(r["alpha"], float)]
        chosen.sort(key=lambda r: r["alpha"])
        style = {"marker": "o", "color": colour, "label": f"T = {length}"}
        left.plot([100 * r["density"] for r in chosen], [r["ratio"] for r in chosen], **style)
    alphas = (1.05, 1.2, 1.5, 2.0, "1.05 … 1.95")
    for alpha, colour in zip(alphas, plt.cm.plasma(torch.linspace(0, 0.85, len(alphas))), strict=True):
        chosen = [r for r in results if r["alpha"] == alpha]
        style = {"marker": "s", "color": colour, "label": f"α = {alpha}"}
        right.plot([r["length"] for r in chosen], [r["ratio"] for r in chosen], **style)
    left.set(xscale="log", xlabel="weights that are not 0 (%)", ylabel="time, forward + backward\nsoftmax SDPA = 1")
    left.set_xticks([0.2, 1, 5, 20, 100], ["0.2", "1", "5", "20", "100"], minor=False)
    right.set(xscale="log", xlabel="queries and keys, T")
    right.set_xticks(lengths, lengths)
    right.set_xticks([], minor=True)
    left.set_title("α-entmax attention of one α")
    right.set_title("the same against T")
    for panel in (left, right):
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(file, dpi=150)


def peak(mode: str, alpha: float, length: int, heads: int) -> None:
    """Prints how many MiB a forward and a backward add to the process's peak."""
    keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    query, key, value = (torch.randn(1, heads, length, WIDTH, requires_grad=True) for _ in range(3))
    alphas = torch.full((heads,), alpha, requires_grad=True)
    grad = torch.randn(1, heads, length, WIDTH)
    with kernels.use(mode):
        short = [t[:, :, :64].detach().requires_grad_() for t in (query, key, value)]
        # Builds and loads before the measurement.
        torch.autograd.grad(entmax_attention(short[0], short[1], short[2], alphas), short, grad[:, :, :64])
        before = _peak_mib(reset=True)
        gradients = torch.autograd.grad(entmax_attention(query, key, value, alphas), [query, key, value, alphas], grad)
        print(json.dumps(_peak_mib() - before))
    del gradients


def _peak_mib(reset: bool = False) -> float:
    """The most memory this process has held, since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def memory(length: int = 4096, heads: int = 8) -> None:
    def added(mode: str, alpha: float) -> float:
        command = [sys.executable, __file__, "--peak", mode, str(alpha), str(length), str(heads)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    eager = added("eager", 1.5)
    native = {f"native, α = {alpha}": added("auto", alpha) for alpha in (1.05, 1.2, 1.5, 2.0)}
    rows = [["eager", eager, 1.0], *([name, mib, mib / eager] for name, mib in native.items())]
    print(table([f"T = {length}, H = {heads}", "MiB added", "ratio to eager (aim: 0.1)"], rows) + "\n")


def main() -> None:
    arguments = parse()
    if arguments.peak:
        mode, alpha, length, heads = arguments.peak
        peak(mode, float(alpha), int(length), int(heads))
        return
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(machine(), "\n")
        results = gaussian(arguments.lengths, arguments.rounds)
        heading = ["T", "α", "density", "ratio to SDPA", "aim"]
        print(table(heading, [[r[k] for k in ("length", "alpha", "density", "ratio", "aim")] for r in results]), "\n")
        one_utterance(arguments.lengths, arguments.rounds)
        if arguments.checkpoint:
            trained(arguments.checkpoint, arguments.rounds)
    if arguments.plot:
        plot(results, arguments.plot)
    memory()


if __name__ == "__main__":
    main()

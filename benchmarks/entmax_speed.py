#!/usr/bin/env python
"""α-entmax, values and both gradients, against F.softmax and the published package.

    python benchmarks/entmax_speed.py [--checkpoint FOLDER]

Rows of 512 scores, N(0, 1) or taken from a trained model. Ratios are to F.softmax, forward and backward, in one run.
"""

import argparse
from pathlib import Path

from timing_options import parser


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--checkpoint", type=Path, help="a trained model, for scores of real maps")
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import entmax as published
import torch
import torch.nn.functional as F

from hf_entmax_asr import entmax, kernels
from timing import attention_inputs, compare, machine, table, with_gradients

TARGETS = {"α = 1.5": 1.3, "α = 2": 1.0, "α 1.05 … 1.95 over heads": 2.5, "α = 1.05": 4.5}


def eager(scores: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    with kernels.use("eager"):
        return entmax(scores, alpha)


def gaussian(rounds: int) -> None:
    torch.manual_seed(0)
    heads, length = 8, 512
    scores = torch.randn(2, heads, length, length)

    def alphas(low: float, high: float) -> torch.Tensor:
        return torch.linspace(low, high, heads).view(heads, 1, 1)

    mixed = alphas(1.05, 1.95)
    contestants = {
        "F.softmax": with_gradients(lambda z: F.softmax(z, -1), [scores]),
        "α = 1.5": with_gradients(entmax, [scores, alphas(1.5, 1.5)]),
        "α = 2": with_gradients(entmax, [scores, alphas(2, 2)]),
        "α 1.05 … 1.95 over heads": with_gradients(entmax, [scores, mixed]),
        "α = 1.05": with_gradients(entmax, [scores, alphas(1.05, 1.05)]),
        "α = 1": with_gradients(entmax, [scores, alphas(1, 1)]),
        "eager form, α 1.05 … 1.95": with_gradients(eager, [scores, mixed]),
        "published entmax15(k=64), no dα": with_gradients(lambda z: published.entmax15(z, dim=-1, k=64), [scores]),
    }
    seconds = compare(contestants, rounds)
    bisection = with_gradients(
        lambda z, a: published.entmax_bisect(z, a.expand(*z.shape[:-1], 1), dim=-1), [scores, mixed]
    )
    seconds |= compare({"published entmax_bisect with dα": bisection}, max(2, rounds // 5), warm_up=1)
    base, ours = seconds["F.softmax"], seconds["α 1.05 … 1.95 over heads"]
    per_score = 1e9 / scores.numel()
    rows = [[name, s * per_score, s / base, TARGETS.get(name, "")] for name, s in seconds.items()]
    print(table(["512 scores a row, N(0, 1)", "ns a score", "ratio to F.softmax", "aim"], rows))
    bisect, sort = seconds["published entmax_bisect with dα"], seconds["published entmax15(k=64), no dα"]
    print(f"\n{bisect / ours:.0f}x faster than entmax_bisect with dα, mixed α (aim: 80x)")
    print(f"{sort / seconds['α = 1.5']:.1f}x faster than entmax15(k=64), α = 1.5 (aim: 9x)\n")


def trained(checkpoint: Path, rounds: int) -> None:
    rows = []
    for name, (query, key, _, alpha) in attention_inputs(checkpoint, 2048).items():
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        contestants = {
            "softmax": with_gradients(lambda z: F.softmax(z, -1), [scores]),
            "entmax": with_gradients(entmax, [scores, alpha.view(-1, 1, 1)]),
        }
        seconds = compare(contestants, rounds)
        density = (entmax(scores, alpha.view(-1, 1, 1)) > 0).float().mean().item()
        span = f"{alpha.min():.2f} … {alpha.max():.2f}"
        rows.append([name, tuple(scores.shape[1:]), span, density, seconds["entmax"] / seconds["softmax"]])
    print(table(["scores of a trained model", "(H, T, S)", "α", "density", "ratio to F.softmax"], rows) + "\n")


def main() -> None:
    arguments = parse()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(machine(), "\n")
        gaussian(arguments.rounds)
        if arguments.checkpoint:
            trained(arguments.checkpoint, arguments.rounds)


if __name__ == "__main__":
    main()

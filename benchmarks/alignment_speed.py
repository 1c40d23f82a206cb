#!/usr/bin/env python
"""Expected alignment and soft attention over it, forward and backward, against the closed form common in toolkits.

    python benchmarks/alignment_speed.py

32 lattices of 100 tokens by 500 positions. Beside the time stands the error: the closed form loses alignment mass.
"""

import argparse

from timing_options import parser


def parse() -> argparse.Namespace:
    return parser(__doc__).parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch
from torch import Tensor

from hf_entmax_asr import expected_alignment, expected_soft_attention, kernels
from timing import compare, machine, table, with_gradients

SHAPE = (8, 4, 100, 500)  # B, H, U, S


def closed_form(energy: Tensor, eps: float = 1e-6) -> Tensor:
    """α_i = p_i · cumprod(1 − p_i) · cumsum(α_{i−1} / cumprod(1 − p_i)), products exclusive and clamped, token after
    token: the form of Raffel et al. 2017, eq. 16, as fairseq's monotonic attention computes it."""
    p = torch.sigmoid(energy)
    ones = torch.ones_like(p[..., :1])
    passed = torch.exp(torch.cumsum(torch.cat([ones, (1 - p[..., :-1]).clamp(eps, 1.0)], -1).log(), -1))
    clamped = passed.clamp(eps, 1.0)
    row = torch.zeros_like(p[:, :, 0])
    row[..., 0] = 1.0
    rows = []
    for i in range(p.shape[2]):
        row = (p[:, :, i] * passed[:, :, i] * torch.cumsum(row / clamped[:, :, i], -1)).clamp(0, 1.0)
        rows.append(row)
    return torch.stack(rows, 2)


def eager(energy: Tensor) -> Tensor:
    with kernels.use("eager"):
        return expected_alignment(energy)


def speed(rounds: int) -> None:
    torch.manual_seed(0)
    energy, scores = torch.randn(SHAPE) - 4, torch.randn(SHAPE)
    seconds = compare(
        {
            "closed form": with_gradients(closed_form, [energy]),
            "native": with_gradients(expected_alignment, [energy]),
            "eager form": with_gradients(eager, [energy]),
        },
        rounds,
    )
    base = seconds["closed form"]
    rows = [[name, s * 1e3, s / base, 0.1 if name == "native" else ""] for name, s in seconds.items()]
    print(table(["expected alignment", "ms", "ratio to the closed form", "aim"], rows) + "\n")
    alignment = expected_alignment(energy)
    rows = []
    for width in (4, 16, None):
        run = with_gradients(lambda a, u, w=width: expected_soft_attention(a, u, w), [alignment, scores])
        with kernels.use("eager"):
            slow = compare({"eager": run}, 2, warm_up=1)["eager"]
        fast = compare({"native": run}, rounds)["native"]
        rows.append([width or "all before", fast * 1e3, slow * 1e3, fast / slow])
    print(table(["soft attention, window", "native ms", "eager ms", "ratio"], rows) + "\n")


def errors() -> None:
    torch.manual_seed(0)
    shape = (2, 2, 20, 500)
    energies = {
        "constant p = 0.05": torch.full(shape, 0.05).logit(),
        "N(−3, 1)": torch.randn(shape) - 3,
        "bimodal ±8": torch.where(torch.rand(shape) < 0.05, 8.0, -8.0),
    }
    rows = []
    for name, energy in energies.items():
        exact = expected_alignment(energy.double())
        for form, function in (("closed form", closed_form), ("native", expected_alignment), ("eager form", eager)):
            got = function(energy).double()
            mass = got[:, :, -1].sum(-1).mean().item(), exact[:, :, -1].sum(-1).mean().item()
            rows.append([name, form, f"{(got - exact).abs().max().item():.1e}", *mass])
    print(table(["energies", "form", "largest error of α", "mass of token 20", "true mass"], rows) + "\n")


def main() -> None:
    arguments = parse()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(machine(), "\n")
        speed(arguments.rounds)
    errors()


if __name__ == "__main__":
    main()

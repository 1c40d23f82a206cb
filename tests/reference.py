"""Naive twins of the mathematics in `hf_entmax_asr.model`: straight from the definitions, slow, checked by eye."""

import math
from decimal import Decimal, localcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def entmax_by_bisection(scores: Tensor, alpha: float | Tensor) -> Tensor:
    """α-entmax over the last dimension in float64: p_i = [(α−1) z_i − τ]_+^(1/(α−1)), τ by bisection; softmax at α = 1.

    `alpha` broadcasts with size 1 along the last dimension. Every row needs a finite score.
    """
    z = scores.double()
    z = z - z.amax(-1, keepdim=True)
    eps = torch.as_tensor(alpha, dtype=torch.float64) - 1
    z, eps = torch.broadcast_tensors(z, eps)
    is_softmax = eps == 0
    eps = torch.where(is_softmax, 1.0, eps)

    def weights(tau: Tensor) -> Tensor:
        return (eps * z - tau).clamp(min=0) ** (1 / eps)

    low = torch.full_like(z[..., :1], -1.0)  # the largest weight alone is 1
    high = torch.zeros_like(low)  # every weight is 0
    for _ in range(100):
        middle = (low + high) / 2
        too_much = weights(middle).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return torch.where(is_softmax, torch.softmax(z, -1), weights((low + high) / 2))


def entmax_alpha_derivative(row: list[float], alpha: float) -> list[float]:
    """∂p/∂α of one row of scores: a finite difference of step 1e-20 in decimals of 90 digits, towards the inside of
    [1, 2]. No formula for the derivative, no rounding to speak of, whatever α."""
    with localcontext() as context:
        context.prec = 90
        z = [Decimal(score) - Decimal(max(row)) for score in row]
        step = Decimal("1e-20") if alpha < 1.5 else Decimal("-1e-20")
        before, after = _decimal_entmax(z, Decimal(alpha)), _decimal_entmax(z, Decimal(alpha) + step)
        return [float((b - a) / step) for a, b in zip(before, after, strict=True)]


def _decimal_entmax(z: list[Decimal], alpha: Decimal) -> list[Decimal]:
    if alpha == 1:
        exponentials = [score.exp() for score in z]
        return [e / sum(exponentials) for e in exponentials]
    eps = alpha - 1
    tau = Decimal(-1)  # Newton on a convex, falling function, from the left: it never overshoots
    while True:
        bases = [eps * score - tau for score in z if eps * score > tau]
        excess = sum(base ** (1 / eps) for base in bases) - 1
        if excess < Decimal("1e-55"):
            return [max(eps * score - tau, Decimal(0)) ** (1 / eps) for score in z]
        tau += excess * eps / sum(base ** (1 / eps - 1) for base in bases)


def sparsemax_by_sorting(row: Tensor) -> Tensor:
    """Sparsemax of one row (Martins and Astudillo 2016, algorithm 1)."""
    z = row.double()
    ordered = z.sort(descending=True).values
    k = max(k for k in range(1, len(z) + 1) if 1 + k * ordered[k - 1] > ordered[:k].sum())
    return (z - (ordered[:k].sum() - 1) / k).clamp(min=0)


def expected_alignment_loop(energy: Tensor, previous: Tensor | None = None) -> Tensor:
    """Expected monotonic alignment of energies (B, H, U, S), cell by cell (Raffel et al. 2017, eq. 8-10).

    σ is taken as exp(log σ), because autograd's derivative of σ itself is 0 from σ(37) on.
    """
    batch, heads, targets, positions = energy.shape
    if previous is None:
        previous = F.one_hot(torch.zeros(batch, heads, dtype=torch.long), positions).to(energy.dtype)
    rows = []
    for i in range(targets):
        row = []
        q = torch.zeros(batch, heads, dtype=energy.dtype)
        for j in range(positions):
            if j > 0:
                q = q * F.logsigmoid(-energy[:, :, i, j - 1]).exp()
            q = q + previous[:, :, j]
            row.append(F.logsigmoid(energy[:, :, i, j]).exp() * q)
        previous = torch.stack(row, -1)
        rows.append(previous)
    return torch.stack(rows, 2)


def expected_soft_attention_loop(alignment: Tensor, energy: Tensor, chunk_size: int | None) -> Tensor:
    """For every stop k, its share of `alignment` spread over the window that ends at k by a softmax of `energy`."""
    positions = energy.shape[-1]
    beta = torch.zeros_like(alignment)
    for k in range(positions):
        first = 0 if chunk_size is None else max(0, k - chunk_size + 1)
        share = alignment[..., k : k + 1] * torch.softmax(energy[..., first : k + 1], -1)
        beta = beta + F.pad(share, (first, positions - 1 - k))
    return beta


def hard_stop(energies: list[float], start: int, rule: str, probability: float = 0.5) -> int | None:
    """First position from `start` on that fires, by σ(e) or the chance to have stopped by then; or None."""
    not_yet = 1.0
    for j in range(start, len(energies)):
        passes = 1 / (1 + math.exp(min(energies[j], 700)))
        not_yet *= passes
        if 1 - (passes if rule == "threshold" else not_yet) >= probability:
            return j
    return None

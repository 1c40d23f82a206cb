"""Naive twins of `hf_entmax_asr.analysis`: one utterance, one head, loops straight from the definitions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Map = Sequence[Sequence[float]]  # rows of weights, one utterance without padding


def cad_by_integration(weights: Map, steps: int = 20_000) -> float:
    """∫₀¹ D(r) dr by the midpoint rule, D(r) counted anew for each r."""
    return sum(share_within(weights, (k + 0.5) / steps) for k in range(steps)) / steps


def share_within(weights: Map, r: float) -> float:
    """D(r): the share of attention no further away than r times the longest distance."""
    size = len(weights)
    near = sum(
        weights[i][j] for i in range(size) for j in range(size) if abs(i - j) <= r * (size - 1) + 1e-9
    )  # rounding of r, not of the distance
    return near / size


def mean_distance(weights: Map) -> float:
    return sum(w * abs(i - j) for i, row in enumerate(weights) for j, w in enumerate(row)) / len(weights)


def verticality_loop(weights: Map, keys: int) -> float:
    mean_row = [sum(row[j] for row in weights) / len(weights) for j in range(len(weights[0]))]
    return 1 - entropy_loop([mean_row]) / math.log(keys)


def entropy_loop(weights: Map) -> float:
    return sum(-w * math.log(w) for row in weights for w in row if w > 0) / len(weights)


def divergence_loop(p: Map, q: Map) -> float:
    """Mean over rows of the Jensen-Shannon divergence in bits, as Kullback-Leibler divergences to the middle."""
    total = 0.0
    for p_row, q_row in zip(p, q, strict=True):
        middle = [(a + b) / 2 for a, b in zip(p_row, q_row, strict=True)]
        for row in (p_row, q_row):
            total += 0.5 * sum(a * math.log2(a / m) for a, m in zip(row, middle, strict=True) if a > 0)
    return total / len(p)


def phoneme_sums_loop(weights: Map, labels: Sequence[int], classes: int, causal: bool = False) -> dict[str, Tensor]:
    """Sums for PAR of one head over one utterance: attention, uniform attention, pairs (K, K), frames (K,)."""
    size = len(labels)
    sums = {name: torch.zeros(classes, classes, dtype=torch.float64) for name in ("weight", "uniform", "pairs")}
    sums["frames"] = torch.zeros(classes, dtype=torch.float64)
    for i in range(size):
        if labels[i] < 0:
            continue
        sums["frames"][labels[i]] += 1
        first = i
        while first > 0 and labels[first - 1] == labels[i]:
            first -= 1
        last = i
        while last + 1 < size and labels[last + 1] == labels[i]:
            last += 1
        seen = i + 1 if causal else size
        for j in range(seen):
            if labels[j] < 0 or first <= j <= last:
                continue
            sums["weight"][labels[i], labels[j]] += weights[i][j]
            sums["uniform"][labels[i], labels[j]] += 1 / seen
            sums["pairs"][labels[i], labels[j]] += 1
    return sums


def monotonic_loop(boundaries: Tensor, tokens: Sequence[int], positions: Sequence[int]) -> dict[str, Tensor]:
    """Boundaries (B, N, U) -> what each of N heads did (see MonotonicSummary), cell by cell."""
    heads = boundaries.shape[1]
    names = ("lag", "last_share", "coverage", "at_end_share", "order_violations")
    sums = {name: torch.zeros(heads, dtype=torch.float64) for name in names}
    waiting = torch.zeros(heads, heads, dtype=torch.float64)
    total = inner = 0
    for b, count in enumerate(tokens):
        for u in range(count):
            stops = [int(boundaries[b, n, u]) for n in range(heads)]
            total += 1
            inner += u < count - 1
            for n in range(heads):
                sums["lag"][n] += stops[n] - min(stops)
                sums["last_share"][n] += (stops[n] == max(stops)) / stops.count(max(stops))
                sums["at_end_share"][n] += u < count - 1 and stops[n] == positions[b] - 1
                sums["order_violations"][n] += u > 0 and stops[n] < int(boundaries[b, n, u - 1])
                for m in range(heads):
                    waiting[n, m] += max(0, stops[m] - stops[n])
        for n in range(heads):
            sums["coverage"][n] += (int(boundaries[b, n, count - 1]) + 1) / positions[b]
    return {
        "lag": sums["lag"] / total,
        "last_share": sums["last_share"] / total,
        "coverage": sums["coverage"] / len(tokens),
        "at_end_share": sums["at_end_share"] / inner,
        "order_violations": sums["order_violations"],
        "waiting": waiting / total,
    }


def discriminant_loop(states: Tensor, labels: Sequence[int], new: Tensor, shrinkage: float) -> list[int]:
    """Linear discriminant analysis of (N, C) states: the class of each row of `new`, by Gaussian log densities."""
    classes = sorted(set(labels))
    groups = {
        k: torch.stack([s.double() for s, label in zip(states, labels, strict=True) if label == k]) for k in classes
    }
    centred = torch.cat([group - group.mean(0) for group in groups.values()])
    covariance = sum(torch.outer(row, row) for row in centred) / len(centred)
    width = states.shape[1]
    covariance = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / width * torch.eye(width)
    inverse = covariance.inverse()

    def log_density(row: Tensor, k: int) -> float:
        difference = row.double() - groups[k].mean(0)
        return float(math.log(len(groups[k]) / len(labels)) - 0.5 * difference @ inverse @ difference)

    return [max(classes, key=lambda k: log_density(row, k)) for row in new]

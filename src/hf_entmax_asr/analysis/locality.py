"""Where attention looks: near or far, at a few places or at many, every query alike or each for itself.

Each function gives one value per utterance and head, in float64, over valid positions only, so that neither padding nor
the other utterances of a batch change it. `MeanMeter` averages them over a data set: every utterance counts the same.
Beside each measure stands its value for uniform attention under the same mask, which is what an idle head would score.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hf_entmax_asr.analysis.sparsity import allowed_entries
from hf_entmax_asr.evenly_spaced import evenly_spaced

CURVE_POINTS = 101  # r = 0, 0.01, …, 1
ROW_SUM_TOLERANCE = 0.02  # bfloat16 weights of a row add up to 1 within about 0.01


def diagonality(attention: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Cumulative attention diagonality, CAD (Shim, Choi, Sung 2022): (B, H) in [0, 1].

    CAD = ∫₀¹ D(r) dr = (1/T) Σ_ij A_ij (1 − |i−j| / (T−1)), with D(r) as in `diagonality_curve` and T valid positions.
    The identity scores 1, uniform attention (2T−1) / (3T), a single position 1. A vertical stripe scores like uniform
    attention, so look at `verticality` beside it.

    Args:
        attention: (B, H, T, T) self-attention weights, whose rows sum to 1.
        mask: (B, T), true or 1 where the position is real; None: all are.
        causal: each position sees those up to itself.

    Returns NaN for an utterance without a valid position.

    Raises:
        ValueError: as for `allowed_entries`; a map that is not square, or rows that are no distributions.
    """
    return _cad(*_mass_by_distance(*_valid(attention, mask, mask, causal), mask))


def diagonality_curve(
    attention: Tensor, mask: Tensor | None = None, causal: bool = False, points: int = CURVE_POINTS
) -> Tensor:
    """D(r) = (1/T) Σ_i Σ_{|i−j| ≤ r(T−1)} A_ij: (B, H, points), the share of attention within the share r of the
    utterance, at r = 0 … 1 in equal steps. Arguments and errors as for `diagonality`."""
    return _curve(*_mass_by_distance(*_valid(attention, mask, mask, causal), mask), points)


def verticality(
    attention: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """How much the queries agree on where to look: (B, H) in [0, 1].

    1 − H(ā) / log S, where ā is the mean of the rows, H its entropy and S the number of valid keys: the negative
    entropy of Yang, Liu and Lee 2020 (arXiv 2006.03265), brought to [0, 1]. All queries on one key score 1; uniform
    attention and the identity, which use every key alike, 0. NaN where there are fewer than two keys.

    Args and errors as for `allowed_entries`; also ValueError for rows that are no distributions.
    """
    return _verticality(*_valid(attention, query_mask, key_mask, causal))


def attention_entropy(
    attention: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Mean entropy −Σ_j A_ij log A_ij of the rows, in nats: (B, H). 0 where each query looks at one key, log S where it
    looks at S keys alike. Arguments and errors as for `verticality`."""
    return _entropy(*_valid(attention, query_mask, key_mask, causal))


def uniform_attention(allowed: Tensor) -> Tensor:
    """The map of an idle head: `allowed` boolean, with keys last -> weights of equal size in each row, float64. Rows
    without an allowed entry are 0."""
    return allowed.double() / allowed.sum(-1, keepdim=True).clamp(min=1)


def self_attention_measures(
    attention: Tensor, mask: Tensor | None = None, causal: bool = False, points: int = CURVE_POINTS
) -> dict[str, Tensor]:
    """All measures of a self-attention map, for `MeanMeter`.

    Returns:
        "cad", "distance" (mean |i−j|, in positions), "verticality", "entropy" (nats): (B, H); "curve": (B, H, points);
        and each under its name with "uniform_" before it, without the dimension H. Arguments and errors as for
        `diagonality`.
    """
    weights, allowed = _valid(attention, mask, mask, causal)
    measures: dict[str, Tensor] = {}
    for prefix, these in (("", weights), ("uniform_", uniform_attention(allowed))):
        mass, length = _mass_by_distance(these, allowed, mask)
        of_heads = {
            "cad": _cad(mass, length),
            "distance": (mass * torch.arange(mass.shape[-1], device=mass.device)).sum(-1),
            "curve": _curve(mass, length, points),
            "verticality": _verticality(these, allowed),
            "entropy": _entropy(these, allowed),
        }
        measures |= {prefix + name: value.squeeze(1) if prefix else value for name, value in of_heads.items()}
    return measures


def cross_attention_measures(
    attention: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """The measures "verticality" and "entropy" of a map (B, H, U, S) of tokens over audio, named as in
    `self_attention_measures`; there is no diagonal between two different axes."""
    weights, allowed = _valid(attention, query_mask, key_mask, False)
    uniform = uniform_attention(allowed)
    return {
        "verticality": _verticality(weights, allowed),
        "entropy": _entropy(weights, allowed),
        "uniform_verticality": _verticality(uniform, allowed).squeeze(1),
        "uniform_entropy": _entropy(uniform, allowed).squeeze(1),
    }


class MeanMeter:
    """Means over a data set of values that come per utterance, under a name and a measure. NaN is left out.

    >>> meter = MeanMeter()
    >>> maps = torch.eye(4).expand(2, 8, 4, 4)  # 2 utterances, 8 heads
    >>> meter.update("encoder.layers.0.self_attn", self_attention_measures(maps))
    >>> meter.mean("encoder.layers.0.self_attn")["cad"][0].item()
    1.0
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}

    def update(self, name: str, values: Mapping[str, Tensor]) -> None:
        """Adds a batch: `values` from measure to a tensor (B, …) whose further sizes never change."""
        sums = self._sums.setdefault(name, {})
        for measure, value in values.items():
            value = value.detach().double().cpu()
            total, count = value.nansum(0), (~value.isnan()).sum(0)
            if measure in sums:
                total, count = total + sums[measure][0], count + sums[measure][1]
            sums[measure] = total, count

    def names(self) -> list[str]:
        """The names so far, in the order in which they came."""
        return list(self._sums)

    def mean(self, name: str) -> dict[str, Tensor]:
        """The means (…) by measure, float64; NaN where no utterance had a value. KeyError for a name not seen."""
        return {measure: total / count for measure, (total, count) in self._sums[name].items()}


def head_divergence(
    attention: Tensor,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    causal: bool = False,
    max_queries: int | None = None,
) -> Tensor:
    """How differently heads look: Jensen-Shannon divergence of their rows, in bits, (B, H, H) in [0, 1].

    Mean over the valid queries of H((p+q)/2) − (H(p)+H(q))/2. 0: the same weights; 1: no key in common.

    Args:
        max_queries: at most so many queries of each utterance, evenly spaced; the work grows with heads² · T · S.

    NaN for utterances without a valid query. Other arguments and errors as for `verticality`.
    """
    if max_queries is not None and max_queries < 1:
        raise ValueError(f"max_queries = {max_queries} must be at least 1, or None for every query.")
    weights, allowed = _valid(attention, query_mask, key_mask, causal)
    return torch.stack(
        [_divergence(w[:, _chosen(rows, max_queries)]) for w, rows in zip(weights, allowed[:, 0].any(-1), strict=True)]
    )


class AgreementMeter:
    """Mean divergence (see `head_divergence`) between all heads of several modules over a data set.

    Attributes:
        heads: (module, head) of each row and column, once a batch has been seen.
    """

    def __init__(self, max_queries: int | None = 64) -> None:
        self.max_queries = max_queries
        self.heads: list[tuple[str, int]] = []
        self._total = self._count = torch.zeros(())

    def update(
        self,
        maps: Mapping[str, Tensor],
        query_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        causal: bool = False,
    ) -> None:
        """Adds one batch: `maps` from module to (B, H, T, S), all of the same T and S.

        Raises:
            ValueError: as for `head_divergence`, or other modules or heads than before.
        """
        heads = [(name, head) for name, weights in maps.items() for head in range(weights.shape[1])]
        if self.heads and heads != self.heads:
            raise ValueError(f"the heads {heads} came after {self.heads}; a meter is for one set of heads.")
        self.heads = heads
        together = torch.cat(list(maps.values()), 1)
        values = head_divergence(together, query_mask, key_mask, causal, self.max_queries).cpu()
        self._total = self._total + values.nansum(0)
        self._count = self._count + (~values.isnan()).sum(0)

    def mean(self) -> Tensor:
        """(N, N) bits, float64, for the N heads of `heads`."""
        return self._total / self._count


def _valid(
    attention: Tensor, query_mask: Tensor | None, key_mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """Weights in float64, 0 where they do not count, and the entries (B, 1, T, S) that do."""
    allowed = allowed_entries(attention, query_mask, key_mask, causal)
    weights = attention.detach().double() * allowed
    if weights.numel() and weights.min() < 0:
        raise ValueError(f"attention holds {weights.min().item():.3g}; weights are never below 0. Are these scores?")
    error = ((weights.sum(-1) - 1).abs() * allowed.any(-1)).max().item() if weights.numel() else 0.0
    if error > ROW_SUM_TOLERANCE:
        raise ValueError(
            f"a row of attention misses the sum 1 by {error:.3g}; at most {ROW_SUM_TOLERANCE} is rounding. Give the "
            "weights without dropout (model.eval()), and the mask of the same batch."
        )
    return weights, allowed


def _mass_by_distance(weights: Tensor, allowed: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean attention at each distance |i−j| between valid positions (B, H, T), and their number (B,)."""
    batch, heads, queries, keys = weights.shape
    if queries != keys:
        raise ValueError(f"attention has shape {tuple(weights.shape)}; distances need a square map (self-attention).")
    real = torch.ones(batch, keys, dtype=torch.bool) if mask is None else mask.bool()
    place = real.to(weights.device).cumsum(-1) - 1  # among the valid positions, so that left padding changes nothing
    distance = (place[:, :, None] - place[:, None, :]).abs().flatten(1)  # (B, T · T)
    mass = weights.new_zeros(batch, heads, keys)
    mass.scatter_add_(2, distance[:, None].expand(-1, heads, -1), weights.flatten(2))
    rows = allowed.any(-1).sum(-1)  # (B, 1)
    return mass / rows.unsqueeze(-1), real.sum(-1).to(weights.device)


def _cad(mass: Tensor, length: Tensor) -> Tensor:
    share = torch.arange(mass.shape[-1], device=mass.device) / (length - 1).clamp(min=1)[:, None].double()  # (B, T)
    return (mass * (1 - share).clamp(min=0)[:, None]).sum(-1)


def _curve(mass: Tensor, length: Tensor, points: int) -> Tensor:
    if points < 2:
        raise ValueError(f"points = {points} must be at least 2, for r = 0 and r = 1.")
    steps = torch.arange(points, device=mass.device)
    reach = steps * (length - 1).clamp(min=0)[:, None] // (points - 1)  # (B, points), in integers: no rounding
    return mass.cumsum(-1).gather(2, reach[:, None].expand(-1, mass.shape[1], -1))


def _verticality(weights: Tensor, allowed: Tensor) -> Tensor:
    column = weights.sum(2) / allowed.any(-1).sum(-1).unsqueeze(-1)  # (B, H, S), the mean row
    keys = allowed.any(2).sum(-1)  # (B, 1)
    evenness = torch.special.entr(column).sum(-1) / keys.double().log()
    return torch.where(keys > 1, (1 - evenness).clamp(0, 1), math.nan)


def _entropy(weights: Tensor, allowed: Tensor) -> Tensor:
    return torch.special.entr(weights).sum((2, 3)) / allowed.any(-1).sum(-1)


def _chosen(valid: Tensor, most: int | None) -> Tensor:
    """Indices of the valid places, at most `most`, evenly spaced."""
    places = valid.nonzero().squeeze(1)
    return places if most is None else places[evenly_spaced(len(places), most)]


def _divergence(rows: Tensor) -> Tensor:
    """(H, Q, S) -> (H, H)."""
    heads = len(rows)
    result = rows.new_zeros(heads, heads)
    entropy = torch.special.entr(rows).sum(-1)  # (H, Q)
    for head in range(heads - 1):  # one head against the rest, for memory
        others = slice(head + 1, heads)
        mixed = torch.special.entr((rows[head] + rows[others]) / 2).sum(-1)
        bits = (mixed - (entropy[head] + entropy[others]) / 2).mean(-1) / math.log(2)
        result[head, others] = result[others, head] = bits.clamp(0, 1)
    return result if rows.shape[1] else result + math.nan

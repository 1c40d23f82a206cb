"""How sparse attention maps are: exact zeros, support sizes and the distribution of the weights, head by head.

Everything counts entries that the masks allow, and only these. Counts are sums over a data set, a few numbers per
head, and are divided once at the end; so batches of unequal size weigh what they hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparsityCounts:
    """Counts of one attention module, per head; two of them can be added.

    Attributes:
        zeros: (H,) allowed entries whose weight is exactly 0.
        allowed: (H,) allowed entries.
        queries: (H,) rows that have at least one allowed entry.
    """

    zeros: Tensor
    allowed: Tensor
    queries: Tensor

    @property
    def zero_share(self) -> Tensor:
        """(H,) share of exact zeros among the allowed entries; NaN where nothing was allowed."""
        return self.zeros.double() / self.allowed

    @property
    def support_size(self) -> Tensor:
        """(H,) mean number of keys with a weight above 0 per query; NaN without queries."""
        return (self.allowed - self.zeros).double() / self.queries

    def __add__(self, other: "SparsityCounts") -> "SparsityCounts":
        return SparsityCounts(self.zeros + other.zeros, self.allowed + other.allowed, self.queries + other.queries)


def allowed_entries(
    attention: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """(B, 1, T, S) boolean: the entries of a map that carry meaning.

    Args:
        attention: (B, H, T, S) weights.
        query_mask: (B, T), true or 1 where the query is real; None: all are.
        key_mask: (B, S), true or 1 where the key is real; None: all are.
        causal: each query sees the keys up to its own place. With T < S (a cache) the queries are the last T places.

    Raises:
        ValueError: shapes that do not fit, NaN, or weight on a key that the masks forbid (masks of another batch, or
            of feature frames instead of encoder positions).
    """
    if attention.dim() != 4:
        raise ValueError(f"attention has shape {tuple(attention.shape)}; it must be (batch, heads, queries, keys).")
    batch, _, queries, keys = attention.shape
    allowed = torch.ones(batch, 1, queries, keys, dtype=torch.bool, device=attention.device)
    if key_mask is not None:
        allowed = allowed & _checked(key_mask, "key_mask", (batch, keys)).to(attention.device)[:, None, None, :]
    if causal:
        if queries > keys:
            raise ValueError(f"causal=True needs at least as many keys as queries; attention has {queries} and {keys}.")
        allowed = allowed & allowed.new_ones(queries, keys).tril(keys - queries)
    if attention.isnan().any():
        raise ValueError("attention holds NaN, so its zeros cannot be counted.")
    forbidden = int((attention.ne(0) & ~allowed).sum())
    if forbidden:
        raise ValueError(
            f"attention puts weight on {forbidden} entries that key_mask and causal={causal} forbid. Give the mask of "
            "the same batch, at the rate of the map (encoder positions, not feature frames)."
        )
    if query_mask is not None:
        allowed = allowed & _checked(query_mask, "query_mask", (batch, queries)).to(attention.device)[:, None, :, None]
    return allowed


def sparsity_counts(
    attention: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None, causal: bool = False
) -> SparsityCounts:
    """Counts of one map (B, H, T, S), on the CPU. Arguments and errors as for `allowed_entries`."""
    allowed = allowed_entries(attention, query_mask, key_mask, causal)
    heads = attention.shape[1]
    return SparsityCounts(
        zeros=(attention.eq(0) & allowed).sum((0, 2, 3)).cpu(),
        allowed=allowed.sum().cpu().expand(heads),
        queries=allowed.any(-1).sum().cpu().expand(heads),
    )


class SparsityMeter:
    """Sums the counts of named attention modules over a data set.

    >>> meter = SparsityMeter()
    >>> maps = {"encoder.layers.0.self_attn": torch.eye(4).expand(2, 8, 4, 4)}  # 2 utterances, 8 heads
    >>> meter.update(maps)
    >>> meter.counts["encoder.layers.0.self_attn"].zero_share[0].item()
    0.75
    """

    def __init__(self) -> None:
        self.counts: dict[str, SparsityCounts] = {}

    def update(
        self,
        maps: Mapping[str, Tensor],
        query_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        causal: bool = False,
    ) -> None:
        """Adds one batch: `maps` from module name to (B, H, T, S) weights. Other arguments as for `allowed_entries`."""
        for name, attention in maps.items():
            counts = sparsity_counts(attention, query_mask, key_mask, causal)
            self.counts[name] = self.counts[name] + counts if name in self.counts else counts


class ScoreHistogram:
    """Distribution of attention weights over a data set (paper, Figure 4b), all heads together.

    Weights run over orders of magnitude, so the bins are equally wide in log10. Exact zeros are counted apart.

    Attributes:
        edges: (N + 1,) bin edges, from `smallest` to 1.
        counts: (N,) entries per bin.
        zeros, below, total: exact zeros, weights in (0, smallest), and all entries.
    """

    def __init__(self, smallest: float = 1e-6, bins_per_decade: int = 5) -> None:
        """Raises ValueError if `smallest` is outside (0, 0.1] or `bins_per_decade` below 1."""
        if not 0 < smallest <= 0.1 or bins_per_decade < 1:
            raise ValueError(
                f"smallest = {smallest} must lie in (0, 0.1] and bins_per_decade = {bins_per_decade} be at least 1."
            )
        exponent = torch.tensor(smallest, dtype=torch.float64).log10().item()
        bins = max(1, round(-exponent * bins_per_decade))
        self.edges = torch.logspace(exponent, 0, bins + 1, dtype=torch.float64)
        self.counts = torch.zeros(bins, dtype=torch.long)
        self.zeros = self.below = self.total = 0

    @property
    def zero_share(self) -> float:
        """Share of exact zeros among all entries; NaN before the first."""
        return self.zeros / self.total if self.total else float("nan")

    def update(
        self,
        attention: Tensor,
        query_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        causal: bool = False,
    ) -> None:
        """Adds one map (B, H, T, S). Arguments and errors as for `allowed_entries`."""
        allowed = allowed_entries(attention, query_mask, key_mask, causal).expand_as(attention)
        for weights, valid in zip(attention.detach(), allowed, strict=True):  # one utterance at a time, for memory
            weights = weights[valid].double()
            binned = weights[weights >= self.edges[0].item()].cpu()
            bins = torch.bucketize(binned, self.edges, right=True) - 1
            self.counts += torch.bincount(bins.clamp(max=len(self.counts) - 1), minlength=len(self.counts))
            zeros = int(weights.eq(0).sum())
            self.zeros += zeros
            self.below += len(weights) - len(binned) - zeros
            self.total += len(weights)


def _checked(mask: Tensor, name: str, shape: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}, but the map needs {shape}. A mask of feature frames must "
            "be brought to the rate of the encoder positions first."
        )
    return mask.bool()

"""Which layers can share an attention map, and which heads can go, from the measures of an analysis.

Shim, Choi, Sung (ICLR 2022): low layers are phonetic, upper layers linguistic, and neighbours of one kind attend so
alike that one map can serve them all. scripts/reuse.py applies a proposal to a trained model, scripts/prune.py removes
heads: those that attend like others, or those that decoding waits for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from hf_entmax_asr.analysis.document import AnalysisDocument, tensor_of
from hf_entmax_asr.analysis.phoneme_attention import relative_diagonality

LINGUISTIC_SHARE = 0.5  # a layer is linguistic from this share of linguistic heads on


@dataclass(frozen=True)
class MapGroups:
    """A proposal for L layers.

    Attributes:
        sizes: of groups of consecutive layers; the first layer of each computes the map for all.
        linguistic: of each layer, whether it is; no group holds layers of both kinds.
        change: mean over the layers of how much CAD a head gains or loses by its new map; 0 where nothing changes.
        head_order: of each layer, a permutation of its heads: the head that is to use map 0 of the group, then map 1, …
            Heads of equal rank in CAD belong together.
    """

    sizes: tuple[int, ...]
    linguistic: tuple[bool, ...]
    change: float
    head_order: tuple[tuple[int, ...], ...]


def propose_map_groups(
    cad: Sequence[Tensor], uniform_cad: Sequence[float], maps: int, *, diagonal_from: float = 0.5
) -> MapGroups:
    """The grouping of consecutive layers into `maps` groups under which heads change their CAD least.

    A layer is linguistic if at least half of its heads are, by the rule of `head_roles` (relative CAD of at least
    `diagonal_from`); all others count as phonetic. Groups never cross that border, nor a change of the number of heads.
    The best of all such groupings is found, by dynamic programming.

    Args:
        cad: of each of the L layers, (H,) mean CAD of its heads over a data set (`self_attention_measures`).
        uniform_cad: of each layer, CAD of uniform attention under the same masks.
        maps: how many maps to compute, 1 … L: the budget.

    Raises:
        ValueError: a budget outside that range, or below what the borders need; CAD that was not measured.
    """
    layers = len(cad)
    if not 1 <= maps <= layers:
        raise ValueError(f"a budget of {maps} maps must lie between 1 and the number of layers, {layers}.")
    if any(values.isnan().any() for values in cad):
        raise ValueError("CAD of a head is NaN: it was not measured, so its layer cannot be grouped.")
    linguistic = tuple(
        (relative_diagonality(values, uniform) >= diagonal_from).double().mean().item() >= LINGUISTIC_SHARE
        for values, uniform in zip(cad, uniform_cad, strict=True)
    )
    kinds = [(is_linguistic, len(values)) for is_linguistic, values in zip(linguistic, cad, strict=True)]
    borders = [layer for layer in range(1, layers) if kinds[layer] != kinds[layer - 1]]
    if maps <= len(borders):
        raise ValueError(
            f"a budget of {maps} maps is too small: layers of different kinds share none, and the kind (phonetic or "
            f"linguistic, and how many heads) changes at layer {', '.join(map(str, borders))}. Give at least "
            f"{len(borders) + 1}."
        )
    ranked = [values.sort(descending=True, stable=True) for values in cad]
    sizes, total = _best_partition(kinds, [rank.values for rank in ranked], maps)
    order: list[tuple[int, ...]] = []
    for size in sizes:
        first = len(order)
        place = ranked[first].indices.argsort()  # rank of each head of the layer that lends
        order += [tuple(ranked[layer].indices[place].tolist()) for layer in range(first, first + size)]
    return MapGroups(sizes, linguistic, total / layers, tuple(order))


def _best_partition(
    kinds: Sequence[object], ranked_cad: Sequence[Tensor], groups: int
) -> tuple[tuple[int, ...], float]:
    """Sizes of so many groups of consecutive layers of one kind, and the least sum of changes."""
    layers = len(kinds)
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}  # by (layers, groups) so far
    for start in range(layers):
        for used in range(groups):
            if (start, used) not in best:
                continue
            cost, sizes = best[start, used]
            for end in range(start + 1, layers + 1):
                if kinds[end - 1] != kinds[start]:
                    break
                cost += (ranked_cad[end - 1] - ranked_cad[start]).abs().mean().item()
                known = best.get((end, used + 1))
                if known is None or cost < known[0]:
                    best[end, used + 1] = cost, (*sizes, end - start)
    total, sizes = best[layers, groups]
    return sizes, total


def map_groups_of(document: AnalysisDocument, maps: int, side: Literal["encoder", "decoder"] = "encoder") -> MapGroups:
    """`propose_map_groups` for the "encoder" or "decoder" of an analysis.

    Raises:
        ValueError: as for `propose_map_groups`, or a document without the measures.
    """
    modules = document.encoder if side == "encoder" else document.decoder
    if not modules:
        raise ValueError(f"the analysis holds no self-attention of the {side}; make it with scripts/analyze.py.")
    uniform = tensor_of([module.uniform.cad for module in modules]).tolist()
    cad = [tensor_of(module.cad) for module in modules]
    return propose_map_groups(cad, uniform, maps, diagonal_from=document.role_rule.diagonal_from)


class RedundantHead(NamedTuple):
    """A head that attends like another of its module, at a Jensen-Shannon divergence of so many bits."""

    module: str
    head: int
    like: int
    bits: float


def redundant_heads(heads: Sequence[tuple[str, int]], js_bits: Tensor, count: int) -> list[RedundantHead]:
    """The `count` heads that are missed least, by how alike heads of one module attend.

    Again and again, the two heads left in one module that differ least are found; the one of them that is nearer to
    the other heads of the module goes. Heads of different modules read different values and never replace each other.

    Args:
        heads: (module, head) of each of the N rows, as in the `agreement` of an analysis.
        js_bits: (N, N) mean divergence between them.

    Raises:
        ValueError: fewer than `count` heads can go, since each module keeps one.
    """
    left: dict[str, list[int]] = {}
    for row, (module, _) in enumerate(heads):
        left.setdefault(module, []).append(row)
    possible = len(heads) - len(left)
    if not 0 <= count <= possible:
        raise ValueError(f"{count} heads to remove must lie between 0 and {possible}: each of the modules keeps one.")
    gone: list[RedundantHead] = []
    for _ in range(count):
        pairs = ((a, b) for rows in left.values() for i, a in enumerate(rows) for b in rows[i + 1 :])
        pair = min(pairs, key=lambda ab: js_bits[ab].item())
        rows = left[heads[pair[0]][0]]
        apart = {row: sum(js_bits[row, other].item() for other in rows) for row in pair}
        goes = pair[0] if apart[pair[0]] < apart[pair[1]] else pair[1]
        stays = pair[1] if goes == pair[0] else pair[0]
        rows.remove(goes)
        gone.append(RedundantHead(*heads[goes], heads[stays][1], js_bits[pair].item()))
    return gone


class WaitedForHead(NamedTuple):
    """A monotonic head, the share of the tokens for which it was the last to stop, and its lag (as it was given)."""

    layer: int
    head: int
    last_share: float
    lag: float


def waited_for_heads(
    heads: Sequence[tuple[int, int]], last_share: Sequence[float], lag: Sequence[float], count: int
) -> list[WaitedForHead]:
    """The `count` monotonic heads that are most often the last to stop for a token: what decoding waits for.

    Of heads that are last equally often, the one that lags more goes first; of two such, the one named first. The
    shares are those of the whole model: once a head is gone, another one becomes the last.

    Args:
        heads: (layer, head) of each of the N heads that take part, as in `MonotonicSummary`.
        last_share, lag: of each, from the same summary (the lag in any unit).

    Raises:
        ValueError: fewer than `count` heads can go, since each layer keeps one; a share that was not measured.
    """
    if any(map(math.isnan, last_share)):
        raise ValueError("last_share of a head is NaN: no token was measured, so no head can be chosen.")
    left: dict[int, int] = {}
    for layer, _ in heads:
        left[layer] = left.get(layer, 0) + 1
    possible = len(heads) - len(left)
    if not 0 <= count <= possible:
        raise ValueError(f"{count} heads to remove must lie between 0 and {possible}: each layer keeps one.")
    gone: list[WaitedForHead] = []
    rows = [WaitedForHead(*head, *measures) for head, *measures in zip(heads, last_share, lag, strict=True)]
    for row in sorted(rows, key=lambda row: (-row.last_share, -row.lag)):
        if len(gone) < count and left[row.layer] > 1:
            left[row.layer] -= 1
            gone.append(row)
    return gone

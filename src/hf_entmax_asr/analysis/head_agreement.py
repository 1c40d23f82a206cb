"""Which heads look alike: agglomerative clustering of their divergence, and its picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hf_entmax_asr.analysis.pictures import Document, tensor_of
from hf_entmax_asr.analysis.plots import GREY, _figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Merge = tuple[int, int, float]  # two clusters and their distance; the k-th merge makes cluster N + k


def average_linkage(distance: Tensor) -> list[Merge]:
    """Agglomerative clustering of N items by their mean distance (N, N), symmetric: N − 1 merges, nearest first."""
    size = len(distance)
    members = {n: [n] for n in range(size)}
    merges: list[Merge] = []
    while len(members) > 1:
        names = list(members)
        pairs = ((a, b) for index, a in enumerate(names) for b in names[index + 1 :])
        a, b = min(pairs, key=lambda pair: _between(distance, members[pair[0]], members[pair[1]]))
        merges.append((a, b, _between(distance, members[a], members[b])))
        members[size + len(merges) - 1] = members.pop(a) + members.pop(b)
    return merges


def leaf_order(merges: Sequence[Merge], size: int) -> list[int]:
    """The items from left to right, so that no two branches of the dendrogram cross."""
    parts: dict[int, list[int]] = {n: [n] for n in range(size)}
    for number, (a, b, _) in enumerate(merges):
        parts[size + number] = parts.pop(a) + parts.pop(b)
    return [leaf for part in parts.values() for leaf in part]


def _between(distance: Tensor, one: list[int], other: list[int]) -> float:
    return distance[one][:, other].mean().item()


def plot_agreement(document: Document) -> "Figure":
    """Jensen-Shannon divergence between all encoder heads, ordered by a dendrogram (average linkage)."""
    agreement = document["agreement"]
    distance = tensor_of(agreement["js_bits"])
    merges = average_linkage(distance)
    order = leaf_order(merges, len(distance))
    names = [f"L{name.split('.')[2]} H{head}" for name, head in agreement["heads"]]
    size = max(5.0, 0.22 * len(names) + 2.2)
    figure = _figure("Which heads look alike", size + 1.2, size + 1.5)
    upper, lower = figure.subplots(2, 1, height_ratios=[1, 4.2], sharex=True)
    _draw_dendrogram(upper, merges, order)
    image = lower.imshow(
        distance[order][:, order].numpy(), cmap="viridis_r", vmin=0, vmax=1, interpolation="nearest", aspect="auto"
    )
    font = 8 if len(names) <= 40 else 5
    lower.set_xticks(range(len(order)), [names[n] for n in order], rotation=90, fontsize=font)
    lower.set_yticks(range(len(order)), [names[n] for n in order], fontsize=font)
    bar = figure.colorbar(image, ax=lower, fraction=0.04, pad=0.02)
    bar.set_label("divergence (bits)\n0: the same weights, 1: no key in common")
    upper.set_ylabel("divergence at\nwhich they join")
    upper.spines[["top", "right", "bottom"]].set_visible(False)
    upper.tick_params(axis="x", length=0, labelbottom=False)
    return figure


def _draw_dendrogram(axes: Any, merges: Sequence[Merge], order: Sequence[int]) -> None:
    place = {leaf: (float(x), 0.0) for x, leaf in enumerate(order)}  # of each cluster's top
    for number, (a, b, height) in enumerate(merges):
        (left, low), (right, other) = place[a], place[b]
        axes.plot([left, left, right, right], [low, height, height, other], color=GREY, linewidth=1.1)
        place[len(order) + number] = ((left + right) / 2, height)
    axes.set_ylim(0, 1.02 * max((height for *_, height in merges), default=1.0))

"""Figure of which heads look alike, and the agglomerative clustering of their divergence that orders it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_entmax_asr.analysis.document import AnalysisDocument, tensor_of
from hf_entmax_asr.analysis.figures.style import GREY, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Merge = tuple[int, int, float]  # two clusters and their distance; the k-th merge makes cluster N + k


def average_linkage(distance: Tensor) -> list[Merge]:
    """Agglomerative clustering of N items by their mean distance (N, N), symmetric: N − 1 merges, nearest first."""
    size = len(distance)
    apart = distance.double().clone().fill_diagonal_(float("inf"))
    cluster = list(range(size))  # which cluster stands in each row
    members = torch.ones(size, dtype=torch.float64)
    merges: list[Merge] = []
    for number in range(size - 1):
        row, column = divmod(int(apart.argmin()), size)  # row < column, since the first of equals is found
        merges.append((cluster[row], cluster[column], apart[row, column].item()))
        mean = (members[row] * apart[row] + members[column] * apart[column]) / (members[row] + members[column])
        apart[row] = apart[:, row] = mean
        apart[column] = apart[:, column] = float("inf")
        members[row] += members[column]
        cluster[row] = size + number
    return merges


def leaf_order(merges: Sequence[Merge], size: int) -> list[int]:
    """The items from left to right, so that no two branches of the dendrogram cross."""
    parts: dict[int, list[int]] = {n: [n] for n in range(size)}
    for number, (a, b, _) in enumerate(merges):
        parts[size + number] = parts.pop(a) + parts.pop(b)
    return [leaf for part in parts.values() for leaf in part]


def plot_agreement(document: AnalysisDocument) -> "Figure":
    """Jensen-Shannon divergence between all encoder heads, ordered by a dendrogram (average linkage)."""
    agreement = document.agreement
    distance = tensor_of(agreement.js_bits)
    merges = average_linkage(distance)
    order = leaf_order(merges, len(distance))
    names = [f"L{name.split('.')[2]} H{head}" for name, head in agreement.heads]
    many = len(names) > 40
    size = max(5.0, (0.14 if many else 0.22) * len(names) + 2.2)
    figure = new_figure("Which heads look alike", size + 1.2, size + 1.5)
    upper, lower = figure.subplots(2, 1, height_ratios=[1, 4.2], sharex=True)
    _draw_dendrogram(upper, merges, order)
    image = lower.imshow(
        distance[order][:, order].numpy(), cmap="viridis_r", vmin=0, vmax=1, interpolation="nearest", aspect="auto"
    )
    font = 7 if many else 8
    lower.set_xticks(range(len(order)), [names[n] for n in order], rotation=90, fontsize=font)
    lower.set_yticks(range(len(order)), [names[n] for n in order], fontsize=font)
    bar = figure.colorbar(image, ax=lower, fraction=0.04, pad=0.02)
    bar.set_label("divergence (bits)\n0: the same weights, 1: no key in common")
    upper.set_ylabel("divergence (bits)\nat which they join")
    upper.spines[["top", "right", "bottom"]].set_visible(False)
    upper.tick_params(axis="x", length=0, labelbottom=False)
    return figure


def _draw_dendrogram(axes: Any, merges: Sequence[Merge], order: Sequence[int]) -> None:
    place = {leaf: (float(x), 0.0) for x, leaf in enumerate(order)}  # of each cluster's top
    for number, (a, b, height) in enumerate(merges):
        (left, low), (right, other) = place[a], place[b]
        axes.plot([left, left, right, right], [low, height, height, other], color=GREY, linewidth=1.1)
        place[len(order) + number] = ((left + right) / 2, height)
    axes.set_ylim(0, 1.02 * (max((height for *_, height in merges), default=0.0) or 1.0))  # heads may be all alike

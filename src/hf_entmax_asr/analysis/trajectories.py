"""How the encoder's attention changed over training, from the analyses that a run wrote at several steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_entmax_asr.analysis.drawing import GREY, new_figure
from hf_entmax_asr.analysis.pictures import Document, modules_of, tensor_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (key of a module, factor, label of the axis, lowest and highest value shown; None: as the data and uniform attention)
_PANELS: tuple[tuple[str, float, str, float, float | None], ...] = (
    ("cad", 1.0, "CAD   (1: diagonal)", 0.5, 1.0),
    ("zero_share", 100.0, "weights that are exactly 0 (%)", 0.0, 100.0),
    ("entropy_nats", 1.0, "entropy of a row (nats)", 0.0, None),
)

MOST_MARKED = 20  # more points than these run into each other


@dataclass(frozen=True)
class TrajectoryPoint:
    """Means over the heads of each encoder layer after `step` steps, by measure; NaN where nothing was measured.

    Attributes:
        layers: {measure: [value per layer]}.
        uniform: the same of uniform attention under the same masks, for those measures that have it.
    """

    step: int
    layers: Mapping[str, Sequence[float]]
    uniform: Mapping[str, float]


def trajectory(documents: Iterable[Document]) -> list[TrajectoryPoint]:
    """One point for each analysis that says after which `step` it was made, in the order of the steps.

    The documents are read one at a time and not kept.
    """
    points = []
    for document in documents:
        if "step" in document:
            modules = modules_of(document, "encoder")
            layers = {key: [tensor_of(m[key]).nanmean().item() for m in modules] for key, *_ in _PANELS}
            uniform = {key: modules[0]["uniform"][key] for key, *_ in _PANELS if key in modules[0]["uniform"]}
            points.append(TrajectoryPoint(document["step"], layers, uniform))
    return sorted(points, key=lambda point: point.step)


def plot_over_training(points: Sequence[TrajectoryPoint]) -> "Figure":
    """CAD, exact zeros and entropy of each encoder layer over the optimiser steps.

    Raises:
        ValueError: there are no points, or they are of models with different numbers of layers.
    """
    counts = {len(point.layers["cad"]) for point in points}
    if len(counts) != 1:
        raise ValueError(f"the points are of {sorted(counts) or 'no'} layers; points of one model are needed.")
    figure = new_figure("Encoder self-attention over training, mean over the heads of a layer", 13.2, 4.2)
    from matplotlib import colormaps

    steps = [point.step for point in points]
    deepest = max(1, counts.pop() - 1)
    marker = "o" if len(points) <= MOST_MARKED else None
    for axes, (key, factor, label, low, high) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for layer in range(len(points[0].layers[key])):
            colour = colormaps["viridis"](0.87 * layer / deepest)  # not up to yellow, which is faint on white
            values = [factor * point.layers[key][layer] for point in points]
            axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=f"layer {layer}")
        if all(key in point.uniform for point in points):
            values = [factor * point.uniform[key] for point in points]
            axes.plot(steps, values, color=GREY, linestyle=(0, (4, 3)), linewidth=1.3, label="uniform attention")
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(low, bottom), top if high is None else high + 0.02 * (high - low))
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return figure

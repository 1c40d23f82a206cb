"""Figures over the steps of training: α and gates of every head, and what the encoder's attention did."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_entmax_asr.analysis.figures.style import GREY, layer_colour, new_figure
from hf_entmax_asr.analysis.trajectories import TrajectoryPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODULE = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")
MODULE_TITLES = {
    ("encoder", "self_attn"): "Encoder self-attention",
    ("decoder", "self_attn"): "Decoder self-attention",
    ("decoder", "encoder_attn"): "Cross-attention",
    ("decoder", "encoder_attn.cross_head"): "Cross-head attention",
}
MOST_MARKED = 20  # more points than these run into each other


def plot_alphas(
    history: Iterable[Mapping[str, Any]], *, key: str = "alpha", title: str = "Learned α of every head over training"
) -> "Figure":
    """α of each head over the optimiser steps, coloured by layer (paper, Figure 4a).

    Args:
        history: rows as in a run's history.jsonl: "step", and under `key` {module name: [α per head]}. Rows without
            `key` (evaluations) are passed over.

    Raises:
        ValueError: no row holds α, a module name not of the form encoder.layers.0.self_attn, or changing head counts.
    """
    series = _alpha_series(history, key)
    figure = new_figure(title, 4.2 * len(series) + 2.2, 4.2)
    panels = figure.subplots(1, len(series), sharex=True, sharey=True, squeeze=False)[0]
    deepest = max(layer for layers in series.values() for layer in layers)
    keys: dict[int, Any] = {}  # layer -> one of its lines, for the legend
    for panel, (kind, layers) in zip(panels, series.items(), strict=True):
        for layer, points in sorted(layers.items()):
            steps, values = zip(*points, strict=True)
            colour = layer_colour(layer, deepest)
            style = {"color": colour, "linewidth": 1.3, "alpha": 0.85, "marker": "o" if len(steps) == 1 else None}
            lines = panel.plot(steps, values, label=f"layer {layer}", **style)  # values (steps, H): a line per head
            keys.setdefault(layer, lines[0])
        panel.set_title(MODULE_TITLES.get(kind, " ".join(kind)), fontsize=11)
        panel.axhline(1.5, color="0.75", linewidth=0.8, zorder=0)
        panel.set_xlabel("optimiser step")
        panel.locator_params(axis="x", nbins=6)
        panel.spines[["top", "right"]].set_visible(False)
    handles = [keys[layer] for layer in sorted(keys)]
    figure.legend(handles=handles, title="one line\nper head", loc="outside right upper", frameon=False, fontsize=9)
    panels[0].set_ylim(0.98, 2.02)
    panels[0].set_yticks([1, 1.25, 1.5, 1.75, 2], ["softmax  1", "1.25", "1.5", "1.75", "sparsemax  2"])
    panels[0].set_ylabel("α   (higher: sparser)")
    return figure


def plot_gates(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """The gate of each monotonic head over the optimiser steps; one at 0 has left the model.

    Args:
        history: rows of a run's history.jsonl; see `plot_alphas`.

    Raises:
        ValueError: as for `plot_alphas`.
    """
    from matplotlib.ticker import AutoLocator, ScalarFormatter

    figure = plot_alphas(history, key="gate", title="Gate of every monotonic head over training")
    panels = figure.axes
    values = [value for row in history for gates in row.get("gate", {}).values() for value in gates]
    panels[0].set_ylim(min(0.0, *values) - 0.04, max(1.0, *values) + 0.04)
    panels[0].yaxis.set_major_locator(AutoLocator())
    panels[0].yaxis.set_major_formatter(ScalarFormatter())
    panels[0].set_ylabel("gate   (0: the head is gone)")
    return figure


def plot_over_training(points: Sequence[TrajectoryPoint]) -> "Figure":
    """CAD, exact zeros and entropy of each encoder layer over the optimiser steps.

    Raises:
        ValueError: there are no points, or they are of models with different numbers of layers.
    """
    counts = {len(point.cad) for point in points}
    if len(counts) != 1:
        raise ValueError(f"the points are of {sorted(counts) or 'no'} layers; points of one model are needed.")
    zeros = [[100 * share for share in point.zero_share] for point in points]
    nats = [point.uniform_entropy_nats for point in points]
    # (label of the axis, value per layer at each point, of uniform attention, lowest and highest value shown)
    panels: list[tuple[str, Sequence[Sequence[float]], Sequence[float] | None, float, float | None]] = [
        ("CAD   (1: diagonal)", [p.cad for p in points], [p.uniform_cad for p in points], 0.5, 1.0),
        ("weights that are exactly 0 (%)", zeros, None, 0.0, 100.0),
        ("entropy of a row (nats)", [p.entropy_nats for p in points], nats, 0.0, None),
    ]
    figure = new_figure("Encoder self-attention over training, mean over the heads of a layer", 13.2, 4.2)
    steps = [point.step for point in points]
    layers = counts.pop()
    marker = "o" if len(points) <= MOST_MARKED else None
    for axes, (label, values, uniform, low, high) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for layer in range(layers):
            style = {"color": layer_colour(layer, layers - 1), "marker": marker, "markersize": 3.5}
            axes.plot(steps, [at[layer] for at in values], linewidth=1.6, label=f"layer {layer}", **style)
        if uniform is not None:
            axes.plot(steps, uniform, color=GREY, linestyle=(0, (4, 3)), linewidth=1.3, label="uniform attention")
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


def _alpha_series(
    history: Iterable[Mapping[str, Any]], key: str
) -> dict[tuple[str, str], dict[int, list[tuple[int, list[float]]]]]:
    """(side, module) -> layer -> [(step, α per head)], the encoder first."""
    series: dict[tuple[str, str], dict[int, list[tuple[int, list[float]]]]] = {}
    for row in history:
        for name, values in row.get(key, {}).items():
            match = MODULE.fullmatch(name)
            if match is None:
                raise ValueError(f"{name!r} is no attention module; the form is encoder.layers.0.self_attn.")
            side, layer, module = match.groups()
            series.setdefault((side, module), {}).setdefault(int(layer), []).append((row["step"], list(values)))
    if not series:
        raise ValueError(f"no row of the history holds {key!r}. Was the model trained with the transform 'entmax'?")
    return dict(sorted(series.items(), reverse=True))  # encoder, decoder, cross-attention

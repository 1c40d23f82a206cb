"""Figures of attention maps: the heads of one utterance, one head under several transforms, several checkpoints.

Weights are drawn on a logarithmic scale from light to dark; exact zeros are white.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_entmax_asr.analysis.comparison import Compared, Comparison, middle_head
from hf_entmax_asr.analysis.figures.style import new_figure, zeros_text
from hf_entmax_asr.evenly_spaced import evenly_spaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST_SHADE = 1e-3  # weights above 0 and below it are drawn as this one
MOST_COLUMNS = 6  # layers drawn of each checkpoint


def plot_attention_maps(
    maps: Sequence[Tensor],
    seconds_per_position: float,
    *,
    alphas: Sequence[Tensor] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    title: str = "Encoder self-attention of one utterance",
) -> "Figure":
    """Self-attention maps of one utterance, a row for each layer and a column for each head. Exact zeros are white.

    Args:
        maps: one (H, T, T) tensor per layer, without padding.
        alphas: one (H,) tensor per layer, written above the panels.
        layers, heads: which ones to draw; all by default. Where a layer has no such head, its place stays empty.

    Raises:
        ValueError: a map that is no (H, T, S) tensor, or layers or heads that do not exist.
    """
    for layer, weights in enumerate(maps):
        if weights.dim() != 3:
            raise ValueError(f"the map of layer {layer} has shape {tuple(weights.shape)}; (heads, T, S) is needed.")
    layers = _chosen(layers, len(maps), "layer")
    heads = _chosen(heads, max(len(maps[layer]) for layer in layers), "head")
    figure = new_figure(title, 1.9 * len(heads) + 1.6, 2.05 * len(layers) + 1.0)
    panels = figure.subplots(len(layers), len(heads), sharex=True, sharey=True, squeeze=False)
    for row, layer in zip(panels, layers, strict=True):
        for panel, head in zip(row, heads, strict=True):
            if head >= len(maps[layer]):
                panel.set_axis_off()
                continue
            weights = maps[layer][head]
            image = _draw_map(panel, weights, seconds_per_position)
            alpha = "" if alphas is None else f"α {float(alphas[layer][head]):.2f}, "
            label = f"layer {layer}, head {head}\n{alpha}{zeros_text(_zero_share(weights))}"
            panel.set_title(label, fontsize=8)
    _finish_grid(figure, panels, image)
    return figure


def plot_transforms(
    maps: Mapping[str, Tensor],
    seconds_per_position: float,
    *,
    title: str = "The same utterance and layer under several transforms",
) -> "Figure":
    """One row of maps (T, S) under their names, such as "softmax" (paper, Figure 3). Exact zeros are white.

    Raises:
        ValueError: no maps, or one that is no (T, S) tensor.
    """
    if not maps:
        raise ValueError("maps is empty; there is nothing to draw.")
    figure = new_figure(title, 2.7 * len(maps) + 1.4, 3.6)
    panels = figure.subplots(1, len(maps), sharex=True, sharey=True, squeeze=False)
    for panel, (name, weights) in zip(panels[0], maps.items(), strict=True):
        if weights.dim() != 2:
            raise ValueError(f"the map {name!r} has shape {tuple(weights.shape)}; one head's (T, S) is needed.")
        image = _draw_map(panel, weights, seconds_per_position)
        panel.set_title(f"{name}\n{zeros_text(_zero_share(weights))}", fontsize=10)
    _finish_grid(figure, panels, image)
    return figure


def plot_maps_by_checkpoint(comparison: Comparison) -> "Figure":
    """Encoder self-attention of one utterance, a row for each checkpoint and a column for each layer.

    Each panel is the layer's `middle_head`; of more than six layers, six evenly spaced ones are drawn. Exact zeros are
    white, and all panels share one logarithmic scale.

    Raises:
        ValueError: a checkpoint whose maps are not those that its analysis names.
    """
    compared = comparison.compared
    for one in compared:
        heads = [module.heads for module in one.document.encoder]
        if [len(weights) for weights in one.maps] != heads:
            found = [tuple(weights.shape) for weights in one.maps]
            raise ValueError(f"{one.name} has maps of the shapes {found}; its analysis is of {heads} heads by layer.")
    columns = max(min(MOST_COLUMNS, len(one.maps)) for one in compared)
    title = f"Encoder self-attention by checkpoint: {comparison.utterance}"
    figure = new_figure(title, 1.8 * columns + 1.9, 1.95 * len(compared) + 1.0)
    panels = figure.subplots(len(compared), columns, squeeze=False, sharex=True, sharey=True)
    for row, one in zip(panels, compared, strict=True):
        image = _draw_row(row, one)
    panels[0, 0].set_xlim(0, comparison.seconds)  # the last position may reach beyond it
    panels[0, 0].set_ylim(comparison.seconds, 0)
    _finish_grid(figure, panels, image)
    return figure


def _draw_row(panels: Sequence[Any], one: Compared) -> Any:
    layers = evenly_spaced(len(one.maps), MOST_COLUMNS)
    modules = one.document.encoder
    for panel, layer in zip(panels, layers, strict=False):
        head = middle_head(modules[layer])
        weights = one.maps[layer][head]
        image = _draw_map(panel, weights, one.document.seconds_per_position)
        alpha = one.fixed_alpha if one.alphas is None else float(one.alphas[layer][head])
        written = "" if alpha is None else f"α {alpha:.2f}, "
        panel.set_title(f"layer {layer}, head {head}\n{written}{zeros_text(_zero_share(weights))}", fontsize=8)
    for panel in panels[len(layers) :]:
        panel.set_axis_off()
    panels[0].set_ylabel(f"{one.transform}\n{_wrapped(one.name)}", fontsize=9.5, fontweight="bold")
    return image


def _draw_map(axes: Any, weights: Tensor, seconds_per_position: float) -> Any:
    """One map (T, S) on a logarithmic scale: dark where the weight is large, white where it is exactly 0."""
    values = weights.detach().float().cpu()
    queries, keys = values.shape
    axes.set_facecolor("white")
    return axes.imshow(
        values.masked_fill(values == 0, torch.nan).numpy(),
        cmap="viridis_r",
        norm="log",
        vmin=SMALLEST_SHADE,
        vmax=1.0,
        extent=(0, keys * seconds_per_position, queries * seconds_per_position, 0),
        interpolation="nearest",
        aspect="auto",
    )


def _finish_grid(figure: "Figure", panels: Any, image: Any) -> None:
    """Axes in seconds and the colour bar of a grid of maps (2-D array of axes); `image` is any one of them."""
    for panel in panels.flat:
        panel.label_outer()
        panel.tick_params(labelsize=8)
    for column in panels.T:  # where the lowest place is empty, the panel above it has the seconds
        [panel for panel in column if panel.axison][-1].tick_params(labelbottom=True)
    figure.supxlabel("attended to: time in the recording (s)", fontsize=10)
    figure.supylabel("attending: time in the recording (s)", fontsize=10)
    bar = figure.colorbar(image, ax=panels, extend="min", fraction=0.03, pad=0.01, aspect=30)
    bar.set_ticks([SMALLEST_SHADE, 0.01, 0.1, 1.0], labels=[f"{SMALLEST_SHADE:g}", "0.01", "0.1", "1"], fontsize=8)
    bar.set_label("attention weight, logarithmic (white: exactly 0)", fontsize=10)


def _zero_share(weights: Tensor) -> float:
    return float(weights.eq(0).double().mean())


def _chosen(chosen: Sequence[int] | None, count: int, what: str) -> list[int]:
    numbers = list(range(count)) if chosen is None else list(chosen)
    wrong = [number for number in numbers if not 0 <= number < count]
    if wrong or not numbers:
        raise ValueError(f"{what}s {wrong or numbers} cannot be drawn; choose from 0 to {count - 1}.")
    return numbers


def _wrapped(name: str, width: int = 22) -> str:
    return "\n".join(name[start : start + width] for start in range(0, len(name), width))

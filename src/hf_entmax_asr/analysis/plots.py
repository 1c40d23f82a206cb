"""Pictures of attention: maps, head boundaries over the spectrogram, α over training, distribution of the weights.

Each function takes tensors, returns a matplotlib Figure and touches no global state of matplotlib; `save_png` writes
it. Needs the extra `plots`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_entmax_asr.analysis.drawing import (
    BLUE,
    GREY,
    LINES,
    SKY,
    VERMILION,
    draw_map,
    finish_maps,
    new_figure,
    zeros_text,
)
from hf_entmax_asr.analysis.sparsity import ScoreHistogram
from hf_entmax_asr.analysis.word_ends import Head, position_seconds, token_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TALLEST_STACK = 8  # characters written above one position, if each token is one
WIDEST_INCHES = 44.0  # 2.6 a second, less for recordings longer than 17 s
LONGEST_PIECES = 24  # characters of the tokens written above one position, if they are longer
TOKEN_WIDTH = 0.09  # inches; boundaries nearer than this share a stack
SYMBOLS = {"▁": "␣", "</s>": "∎", "<unk>": "?"}
CHINESE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "SimHei")
MODULE = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")
MODULE_TITLES = {
    ("encoder", "self_attn"): "Encoder self-attention",
    ("decoder", "self_attn"): "Decoder self-attention",
    ("decoder", "encoder_attn"): "Cross-attention",
    ("decoder", "encoder_attn.cross_head"): "Cross-head attention",
}


def save_png(figure: "Figure", path: str | Path, dots_per_inch: int = 150) -> Path:
    """Writes a figure under a temporary name and renames it, so that a reader never meets half a picture."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path.name} must end in .png.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format="png", dpi=dots_per_inch)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


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
            image = draw_map(panel, weights, seconds_per_position)
            alpha = "" if alphas is None else f"α {float(alphas[layer][head]):.2f}, "
            label = f"layer {layer}, head {head}\n{alpha}{zeros_text(float(weights.eq(0).double().mean()))}"
            panel.set_title(label, fontsize=8)
    finish_maps(figure, panels, image)
    return figure


def plot_transforms(
    maps: Mapping[str, Tensor],
    seconds_per_position: float,
    *,
    title: str = "The same utterance and layer under several transforms",
) -> "Figure":
    """One row of maps (T, S) under their names, such as "softmax" (paper, Figure 3). Exact zeros are white."""
    if not maps:
        raise ValueError("maps is empty; there is nothing to draw.")
    figure = new_figure(title, 2.7 * len(maps) + 1.4, 3.6)
    panels = figure.subplots(1, len(maps), sharex=True, sharey=True, squeeze=False)
    for panel, (name, weights) in zip(panels[0], maps.items(), strict=True):
        if weights.dim() != 2:
            raise ValueError(f"the map {name!r} has shape {tuple(weights.shape)}; one head's (T, S) is needed.")
        image = draw_map(panel, weights, seconds_per_position)
        panel.set_title(f"{name}\n{zeros_text(float(weights.eq(0).double().mean()))}", fontsize=10)
    finish_maps(figure, panels, image)
    return figure


def plot_boundaries(
    features: Tensor,
    boundaries: Sequence[Tensor],
    tokens: Sequence[str],
    head: Head,
    seconds_per_position: float,
    *,
    seconds_per_frame: float = 0.01,
    words: Sequence[str] | None = None,
    word_ends: Sequence[float] | None = None,
    first_layer: int = 0,
    word_boundary: str | None = "▁",
    title: str = "Where each head stopped to write",
) -> "Figure":
    """Head boundaries over the log-mel spectrogram of one utterance.

    Above, the spectrogram with the tokens at the boundaries of the chosen head; below, the boundaries of every head,
    with a dot where the token that ends a word was written.

    Args:
        features: (T, F) log-mel features.
        boundaries: one (H, U) tensor of encoder positions per monotonic layer.
        tokens: up to U tokens, drawn up to the end of the sentence.
        head: (layer, head) whose boundaries carry the tokens.
        words, word_ends: reference words and their true ends in seconds, drawn as dashed lines.
        first_layer: number of the first monotonic decoder layer.
        word_boundary: see `token_words`.

    Raises:
        ValueError: sizes that do not agree, or a head that does not exist.
    """
    tokens = tokens[: list(tokens).index("</s>") + 1] if "</s>" in tokens else tokens
    times = _boundary_times(boundaries, tokens, seconds_per_position, first_layer)
    if head not in times:
        raise ValueError(f"(layer, head) = {head} does not exist; there are {list(times)}.")
    if words is not None and (word_ends is None or len(words) != len(word_ends)):
        raise ValueError(f"{len(words)} words need as many word_ends; got {0 if not word_ends else len(word_ends)}.")
    duration = len(features) * seconds_per_frame
    width = min(WIDEST_INCHES, max(9.0, 2.6 * duration))
    figure = new_figure(title, width, 4.6 + 0.17 * len(times))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 0.6 + 0.17 * len(times)])
    _draw_spectrogram(upper, features, duration)
    _write_tokens(upper, times[head], tokens, width / duration)
    after = [word.after for word in token_words(tokens, word_boundary) if word.after is not None]
    _draw_head_rows(lower, times, head, after)
    _draw_word_ends(upper, lower, word_ends or (), words)
    latest = max((stop for stops in times.values() for stop in stops), default=0.0)
    lower.set_xlim(0, max(duration, latest + seconds_per_position / 2))
    lower.set_xlabel("time in the recording (s)")
    if word_ends:
        upper.plot([], [], color=VERMILION, linestyle=(0, (4, 2)), label="true word end")
    upper.plot([], [], color=BLUE, label=f"boundary of layer {head[0]}, head {head[1]}")
    lower.plot([], [], "|", color=GREY, markersize=9, label="boundary of a head")
    lower.plot([], [], "o", color=GREY, label="boundary that ends a word (␣, the last ∎)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False, columnspacing=1.2)
    return figure


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
    from matplotlib import colormaps

    panels = figure.subplots(1, len(series), sharex=True, sharey=True, squeeze=False)[0]
    deepest = max(1, *(layer for layers in series.values() for layer in layers))
    keys: dict[int, Any] = {}  # layer -> one of its lines, for the legend
    for panel, (kind, layers) in zip(panels, series.items(), strict=True):
        for layer, points in sorted(layers.items()):
            steps, values = zip(*points, strict=True)
            colour = colormaps["viridis"](0.87 * layer / deepest)  # not up to yellow, which is faint on white
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


def plot_scores(
    histograms: Mapping[str, ScoreHistogram], *, title: str = "Final attention weights: how many are exactly zero"
) -> "Figure":
    """Distribution of attention weights (paper, Figure 4b): left the share of exact zeros, right all other weights.

    Args:
        histograms: by name, such as the transform, with equal bins.

    Raises:
        ValueError: nothing was counted under a name, or bins differ.
    """
    if not histograms:
        raise ValueError("histograms is empty; there is nothing to draw.")
    edges = next(iter(histograms.values())).edges
    for name, histogram in histograms.items():
        if histogram.total == 0:
            raise ValueError(f"the histogram {name!r} holds no weights yet.")
        if not torch.equal(histogram.edges, edges):
            raise ValueError(f"the histogram {name!r} has other bins than the first one.")
    figure = new_figure(title, 10.5, max(3.6, 2.6 + 0.3 * len(histograms)))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.8])
    for index, (name, histogram) in enumerate(histograms.items()):
        colour = LINES[index % len(LINES)]
        zero, below = 100 * histogram.zero_share, 100 * histogram.below / histogram.total
        left.barh(index, zero, color=colour)
        left.barh(index, below, left=zero, color="white", edgecolor=colour, hatch="///")
        shares = 100 * histogram.counts.double() / histogram.total
        right.stairs(shares.numpy(), edges.numpy(), color=colour, linewidth=1.8, label=name)
    labels = [f"{name}\n{zeros_text(histogram.zero_share)}" for name, histogram in histograms.items()]
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    left.set_xlim(0, 100)
    left.set_xlabel(f"share of all weights (%)\nfilled: exactly 0; hatched: above 0, below {float(edges[0]):g}")
    right.set_xscale("log")
    right.set_xlim(float(edges[0]), 1)
    right.set_ylim(bottom=0)
    right.set_xlabel("attention weight (logarithmic)")
    per_decade = round(1 / math.log10(float(edges[1] / edges[0])))
    right.set_ylabel(f"share of all weights (%)\nin each step of 1/{per_decade} decade")
    right.legend(fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_spectrogram(axes: Any, features: Tensor, duration: float) -> None:
    values = features.detach().float().cpu()
    low, high = torch.quantile(values.flatten()[:: max(1, values.numel() // 100_000)], torch.tensor([0.05, 0.995]))
    axes.imshow(
        values.T.numpy(),
        origin="lower",
        cmap="Greys",
        vmin=float(low),
        vmax=float(high),
        extent=(0, duration, 0, values.shape[1]),
        aspect="auto",
    )
    axes.set_ylabel("mel channel")


def _write_tokens(axes: Any, times: list[float], tokens: Sequence[str], inches_per_second: float) -> None:
    """Blue lines at the boundaries, with the tokens written there above the picture: single characters in a stack, the
    first on top; longer pieces from bottom to top, so that neighbours do not run into each other."""
    stacks: dict[float, list[str]] = {}
    written = -math.inf  # where the last stack stands
    for time, token in zip(times, tokens, strict=True):
        axes.axvline(time, color=BLUE, linewidth=0.9, alpha=0.8)
        if (time - written) * inches_per_second > TOKEN_WIDTH:
            written = time
        stacks.setdefault(written, []).append(SYMBOLS.get(token, token.replace("▁", "␣")))
    style = {"color": BLUE, "fontsize": 9, "fontfamily": _fonts(), "ha": "center", "va": "bottom", "linespacing": 0.95}
    pieces = any(len(token) > 1 for stack in stacks.values() for token in stack)
    for time, stack in stacks.items():
        text = " ".join(_shortened(stack, 1)) if pieces else "\n".join(_shortened(stack, 0))
        axes.text(time, 1.01, text, rotation=90 if pieces else 0, transform=axes.get_xaxis_transform(), **style)


def _shortened(stack: list[str], gap: int) -> list[str]:
    """As many tokens as fit into LONGEST_PIECES characters, or TALLEST_STACK without gaps; then how many are left."""
    room = LONGEST_PIECES if gap else TALLEST_STACK
    ends = list(accumulate(len(token) + gap for token in stack))
    if ends[-1] - gap <= room:
        return stack
    shown = max(1, sum(end <= room - 1 for end in ends))
    return [*stack[:shown], f"+{len(stack) - shown}"] if shown < len(stack) else stack


def _draw_word_ends(upper: Any, lower: Any, word_ends: Sequence[float], words: Sequence[str] | None) -> None:
    """Dashed lines in both panels, with the words at the bottom of the upper one."""
    from matplotlib.patheffects import withStroke

    for axes in (upper, lower):
        for end in word_ends:
            axes.axvline(end, color=VERMILION, linestyle=(0, (4, 2)), linewidth=1.3)
    style = {"color": VERMILION, "fontsize": 10, "fontfamily": _fonts(), "ha": "right", "va": "bottom"}
    halo = [withStroke(linewidth=3, foreground="white")]
    for end, word in zip(word_ends, words or (), strict=False):
        upper.text(end - 0.015, 1, word, path_effects=halo, **style)


def _draw_head_rows(axes: Any, times: Mapping[Head, list[float]], chosen: Head, after: Sequence[int]) -> None:
    """One row of ticks for each head, dots at the tokens `after` a word; the chosen head in blue on a shaded row."""
    for row, (head, stops) in enumerate(times.items()):
        colour = BLUE if head == chosen else GREY
        axes.eventplot(stops, lineoffsets=row, linelengths=0.75, linewidths=1.1, colors=colour)
        axes.plot([stops[u] for u in after], [row] * len(after), "o", color=colour, markersize=5)
        if head == chosen:
            axes.axhspan(row - 0.5, row + 0.5, color=SKY, alpha=0.25, zorder=0, linewidth=0)
        if row and head[1] == 0:
            axes.axhline(row - 0.5, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(times)), [f"layer {layer}, head {head}" for layer, head in times], fontsize=8)
    axes.set_ylim(len(times) - 0.5, -0.5)


def _boundary_times(
    boundaries: Sequence[Tensor], tokens: Sequence[str], seconds_per_position: float, first_layer: int
) -> dict[Head, list[float]]:
    times = {}
    for index, stops in enumerate(boundaries):
        if stops.dim() != 2 or stops.shape[1] < len(tokens):
            raise ValueError(
                f"boundaries[{index}] has shape {tuple(stops.shape)}; (heads, tokens) of one utterance is needed, "
                f"with at least {len(tokens)} tokens."
            )
        for head, row in enumerate(stops[:, : len(tokens)].cpu()):
            times[first_layer + index, head] = position_seconds(row, seconds_per_position).tolist()
    return times


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


def _fonts() -> list[str]:
    """The usual font, and behind it the first installed one that has Chinese characters."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *[name for name in CHINESE_FONTS if name in installed][:1]]


def _chosen(chosen: Sequence[int] | None, count: int, what: str) -> list[int]:
    numbers = list(range(count)) if chosen is None else list(chosen)
    wrong = [number for number in numbers if not 0 <= number < count]
    if wrong or not numbers:
        raise ValueError(f"{what}s {wrong or numbers} cannot be drawn; choose from 0 to {count - 1}.")
    return numbers

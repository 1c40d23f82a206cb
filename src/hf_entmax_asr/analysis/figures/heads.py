"""Figures of the heads of a model, layer by layer: matrices of what was measured, and curves of diagonality.

Purple to orange stands around a neutral value, viridis for amounts. Scales are the same in every figure (α from 1 to 2,
shares from 0 to 100 %), so that small differences look small.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_entmax_asr.analysis.document import (
    AnalysisDocument,
    AttentionMeasures,
    EncoderMeasures,
    RoleRule,
    Vector,
    tensor_of,
)
from hf_entmax_asr.analysis.figures.style import BLUE, NOT_MEASURED, amount_text, layer_colour, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLE_COLOURS = {"linguistic": BLUE, "phonetic": "#E69F00", "neither": "0.85", None: "white"}

Scale = tuple[float, float]
Rows = Mapping[int, Vector]  # layer -> value of each head
WIDEST_GRID = 13.7  # inches; wider figures are shrunk on the page until their numbers cannot be read
HATCHED: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.7", "hatch": "////", "linewidth": 0}


@dataclass(frozen=True)
class Panel:
    """A layer × head matrix with its values written in.

    Attributes:
        form: of the values, for `str.format`.
        scale: lowest and highest colour; None: from 0 to the largest value.
        diverging: purple below the middle of the scale, orange above it.
    """

    title: str
    rows: Rows
    form: str
    scale: Scale | None = (0.0, 1.0)
    diverging: bool = False


def plot_encoder_heads(document: AnalysisDocument) -> "Figure":
    """Layer × head matrices of the encoder: role, CAD (as it is, and relative to uniform attention), verticality,
    entropy, zeros, α and same-phoneme lift."""
    modules = document.encoder
    uniform = modules[0].uniform
    cad = f"CAD\n(uniform {amount_text(uniform.cad, '.2f')}, diagonal 1)"
    relative = "relative CAD\n(0: as uniform attention, 1: diagonal)"
    verticality = f"verticality\n(uniform {amount_text(uniform.verticality, '.2f')}, all on one key 1)"
    entropy = f"entropy of a row (nats)\n(uniform {amount_text(uniform.entropy_nats, '.1f')})"
    panels = [
        Panel(cad, {m.layer: m.cad for m in modules}, "{:.2f}"),
        Panel(relative, {m.layer: m.relative_cad for m in modules}, "{:.2f}", (-1.0, 1.0), diverging=True),
        Panel(verticality, {m.layer: m.verticality for m in modules}, "{:.2f}"),
        Panel(entropy, {m.layer: m.entropy_nats for m in modules}, "{:.1f}", (0.0, uniform.entropy_nats or 1.0)),
        Panel("weights that are exactly 0 (%)", {m.layer: m.zero_share for m in modules}, "{:.0%}"),
    ]
    alphas = {m.layer: m.alpha for m in modules if m.alpha is not None}
    if len(alphas) == len(modules):
        panels.append(Panel("α\n(1: softmax, 2: sparsemax)", alphas, "{:.2f}", (1.0, 2.0)))
    lifts = {m.layer: m.same_phoneme_lift for m in modules if m.same_phoneme_lift is not None}
    if len(lifts) == len(modules):  # of the scale, 1 is the middle
        panels.append(Panel("same-phoneme lift\n(1: as by chance)", lifts, "{:.1f}", (-1.0, 3.0), diverging=True))
    figure, axes = _grid("Encoder self-attention, head by head", len(panels) + 1, modules)
    _draw_roles(axes[0], modules, document.role_rule)
    for axis, panel in zip(axes[1:], panels, strict=True):
        _draw_matrix(axis, panel)
    _explain_empty_cells(figure, axes, _unequal([module.role for module in modules]))
    return figure


def plot_decoder_heads(document: AnalysisDocument) -> "Figure":
    """Layer × head matrices of the decoder: self-attention, and what the heads of cross-attention do."""
    own, cross, monotonic = document.decoder, document.cross, document.monotonic
    zeros = "weights that are exactly 0 (%)"
    panels = [Panel(f"self-attention:\n{zeros}", {m.layer: m.zero_share for m in own}, "{:.0%}")]
    alphas = {m.layer: m.alpha for m in own if m.alpha is not None}
    if len(alphas) == len(own):
        panels.append(Panel("self-attention: α\n(1: softmax, 2: sparsemax)", alphas, "{:.2f}", (1.0, 2.0)))
    panels.append(_entropies("self-attention", own))
    if monotonic is None:
        panels.append(Panel(f"cross-attention:\n{zeros}", {m.layer: m.zero_share for m in cross}, "{:.0%}"))
        panels.append(_entropies("cross-attention", cross))
    else:
        lag, last = _by_layer(monotonic.heads, monotonic.lag_seconds), _by_layer(monotonic.heads, monotonic.last_share)
        coverage = _by_layer(monotonic.heads, monotonic.coverage)
        at_end = _by_layer(monotonic.heads, monotonic.at_end_share)
        panels += [
            Panel("monotonic heads:\nlag behind the first head (s)", lag, "{:.2f}", None),
            Panel("monotonic heads:\nlast to stop (% of tokens)", last, "{:.0%}"),
            Panel("monotonic heads:\naudio passed at the end (%)", coverage, "{:.0%}"),
            Panel("monotonic heads:\nwaited to the end (% of tokens)", at_end, "{:.0%}"),
        ]
    gates = {m.layer: m.gate for m in cross if m.gate is not None}
    if gates:
        panels.append(Panel("monotonic heads: gate\n(0: the head is gone)", gates, "{:.2f}", None))
    figure, axes = _grid("Decoder, head by head", len(panels), [*own, *cross])
    for axis, panel in zip(axes, panels, strict=True):
        _draw_matrix(axis, panel)
    _explain_empty_cells(figure, axes, any(_unequal(panel.rows.values()) for panel in panels))
    return figure


def plot_diagonality_curves(document: AnalysisDocument) -> "Figure":
    """D(r) of every encoder head, coloured by layer, with uniform attention beside them."""
    modules = document.encoder
    figure = new_figure("How near encoder heads look", 8.6, 4.8)
    axes = figure.subplots()
    for module in modules:
        colour = layer_colour(module.layer, len(modules) - 1)
        curves = tensor_of(module.curve)
        axes.plot(document.curve_r, curves.T.numpy(), color=colour, linewidth=0.7, alpha=0.55)
        label = f"layer {module.layer}: CAD {amount_text(_mean(module.cad), '.3f')}"
        axes.plot(document.curve_r, curves.nanmean(0).numpy(), color=colour, linewidth=2.2, label=label)
    uniform = modules[0].uniform
    axes.plot(
        document.curve_r,
        tensor_of(uniform.curve).numpy(),
        color="black",
        linestyle=(0, (4, 3)),
        linewidth=1.4,
        label=f"uniform: CAD {amount_text(uniform.cad, '.3f')}",
    )
    axes.set_xlabel("r: distance looked at, as a share of the utterance")
    axes.set_ylabel("D(r): share of the attention inside")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    title = "thick: mean of the layer\nthin: its heads"
    figure.legend(loc="outside right upper", title=title, frameon=False, fontsize=9, title_fontsize=9)
    return figure


def _mean(values: Vector) -> float:
    return tensor_of(values).nanmean().item()


def _entropies(what: str, modules: Sequence[AttentionMeasures]) -> Panel:
    nats = modules[0].uniform.entropy_nats
    title = f"{what}: entropy (nats)\n(uniform {amount_text(nats, '.1f')})"
    return Panel(title, {m.layer: m.entropy_nats for m in modules}, "{:.1f}", (0.0, nats or 1.0))


def _unequal(rows: Iterable[Sequence[Any]]) -> bool:
    return len(set(map(len, rows))) > 1


def _by_layer(heads: Sequence[tuple[int, int]], values: Vector) -> Rows:
    rows: dict[int, list[float | None]] = {}
    for (layer, _), value in zip(heads, values, strict=True):
        rows.setdefault(layer, []).append(value)
    return rows


def _grid(title: str, panels: int, modules: Sequence[AttentionMeasures]) -> tuple["Figure", list[Any]]:
    """So many panels in at most four columns, fewer where many heads make them wide."""
    heads = max(module.heads for module in modules)
    layers = len({module.layer for module in modules})
    width, height = max(3.0, 0.45 * heads + 1.3), max(2.3, 0.34 * layers + 1.2)
    columns = max(1, min(4, panels, int(WIDEST_GRID / width)))
    rows = math.ceil(panels / columns)
    figure = new_figure(title, columns * width + 0.4, rows * height + 0.9)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]


def _draw_matrix(axis: Any, panel: Panel) -> None:
    """What was not measured is hatched, heads that do not exist are blank."""
    from matplotlib.patches import Rectangle

    rows = list(panel.rows.values())
    width = max(map(len, rows))
    values = tensor_of([[*row, *[None] * (width - len(row))] for row in rows])
    low, high = panel.scale or (0.0, max(1e-9, float(values.nan_to_num(0).max())))
    colours = "PuOr_r" if panel.diverging else "viridis"
    axis.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    for number, row in enumerate(rows):
        for column, value in enumerate(row):
            if value is None:
                axis.add_patch(Rectangle((column - 0.5, number - 0.5), 1, 1, label=NOT_MEASURED, **HATCHED))
                continue
            share = (value - low) / (high - low)
            dark = abs(share - 0.5) > 0.33 if panel.diverging else share < 0.55
            text = panel.form.format(value).rstrip("%")
            text = text.lstrip("-") if float(text) == 0 else text
            style = {"ha": "center", "va": "center", "fontsize": 7.5, "color": "white" if dark else "black"}
            axis.text(column, number, text, **style)
    axis.set_title(panel.title, fontsize=9)
    _name_cells(axis, list(panel.rows), width)


def _name_cells(axis: Any, layers: Sequence[int], heads: int) -> None:
    axis.set_xticks(range(heads))
    axis.set_yticks(range(len(layers)), layers)
    axis.set_xlabel("head", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    axis.tick_params(labelsize=8)


def _explain_empty_cells(figure: "Figure", axes: Sequence[Any], pruned: bool) -> None:
    """A legend for hatched cells and for the places of heads that are gone, where there are any."""
    from matplotlib.patches import Patch

    handles = []
    if any(patch.get_label() == NOT_MEASURED for axis in axes for patch in axis.patches):
        handles.append(Patch(label=NOT_MEASURED, **HATCHED))
    if pruned:
        handles.append(Patch(label="blank: the layer has no such head", facecolor="white", edgecolor="0.7"))
    if handles:
        figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=9, frameon=False)


def _draw_roles(axis: Any, modules: Sequence[EncoderMeasures], rule: RoleRule) -> None:
    from matplotlib.patches import Patch, Rectangle

    present = {role for module in modules for role in module.role}
    for row, module in enumerate(modules):
        for column, role in enumerate(module.role):
            box = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ROLE_COLOURS[role], edgecolor="white")
            axis.add_patch(box)
            letter = {"linguistic": "L", "phonetic": "P", "neither": "–", None: "?"}[role]
            colour = "white" if role == "linguistic" else "black"
            axis.text(column, row, letter, ha="center", va="center", fontsize=9, color=colour)
    axis.set_xlim(-0.5, max(len(module.role) for module in modules) - 0.5)
    axis.set_ylim(len(modules) - 0.5, -0.5)
    _name_cells(axis, [module.layer for module in modules], max(len(module.role) for module in modules))
    texts = {
        "linguistic": f"L linguistic: relative CAD ≥ {rule.diagonal_from:g}",
        "phonetic": f"P phonetic: same-phoneme lift ≥ {rule.phonetic_from:g}",
        "neither": "– neither",
        None: "? not known (no labels, or not measured)",
    }
    below = -0.45 / max(1.3, 0.34 * len(modules) + 0.2)  # half an inch below the axes, which are so many inches high
    handles = [
        Patch(facecolor=ROLE_COLOURS[role], edgecolor="0.6", label=text)
        for role, text in texts.items()
        if role in present
    ]
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, below), fontsize=7, frameon=False)
    axis.set_title("role", fontsize=9)

"""Pictures of an analysis (the document of `hf_entmax_asr.recognition.inspection`), as matplotlib Figures.

Each function takes the document and needs nothing else, so pictures can be drawn anew without the model. Colours can be
told apart by colour-blind readers: viridis for amounts, purple to orange around a neutral value. Scales are the same in
every picture (α from 1 to 2, shares from 0 to 100 %), so that small differences look small. Needs the extra `plots`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_entmax_asr.analysis.drawing import BLUE, GREY, new_figure
from hf_entmax_asr.analysis.plots import plot_alphas, plot_scores
from hf_entmax_asr.analysis.sparsity import ScoreHistogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Document = Mapping[str, Any]
ROLE_COLOURS = {"linguistic": BLUE, "phonetic": "#E69F00", "neither": "0.85", None: "white"}

Scale = tuple[float, float]
Rows = Mapping[int, Sequence[float | None]]  # layer -> value of each head, None where it was not measured
WIDEST_GRID = 13.7  # inches; wider pictures are shrunk on the page until their numbers cannot be read
NOT_MEASURED = "not measured"
HATCHED: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.7", "hatch": "////", "linewidth": 0}


def plot_encoder_heads(document: Document) -> "Figure":
    """Layer × head matrices of the encoder: role, CAD (as it is, and relative to uniform attention), verticality,
    entropy, zeros, α and same-phoneme lift."""
    modules = modules_of(document, "encoder")
    uniform = modules[0]["uniform"]
    panels: list[tuple[str, str, str, Scale]] = [
        (f"CAD\n(uniform {_said(uniform['cad'], '.2f')}, diagonal 1)", "cad", "{:.2f}", (0.0, 1.0)),
        ("relative CAD\n(0: as uniform attention, 1: diagonal)", "relative_cad", "{:.2f}", (-1.0, 1.0)),
        (
            f"verticality\n(uniform {_said(uniform['verticality'], '.2f')}, all on one key 1)",
            "verticality",
            "{:.2f}",
            (0.0, 1.0),
        ),
        (
            f"entropy of a row (nats)\n(uniform {_said(uniform['entropy_nats'], '.1f')})",
            "entropy_nats",
            "{:.1f}",
            (0.0, uniform["entropy_nats"] or 1.0),
        ),
        ("weights that are exactly 0 (%)", "zero_share", "{:.0%}", (0.0, 1.0)),
        ("α\n(1: softmax, 2: sparsemax)", "alpha", "{:.2f}", (1.0, 2.0)),
        ("same-phoneme lift\n(1: as by chance)", "same_phoneme_lift", "{:.1f}", (-1.0, 3.0)),  # 1 in the middle
    ]
    panels = [panel for panel in panels if all(panel[1] in module for module in modules)]
    figure, axes = _grid("Encoder self-attention, head by head", len(panels) + 1, modules)
    _draw_roles(axes[0], modules, document["role_rule"])
    for axis, (title, key, form, scale) in zip(axes[1:], panels, strict=True):
        diverging = key in ("relative_cad", "same_phoneme_lift")
        _draw_matrix(axis, _rows(modules, key), title, form, scale, diverging)
    _explain_empty_cells(figure, axes, _unequal([module["role"] for module in modules]))
    return figure


def plot_decoder_heads(document: Document) -> "Figure":
    """Layer × head matrices of the decoder: self-attention, and what the heads of cross-attention do."""
    own, cross = modules_of(document, "decoder"), modules_of(document, "cross") + modules_of(document, "monotonic")
    cross.sort(key=lambda module: module["layer"])
    share: Scale = (0.0, 1.0)
    panels: list[tuple[str, Rows, str, Scale | None]] = [
        ("self-attention:\nweights that are exactly 0 (%)", _rows(own, "zero_share"), "{:.0%}", share)
    ]
    if all("alpha" in module for module in own):
        title = "self-attention: α\n(1: softmax, 2: sparsemax)"
        panels.append((title, _rows(own, "alpha"), "{:.2f}", (1.0, 2.0)))
    panels.append(_entropies("self-attention", own))
    monotonic = document["monotonic"]
    if monotonic is None:
        title = "cross-attention:\nweights that are exactly 0 (%)"
        panels += [(title, _rows(cross, "zero_share"), "{:.0%}", share), _entropies("cross-attention", cross)]
    else:
        named = (
            ("lag behind the first head (s)", "lag_seconds", "{:.2f}", None),
            ("last to stop (% of tokens)", "last_share", "{:.0%}", share),
            ("audio passed at the end (%)", "coverage", "{:.0%}", share),
            ("waited to the end (% of tokens)", "at_end_share", "{:.0%}", share),
        )
        for title, key, form, scale in named:
            rows = _by_layer(monotonic["heads"], monotonic[key])
            panels.append((f"monotonic heads:\n{title}", rows, form, scale))
    gated = [module for module in cross if "gate" in module]
    if gated:
        panels.append(("monotonic heads: gate\n(0: the head is gone)", _rows(gated, "gate"), "{:.2f}", None))
    figure, axes = _grid("Decoder, head by head", len(panels), own + cross)
    for axis, (title, rows, form, scale) in zip(axes, panels, strict=True):
        _draw_matrix(axis, rows, title, form, scale)
    _explain_empty_cells(figure, axes, any(_unequal(rows.values()) for _, rows, _, _ in panels))
    return figure


def plot_diagonality_curves(document: Document) -> "Figure":
    """D(r) of every encoder head, coloured by layer, with uniform attention beside them."""
    from matplotlib import colormaps

    modules = modules_of(document, "encoder")
    figure = new_figure("How near encoder heads look", 8.6, 4.8)
    axes = figure.subplots()
    deepest = max(1, len(modules) - 1)
    for module in modules:
        colour = colormaps["viridis"](0.87 * module["layer"] / deepest)
        curves = tensor_of(module["curve"])
        axes.plot(document["curve_r"], curves.T.numpy(), color=colour, linewidth=0.7, alpha=0.55)
        label = f"layer {module['layer']}: CAD {_said(_mean(module['cad']), '.3f')}"
        axes.plot(document["curve_r"], curves.nanmean(0).numpy(), color=colour, linewidth=2.2, label=label)
    uniform = modules[0]["uniform"]
    axes.plot(
        document["curve_r"],
        tensor_of(uniform["curve"]).numpy(),
        color="black",
        linestyle=(0, (4, 3)),
        linewidth=1.4,
        label=f"uniform: CAD {_said(uniform['cad'], '.3f')}",
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


def plot_probe(document: Document) -> "Figure":
    """Accuracy of the phoneme probe by layer, with the rate of always answering the most frequent phoneme.

    Raises:
        ValueError: the document has no probe.
    """
    probe = document["probe"]
    if probe is None or "error" in probe:
        raise ValueError(f"the analysis has no probe: {'no labels' if probe is None else probe['error']}.")
    accuracy = [100 * value if value is not None else math.nan for value in probe["accuracy"]]
    figure = new_figure("Phonemes told apart by a linear classifier", 7.0, 4.2)
    axes = figure.subplots()
    axes.plot(range(len(accuracy)), accuracy, color=BLUE, marker="o", linewidth=1.8)
    for index, value in enumerate(accuracy):
        text, height = ("not\nmeasured", 50) if math.isnan(value) else (f"{value:.0f}", value)
        axes.annotate(text, (index, height), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    majority = 100 * (probe["majority_rate"] or 0)
    axes.axhline(majority, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
    text = f"always the most frequent phoneme: {majority:.0f} %"
    axes.text(len(accuracy) - 1, majority + 1.5, text, ha="right", va="bottom", fontsize=9, color=GREY)
    axes.set_xticks(range(len(accuracy)), ["input", *map(str, range(len(accuracy) - 1))])
    axes.set_xlabel("hidden states after encoder layer")
    axes.set_ylabel(f"frames recognised (%), of other {probe['disjoint_by']}s")
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.4, len(accuracy) - 0.6)
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_waiting(document: Document) -> "Figure":
    """Which monotonic head waits for which, and how often each is the last.

    Raises:
        ValueError: the document has no monotonic heads.
    """
    monotonic = document["monotonic"]
    if monotonic is None:
        raise ValueError("the model has no monotonic heads, so nobody waits.")
    names = [f"L{layer} H{head}" for layer, head in monotonic["heads"]]
    cell, font = (0.36, 8) if len(names) <= 24 else (0.15, 6)  # inches, points
    figure = new_figure("Who waits for whom", 1.2 * cell * len(names) + 6.0, cell * len(names) + 2.4)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1], sharey=True)
    waiting = tensor_of(monotonic["waiting_seconds"])
    image = left.imshow(waiting.numpy(), cmap="viridis_r", vmin=0, interpolation="nearest", aspect="auto")
    left.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    left.set_yticks(range(len(names)), names, fontsize=font)
    left.set_xlabel("… for this head (L layer, H head)")
    left.set_ylabel("this head waits …")
    bar = figure.colorbar(image, ax=left, fraction=0.05, pad=0.02)
    bar.set_label("waiting (s), mean over tokens")
    last = [100 * (share or 0) for share in monotonic["last_share"]]
    right.barh(range(len(names)), last, color=BLUE)
    for row, share in enumerate(last):
        right.text(share, row, f" {share:.0f}", va="center", fontsize=font)
    right.tick_params(axis="y", length=0)
    right.set_xlim(0, max(1.0, *last) * 1.18)
    right.set_xlabel("last to stop (% of tokens)")
    right.spines[["top", "right"]].set_visible(False)
    return figure


def plot_score_histograms(document: Document) -> "Figure":
    """`plot_scores` of the encoder's and the decoder's self-attention."""
    histograms = {}
    for kind, stored in document["histogram"].items():
        histogram = ScoreHistogram()
        histogram.edges, histogram.counts = tensor_of(stored["edges"]), torch.tensor(stored["counts"])
        histogram.zeros, histogram.below, histogram.total = stored["zeros"], stored["below"], stored["total"]
        histograms[f"{kind}, {document['model'][f'{kind}_transform']}"] = histogram
    return plot_scores(histograms, title="Self-attention weights: how many are exactly zero")


def plot_gates(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """The gate of each monotonic head over the optimiser steps; one at 0 has left the model.

    Args:
        history: rows of a run's history.jsonl; see `plot_alphas`.
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


def modules_of(document: Document, kind: str) -> list[dict[str, Any]]:
    found = [module for module in document["modules"].values() if module["kind"] == kind]
    return sorted(found, key=lambda module: module["layer"])


def tensor_of(values: Any) -> Tensor:
    """Nested lists with None for NaN -> float64."""

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(item) for item in value]
        return math.nan if value is None else value

    return torch.tensor(filled(values), dtype=torch.float64)


def _mean(values: Sequence[float | None]) -> float:
    return tensor_of(list(values)).nanmean().item()


def _said(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None or math.isnan(value) else format(value, form)


def _rows(modules: Sequence[Mapping[str, Any]], key: str) -> Rows:
    return {module["layer"]: module[key] for module in modules}


def _entropies(what: str, modules: Sequence[Mapping[str, Any]]) -> tuple[str, Rows, str, Scale | None]:
    nats = modules[0]["uniform"]["entropy_nats"]
    title = f"{what}: entropy (nats)\n(uniform {_said(nats, '.1f')})"
    return title, _rows(modules, "entropy_nats"), "{:.1f}", (0.0, nats or 1.0)


def _unequal(rows: Iterable[Sequence[Any]]) -> bool:
    return len(set(map(len, rows))) > 1


def _by_layer(heads: Sequence[Sequence[int]], values: Sequence[float | None]) -> Rows:
    rows: dict[int, list[float | None]] = {}
    for (layer, _), value in zip(heads, values, strict=True):
        rows.setdefault(layer, []).append(value)
    return rows


def _grid(title: str, panels: int, modules: Sequence[Mapping[str, Any]]) -> tuple["Figure", list[Any]]:
    """So many panels in at most four columns, fewer where many heads make them wide."""
    heads = max(module["heads"] for module in modules)
    layers = len({module["layer"] for module in modules})
    width, height = max(3.0, 0.45 * heads + 1.3), max(2.3, 0.34 * layers + 1.2)
    columns = max(1, min(4, panels, int(WIDEST_GRID / width)))
    rows = math.ceil(panels / columns)
    figure = new_figure(title, columns * width + 0.4, rows * height + 0.9)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]


def _draw_matrix(axis: Any, rows: Rows, title: str, form: str, scale: Scale | None, diverging: bool = False) -> None:
    """One layer × head matrix with its values written in. `scale` None: from 0 to the largest. Diverging: purple below
    the middle of the scale, orange above. What was not measured is hatched, heads that do not exist are blank."""
    from matplotlib.patches import Rectangle

    width = max(map(len, rows.values()))
    values = tensor_of([[*row, *[None] * (width - len(row))] for row in rows.values()])
    low, high = scale or (0.0, max(1e-9, float(values.nan_to_num(0).max())))
    colours = "PuOr_r" if diverging else "viridis"
    axis.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    for number, row in enumerate(rows.values()):
        for column, value in enumerate(row):
            if value is None:
                axis.add_patch(Rectangle((column - 0.5, number - 0.5), 1, 1, label=NOT_MEASURED, **HATCHED))
                continue
            share = (value - low) / (high - low)
            dark = abs(share - 0.5) > 0.33 if diverging else share < 0.55
            text = form.format(value).rstrip("%")
            text = text.lstrip("-") if float(text) == 0 else text
            style = {"ha": "center", "va": "center", "fontsize": 7.5, "color": "white" if dark else "black"}
            axis.text(column, number, text, **style)
    axis.set_title(title, fontsize=9)
    _name_cells(axis, list(rows), width)


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


def _draw_roles(axis: Any, modules: Sequence[Mapping[str, Any]], rule: Mapping[str, float]) -> None:
    from matplotlib.patches import Patch, Rectangle

    present = {role for module in modules for role in module["role"]}
    for row, module in enumerate(modules):
        for column, role in enumerate(module["role"]):
            box = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ROLE_COLOURS[role], edgecolor="white")
            axis.add_patch(box)
            letter = {"linguistic": "L", "phonetic": "P", "neither": "–", None: "?"}[role]
            colour = "white" if role == "linguistic" else "black"
            axis.text(column, row, letter, ha="center", va="center", fontsize=9, color=colour)
    axis.set_xlim(-0.5, max(len(module["role"]) for module in modules) - 0.5)
    axis.set_ylim(len(modules) - 0.5, -0.5)
    _name_cells(axis, [module["layer"] for module in modules], max(len(module["role"]) for module in modules))
    texts = {
        "linguistic": f"L linguistic: relative CAD ≥ {rule['diagonal_from']:g}",
        "phonetic": f"P phonetic: same-phoneme lift ≥ {rule['phonetic_from']:g}",
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

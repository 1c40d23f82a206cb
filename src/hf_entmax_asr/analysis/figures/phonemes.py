"""Figures of phonemes: which attend to which (PAR), and how well a probe tells them apart in each layer.

In matrices rows attend, columns are attended to; classes are ordered by articulation, with a frame around each place
with itself.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hf_entmax_asr.analysis.document import (
    AnalysisDocument,
    EncoderMeasures,
    PhonemeMeasures,
    ProbeFailure,
    Vector,
    tensor_of,
)
from hf_entmax_asr.analysis.figures.style import BLUE, GREY, NOT_MEASURED, new_figure
from hf_entmax_asr.evenly_spaced import evenly_spaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 4  # large matrices in one picture
FEWEST_PAIRS = 30  # of frames; what fewer show is chance, and is left white


def plot_phoneme_attention(document: AnalysisDocument, heads: Sequence[tuple[int, int]] | None = None) -> "Figure":
    """PAR, as lift over uniform attention, of chosen heads; by default the most phonetic head of up to four layers.

    Args:
        heads: (layer, head) of each.

    Raises:
        ValueError: the document has no phonemes, or a head does not exist.
    """
    phonemes, modules = _phonemes_of(document), document.encoder
    heads = _most_phonetic(modules) if heads is None else list(heads)
    for layer, head in heads:
        if not (0 <= layer < len(modules) and 0 <= head < modules[layer].heads):
            raise ValueError(f"(layer, head) = {(layer, head)} does not exist.")
    present = _present_classes(phonemes)
    classes, places = ([names[k] for k in present] for names in (phonemes.classes, phonemes.places))
    columns = min(2, len(heads))
    rows = math.ceil(len(heads) / columns)
    figure = new_figure("Which phonemes attend to which", 6.2 * columns + 1.2, 6.1 * rows + 0.9)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axis in panels.flat[len(heads) :]:
        axis.set_visible(False)
    for axis, (layer, head) in zip(panels.flat, heads, strict=False):
        image = _draw_lift(axis, _lift_matrix(phonemes, layer, head))
        _name_classes(axis, classes, places)
        same = _lift_text(_lift_of(modules[layer].same_phoneme_lift, head), "same phoneme")
        place = _lift_text(_lift_of(modules[layer].same_place_lift, head), "same place")
        axis.set_title(f"layer {layer}, head {head}\n{same}, {place}")
    figure.supxlabel("attended to (frames outside the own run)")
    figure.supylabel("attending")
    _lift_bar(figure, image, panels)
    return figure


def plot_phoneme_overview(document: AnalysisDocument) -> "Figure":
    """PAR of every encoder head as a thumbnail; the classes are in the order of `plot_phoneme_attention`.

    Raises:
        ValueError: the document has no phonemes.
    """
    phonemes, modules = _phonemes_of(document), document.encoder
    groups = _groups([phonemes.places[k] for k in _present_classes(phonemes)])
    most = max(module.heads for module in modules)
    size = 1.75 if most <= 4 else 1.35  # inches of a thumbnail
    figure = new_figure("Phoneme attention of every head", size * most + 2.0, (size + 0.15) * len(modules) + 1.0)
    panels = figure.subplots(len(modules), most, squeeze=False)
    for row, module in zip(panels, modules, strict=True):
        for head, axis in enumerate(row):
            if head >= module.heads:
                axis.set_visible(False)
                continue
            image = _draw_lift(axis, _lift_matrix(phonemes, module.layer, head))
            _separate(axis, groups, 0.3)
            axis.set_xticks([])
            axis.set_yticks([])
            same = _lift_text(_lift_of(module.same_phoneme_lift, head), "").strip()
            axis.set_title(f"L{module.layer} H{head}: {same}", fontsize=8)
    _lift_bar(figure, image, panels)
    explanation = (
        "rows attend, columns are attended to; classes from labial to silence, framed by place of articulation\n"
        "above each: layer, head, and lift of equal phonemes, silence left out"
    )
    figure.supxlabel(explanation, fontsize=9)
    return figure


def plot_probe(document: AnalysisDocument) -> "Figure":
    """Accuracy of the phoneme probe by layer, with the rate of always answering the most frequent phoneme.

    Raises:
        ValueError: the document has no probe.
    """
    probe = document.probe
    if probe is None or isinstance(probe, ProbeFailure):
        raise ValueError(f"the analysis has no probe: {'no labels' if probe is None else probe.error}.")
    accuracy = [100 * value if value is not None else math.nan for value in probe.accuracy]
    figure = new_figure("Phonemes told apart by a linear classifier", 7.0, 4.2)
    axes = figure.subplots()
    axes.plot(range(len(accuracy)), accuracy, color=BLUE, marker="o", linewidth=1.8)
    for index, value in enumerate(accuracy):
        text, height = ("not\nmeasured", 50) if math.isnan(value) else (f"{value:.0f}", value)
        axes.annotate(text, (index, height), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    majority = 100 * (probe.majority_rate or 0)
    axes.axhline(majority, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
    text = f"always the most frequent phoneme: {majority:.0f} %"
    axes.text(len(accuracy) - 1, majority + 1.5, text, ha="right", va="bottom", fontsize=9, color=GREY)
    axes.set_xticks(range(len(accuracy)), ["input", *map(str, range(len(accuracy) - 1))])
    axes.set_xlabel("hidden states after encoder layer")
    axes.set_ylabel(f"frames recognised (%), of other {probe.disjoint_by}s")
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.4, len(accuracy) - 0.6)
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _phonemes_of(document: AnalysisDocument) -> PhonemeMeasures:
    if document.phonemes is None:
        raise ValueError("the analysis was made without phoneme labels, so it has no phoneme attention.")
    return document.phonemes


def _most_phonetic(modules: Sequence[EncoderMeasures]) -> list[tuple[int, int]]:
    """The head with the highest lift in each of up to four layers, the first and the last among them."""
    layers = evenly_spaced(len(modules), MOST_PANELS)
    lifts = [modules[layer].same_phoneme_lift or [None] * modules[layer].heads for layer in layers]
    return [(layer, int(tensor_of(of).nan_to_num(-1).argmax())) for layer, of in zip(layers, lifts, strict=True)]


def _present_classes(phonemes: PhonemeMeasures) -> list[int]:
    """Numbers of the classes that any frame has."""
    return [number for number, frames in enumerate(phonemes.frames) if frames]


def _lift_matrix(phonemes: PhonemeMeasures, layer: int, head: int) -> Tensor:
    """(K, K) lift of an encoder head between the K classes that are present; NaN where there were too few pairs."""
    present = _present_classes(phonemes)
    lift = tensor_of(phonemes.attention[f"encoder.layers.{layer}.self_attn"].lift[head])[present][:, present]
    return lift.masked_fill(tensor_of(phonemes.pairs)[present][:, present] < FEWEST_PAIRS, math.nan)


def _draw_lift(axis: Any, lift: Tensor) -> Any:
    """Lift on a logarithmic scale from 1/8 to 8; NaN is white and hatched, no attention the darkest purple."""
    axis.set_facecolor("white")
    axis.patch.set(hatch="////", edgecolor="0.88")
    values = lift.clamp(1 / 8, 8).log2().numpy()
    return axis.imshow(values, cmap="PuOr_r", vmin=-3, vmax=3, interpolation="nearest")


def _lift_bar(figure: "Figure", image: Any, panels: Any) -> None:
    bar = figure.colorbar(image, ax=panels, fraction=0.03, pad=0.02, aspect=35, extend="both")
    exponents = range(-3, 4)
    bar.set_ticks(list(exponents), labels=[f"{2**e:g}×" if e >= 0 else f"1/{2**-e}×" for e in exponents])
    bar.set_label(
        f"attention over what uniform attention would put there\n(hatched: fewer than {FEWEST_PAIRS} pairs of frames)"
    )


def _name_classes(axis: Any, names: Sequence[str], places: Sequence[str]) -> None:
    size = 7 if len(names) <= 45 else 4
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    groups = _groups(places)
    _separate(axis, groups, 1.2)
    start = -0.5
    for place, count in groups:
        axis.text(len(names) - 0.2, start + count / 2, place, fontsize=6.5, va="center", color=GREY)
        start += count


def _groups(places: Sequence[str]) -> list[tuple[str, int]]:
    """Each place of articulation and how many classes in a row are of it."""
    return [(place, len(list(members))) for place, members in groupby(places)]


def _separate(axis: Any, groups: Sequence[tuple[str, int]], width: float) -> None:
    """Lines between the places of articulation, and frames around each place with itself."""
    from matplotlib.patches import Rectangle

    start = -0.5
    for _, count in groups:
        axis.axhline(start, color="0.75", linewidth=width / 2)
        axis.axvline(start, color="0.75", linewidth=width / 2)
        frame = Rectangle((start, start), count, count, fill=False, edgecolor="black", linewidth=width, zorder=3)
        axis.add_patch(frame)
        start += count


def _lift_of(lifts: Vector | None, head: int) -> float | None:
    return None if lifts is None else lifts[head]


def _lift_text(lift: float | None, what: str) -> str:
    return f"{what} {NOT_MEASURED}" if lift is None else f"{lift:.2f}× {what}"

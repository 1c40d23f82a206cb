"""Pictures of phoneme attention (PAR), from the document of `hf_entmax_asr.recognition.inspection`, and nothing else.

Rows attend, columns are attended to; classes are ordered by articulation, with a frame around each place with itself.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hf_entmax_asr.analysis.drawing import GREY, new_figure
from hf_entmax_asr.analysis.pictures import Document, modules_of, tensor_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 4  # large matrices in one picture
FEWEST_PAIRS = 30  # of frames; what fewer show is chance, and is left white


def plot_phoneme_attention(document: Document, heads: Sequence[tuple[int, int]] | None = None) -> "Figure":
    """PAR, as lift over uniform attention, of chosen heads; by default the most phonetic head of up to four layers.

    Raises:
        ValueError: the document has no phonemes, or a head does not exist.
    """
    phonemes = document["phonemes"]
    if phonemes is None:
        raise ValueError("the analysis was made without phoneme labels, so it has no phoneme attention.")
    modules = modules_of(document, "encoder")
    heads = _most_phonetic(modules) if heads is None else list(heads)
    for layer, head in heads:
        if not (0 <= layer < len(modules) and 0 <= head < modules[layer]["heads"]):
            raise ValueError(f"(layer, head) = {(layer, head)} does not exist.")
    chosen = [k for k, frames in enumerate(phonemes["frames"]) if frames]
    few = tensor_of(phonemes["pairs"])[chosen][:, chosen] < FEWEST_PAIRS
    columns = min(2, len(heads))
    rows = math.ceil(len(heads) / columns)
    figure = new_figure("Which phonemes attend to which", 6.2 * columns + 1.2, 6.1 * rows + 0.9)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axis in panels.flat[len(heads) :]:
        axis.set_visible(False)
    for axis, (layer, head) in zip(panels.flat, heads, strict=False):
        name = f"encoder.layers.{layer}.self_attn"
        lift = tensor_of(phonemes["attention"][name]["lift"][head])[chosen][:, chosen]
        image = _draw_lift(axis, lift.masked_fill(few, math.nan))
        _name_classes(axis, [phonemes["classes"][k] for k in chosen], [phonemes["places"][k] for k in chosen])
        same = modules[layer]["same_phoneme_lift"][head]
        place = modules[layer]["same_place_lift"][head]
        axis.set_title(f"layer {layer}, head {head}\n{_times(same, 'same phoneme')}, {_times(place, 'same place')}")
    figure.supxlabel("attended to (frames outside the own run)")
    figure.supylabel("attending")
    _lift_bar(figure, image, panels)
    return figure


def plot_phoneme_overview(document: Document) -> "Figure":
    """PAR of every encoder head as a thumbnail; the classes are in the order of `plot_phoneme_attention`.

    Raises:
        ValueError: the document has no phonemes.
    """
    phonemes = document["phonemes"]
    if phonemes is None:
        raise ValueError("the analysis was made without phoneme labels, so it has no phoneme attention.")
    modules = modules_of(document, "encoder")
    chosen = [k for k, frames in enumerate(phonemes["frames"]) if frames]
    few = tensor_of(phonemes["pairs"])[chosen][:, chosen] < FEWEST_PAIRS
    groups = [(place, len(list(names))) for place, names in groupby(phonemes["places"][k] for k in chosen)]
    most = max(module["heads"] for module in modules)
    size = 1.75 if most <= 4 else 1.35  # inches of a thumbnail
    figure = new_figure("Phoneme attention of every head", size * most + 2.0, (size + 0.15) * len(modules) + 1.0)
    panels = figure.subplots(len(modules), most, squeeze=False)
    for row, module in zip(panels, modules, strict=True):
        for head, axis in enumerate(row):
            if head >= module["heads"]:
                axis.set_visible(False)
                continue
            name = f"encoder.layers.{module['layer']}.self_attn"
            lift = tensor_of(phonemes["attention"][name]["lift"][head])[chosen][:, chosen]
            image = _draw_lift(axis, lift.masked_fill(few, math.nan))
            _separate(axis, groups, 0.3)
            axis.set_xticks([])
            axis.set_yticks([])
            same = _times(module["same_phoneme_lift"][head], "").strip()
            axis.set_title(f"L{module['layer']} H{head}: {same}", fontsize=8)
    _lift_bar(figure, image, panels)
    explanation = (
        "rows attend, columns are attended to; classes from labial to silence, framed by place of articulation\n"
        "above each: layer, head, and lift of equal phonemes, silence left out"
    )
    figure.supxlabel(explanation, fontsize=9)
    return figure


def _most_phonetic(modules: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """The head with the highest lift in each of up to four layers, the first and the last among them."""
    count = min(MOST_PANELS, len(modules))
    layers = sorted({round(k * (len(modules) - 1) / max(1, count - 1)) for k in range(count)})
    return [(layer, int(tensor_of(modules[layer]["same_phoneme_lift"]).nan_to_num(-1).argmax())) for layer in layers]


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
    groups = [(place, len(list(members))) for place, members in groupby(places)]
    _separate(axis, groups, 1.2)
    start = -0.5
    for place, count in groups:
        axis.text(len(names) - 0.2, start + count / 2, place, fontsize=6.5, va="center", color=GREY)
        start += count


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


def _times(lift: float | None, what: str) -> str:
    return f"{what} not measured" if lift is None else f"{lift:.2f}× {what}"

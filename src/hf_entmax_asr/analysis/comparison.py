"""The same utterance and the same data under several checkpoints: maps side by side (paper, Figure 3), and a table.

Of each layer one head is drawn: the one in the middle of its layer by entropy, as measured over the data set. Entropy
orders the heads of every transform; shares of zeros would tie at 0 for softmax.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hf_entmax_asr.analysis.drawing import draw_map, finish_maps, new_figure, zeros_text
from hf_entmax_asr.analysis.pictures import Document, modules_of, tensor_of
from hf_entmax_asr.evenly_spaced import evenly_spaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLUMNS = 6  # layers drawn of each checkpoint
FIXED_ALPHA = {"softmax": 1.0, "entmax15": 1.5, "sparsemax": 2.0}  # entmax at this α is the transform
EVERY_RUN_HAS = re.compile(
    r"best|last|run|checkpoints?|(step|checkpoint)-\d+|\.{0,2}"
)  # folders that tell nothing apart


@dataclass(frozen=True)
class Compared:
    """One of several checkpoints.

    Attributes:
        name: short, and different from the others' (see `short_names`).
        document: its analysis, as `hf_entmax_asr.recognition.inspection.analyze` makes it.
        parameters: how many numbers the model has.
        maps: one (H, S, S) encoder map per layer, of the utterance that all share; empty without a picture.
        alphas: learned α of the encoder, one (H,) tensor per layer; None for the other transforms.
    """

    name: str
    document: Document
    parameters: int
    maps: Sequence[Tensor] = ()
    alphas: Sequence[Tensor] | None = None

    @property
    def transform(self) -> str:
        """Of the encoder's self-attention."""
        return str(self.document["model"]["encoder_transform"])


@dataclass(frozen=True)
class Comparison:
    """Several checkpoints on the same data.

    Attributes:
        compared: at least one checkpoint.
        utterance, seconds: name and length of the recording whose maps they hold.
    """

    compared: Sequence[Compared]
    utterance: str
    seconds: float


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """The last folder of each path that is not merely "best" or "step-00001000"; where two are equal, the ends of all.

    >>> short_names(["runs/softmax/best", "runs/entmax/checkpoints/step-00001475", "you/model"])
    ['softmax', 'entmax', 'model']
    >>> short_names(["a/run/best", "a/run/last", "b"])
    ['run/best', 'run/last', 'b']

    Raises:
        ValueError: the same checkpoint twice.
    """
    places = [os.path.realpath(name) if Path(name).exists() else str(Path(name)) for name in checkpoints]
    for number, place in enumerate(places):
        if place in places[:number]:
            first = checkpoints[places.index(place)]
            raise ValueError(f"{checkpoints[number]} is the same checkpoint as {first}; name each once.")
    parts = [Path(name).parts for name in checkpoints]
    telling = [[part for part in path if not EVERY_RUN_HAS.fullmatch(part)] for path in parts]
    names = [kept[-1] if kept else path[-1] for kept, path in zip(telling, parts, strict=True)]
    length = 1
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(path[-length:]) for path in parts]
    return names


def comparison_rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """One row of plain numbers per checkpoint: means over all heads of the encoder's self-attention.

    Keys: name, checkpoint, encoder_transform, alpha ([lowest, highest]; None for top-k), parameters, layers,
    seconds_per_position, zero_share, cad, uniform_cad, relative_cad, entropy_nats, uniform_entropy_nats. None is "not
    measured". Entropy and CAD depend on how many positions there are, hence the values of uniform attention.
    """
    rows = []
    for one in compared:
        modules = modules_of(one.document, "encoder")
        fixed = FIXED_ALPHA.get(one.transform)
        alphas = [value for module in modules for value in module.get("alpha", [fixed] * (fixed is not None))]
        row = {
            "name": one.name,
            "checkpoint": one.document["checkpoint"],
            "encoder_transform": one.transform,
            "alpha": [min(alphas), max(alphas)] if alphas else None,
            "parameters": one.parameters,
            "layers": len(modules),
            "seconds_per_position": one.document["seconds_per_position"],
        }
        for key in ("zero_share", "cad", "relative_cad", "entropy_nats"):
            row[key] = _mean([value for module in modules for value in module[key]])
        for key in ("cad", "entropy_nats"):
            row[f"uniform_{key}"] = modules[0]["uniform"][key]
        rows.append(row)
    return rows


def middle_head(module: Mapping[str, Any]) -> int:
    """The head in the middle of its layer by entropy, the lower one of two; heads not measured come last."""
    entropies = [math.inf if value is None else value for value in module["entropy_nats"]]
    return sorted(range(len(entropies)), key=entropies.__getitem__)[(len(entropies) - 1) // 2]


def plot_maps_by_checkpoint(comparison: Comparison) -> "Figure":
    """Encoder self-attention of one utterance, a row for each checkpoint and a column for each layer.

    Each panel is the layer's `middle_head`; of more than six layers, six evenly spaced ones are drawn. Exact zeros are
    white, and all panels share one logarithmic scale.

    Raises:
        ValueError: a checkpoint whose maps are not those that its analysis names.
    """
    compared = comparison.compared
    for one in compared:
        heads = [module["heads"] for module in modules_of(one.document, "encoder")]
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
    finish_maps(figure, panels, image)
    return figure


def _draw_row(panels: Sequence[Any], one: Compared) -> Any:
    layers = evenly_spaced(len(one.maps), MOST_COLUMNS)
    modules = modules_of(one.document, "encoder")
    fixed = FIXED_ALPHA.get(one.transform)
    for panel, layer in zip(panels, layers, strict=False):
        head = middle_head(modules[layer])
        weights = one.maps[layer][head]
        image = draw_map(panel, weights, one.document["seconds_per_position"])
        alpha = fixed if one.alphas is None else float(one.alphas[layer][head])
        written = "" if alpha is None else f"α {alpha:.2f}, "
        zeros = zeros_text(float(weights.eq(0).double().mean()))
        panel.set_title(f"layer {layer}, head {head}\n{written}{zeros}", fontsize=8)
    for panel in panels[len(layers) :]:
        panel.set_axis_off()
    panels[0].set_ylabel(f"{one.transform}\n{_wrapped(one.name)}", fontsize=9.5, fontweight="bold")
    return image


def _wrapped(name: str, width: int = 22) -> str:
    return "\n".join(name[start : start + width] for start in range(0, len(name), width))


def _mean(values: Sequence[float | None]) -> float | None:
    mean = tensor_of(list(values)).nanmean().item()
    return mean if math.isfinite(mean) else None

"""The same utterance and the same data under several checkpoints: short names, a table, and which heads to show.

Of each layer one head is shown: the one in the middle of its layer by entropy, as measured over the data set. Entropy
orders the heads of every transform; shares of zeros would tie at 0 for softmax.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hf_entmax_asr.analysis.document import AnalysisDocument, AttentionMeasures, tensor_of
from hf_entmax_asr.analysis.typed_json import to_json
from hf_entmax_asr.atomic_files import write_text_atomically

FIXED_ALPHA = {"softmax": 1.0, "entmax15": 1.5, "sparsemax": 2.0}  # entmax at this α is the transform
EVERY_RUN_HAS = re.compile(
    r"best|last|run|checkpoints?|(step|checkpoint)-\d+|\.{0,2}"
)  # folders that tell nothing apart


@dataclass(frozen=True)
class Compared:
    """One of several checkpoints.

    Attributes:
        name: short, and different from the others' (see `short_names`).
        document: its analysis, as `hf_entmax_asr.recognition.analyze` makes it.
        parameters: how many numbers the model has.
        maps: one (H, S, S) encoder map per layer, of the utterance that all share; empty without a picture.
        alphas: learned α of the encoder, one (H,) tensor per layer; None for the other transforms.
    """

    name: str
    document: AnalysisDocument
    parameters: int
    maps: Sequence[Tensor] = ()
    alphas: Sequence[Tensor] | None = None

    @property
    def transform(self) -> str:
        """Of the encoder's self-attention."""
        return self.document.model.encoder_transform

    @property
    def fixed_alpha(self) -> float | None:
        """The α at which entmax is this transform; None where it has none."""
        return FIXED_ALPHA.get(self.transform)


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


@dataclass(frozen=True)
class ComparisonRow:
    """Plain numbers of one checkpoint: means over all heads of the encoder's self-attention. None is "not measured".

    Attributes:
        alpha: lowest and highest; None for top-k.
        uniform_cad, uniform_entropy_nats: of uniform attention. CAD and entropy depend on how many positions there are.
    """

    name: str
    checkpoint: str | None
    encoder_transform: str
    alpha: tuple[float, float] | None
    parameters: int
    layers: int
    seconds_per_position: float
    zero_share: float | None
    cad: float | None
    relative_cad: float | None
    entropy_nats: float | None
    uniform_cad: float | None
    uniform_entropy_nats: float | None


def comparison_rows(compared: Iterable[Compared]) -> list[ComparisonRow]:
    """One row for each checkpoint."""
    rows = []
    for one in compared:
        modules, uniform = one.document.encoder, one.document.encoder[0].uniform
        alphas = [value for module in modules for value in module.alpha or [one.fixed_alpha] if value is not None]
        row = ComparisonRow(
            name=one.name,
            checkpoint=one.document.checkpoint,
            encoder_transform=one.transform,
            alpha=(min(alphas), max(alphas)) if alphas else None,
            parameters=one.parameters,
            layers=len(modules),
            seconds_per_position=one.document.seconds_per_position,
            zero_share=_mean([value for module in modules for value in module.zero_share]),
            cad=_mean([value for module in modules for value in module.cad]),
            relative_cad=_mean([value for module in modules for value in module.relative_cad]),
            entropy_nats=_mean([value for module in modules for value in module.entropy_nats]),
            uniform_cad=uniform.cad,
            uniform_entropy_nats=uniform.entropy_nats,
        )
        rows.append(row)
    return rows


def save_comparison(rows: Sequence[ComparisonRow], path: Path) -> Path:
    """Write the rows as JSON, {"checkpoints": [row, …]} with the names of the fields; returns `path`."""
    text = json.dumps({"checkpoints": to_json(rows)}, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")
    return path


def middle_head(module: AttentionMeasures) -> int:
    """The head in the middle of its layer by entropy, the lower one of two; heads not measured come last."""
    entropies = [math.inf if value is None else value for value in module.entropy_nats]
    return sorted(range(len(entropies)), key=entropies.__getitem__)[(len(entropies) - 1) // 2]


def _mean(values: Sequence[float | None]) -> float | None:
    mean = tensor_of(values).nanmean().item()
    return mean if math.isfinite(mean) else None

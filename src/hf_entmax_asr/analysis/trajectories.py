"""How the encoder's attention changed over training, from the analyses that a run wrote at several steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_entmax_asr.analysis.document import AnalysisDocument, Vector, tensor_of


@dataclass(frozen=True)
class TrajectoryPoint:
    """Encoder self-attention after `step` steps; NaN where nothing was measured.

    Attributes:
        cad, zero_share, entropy_nats: of each layer, mean over its heads.
        uniform_cad, uniform_entropy_nats: of uniform attention under the same masks.
    """

    step: int
    cad: Sequence[float]
    zero_share: Sequence[float]
    entropy_nats: Sequence[float]
    uniform_cad: float
    uniform_entropy_nats: float


def trajectory(documents: Iterable[AnalysisDocument]) -> list[TrajectoryPoint]:
    """One point for each analysis that says after which `step` it was made, in the order of the steps.

    The documents are read one at a time and not kept.
    """
    points = []
    for document in documents:
        if document.step is not None:
            modules = document.encoder
            uniform = modules[0].uniform
            point = TrajectoryPoint(
                step=document.step,
                cad=[_mean(module.cad) for module in modules],
                zero_share=[_mean(module.zero_share) for module in modules],
                entropy_nats=[_mean(module.entropy_nats) for module in modules],
                uniform_cad=_mean([uniform.cad]),
                uniform_entropy_nats=_mean([uniform.entropy_nats]),
            )
            points.append(point)
    return sorted(points, key=lambda point: point.step)


def _mean(values: Vector) -> float:
    return tensor_of(values).nanmean().item()

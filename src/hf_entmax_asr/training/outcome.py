"""How a run ends."""

from dataclasses import dataclass
from pathlib import Path

from hf_entmax_asr.metrics import Scores


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is not finite any more."""


@dataclass(frozen=True)
class TrainingResult:
    """Where a run ended.

    Attributes:
        step: finished optimizer steps.
        finished: whether the budget is used up (else the run was stopped and can be resumed).
        last: newest checkpoint.
        best: the latest within one standard error of the lowest validation score (an average counts as the latest), or
            `last` without validation.
        scores: of the last checkpoint, by decoding: "hard" and "soft", or "full" for full cross-attention.
    """

    step: int
    finished: bool
    last: Path
    best: Path
    scores: dict[str, Scores]

"""Word and character errors of a set of utterances, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_entmax_asr.metrics.errors import ErrorCounts, align, count_edits, deletion_collapse, error_counts
from hf_entmax_asr.metrics.significance import rate_standard_error


@dataclass(frozen=True)
class Scores:
    """Word and character errors of a set of utterances, the texts compared as they are.

    Attributes:
        wer_error, cer_error: standard errors of the two rates over the utterances, in percent.
    """

    words: ErrorCounts
    characters: ErrorCounts
    wer_error: float = 0.0
    cer_error: float = 0.0

    @classmethod
    def of(cls, references: Sequence[str], hypotheses: Sequence[str]) -> "Scores":
        """Count the errors of hypotheses against references."""
        words, wer_error = _counted(references, hypotheses, "word")
        characters, cer_error = _counted(references, hypotheses, "character")
        return cls(words, characters, wer_error, cer_error)

    def tolerance(self, metric: Literal["wer", "cer"]) -> float:
        """How much another model's rate may differ, in percent, before it says more than which utterances were drawn.

        One standard error, and at least one word (or character): where all utterances are right, or there is one alone,
        they show no spread.
        """
        counts, error = (self.words, self.wer_error) if metric == "wer" else (self.characters, self.cer_error)
        return max(error, 100 / max(1, counts.reference_length))

    def as_dict(self) -> dict[str, float]:
        """WER and CER in percent, and the counts of word errors."""
        return {
            "wer": round(100 * self.words.rate, 4),
            "cer": round(100 * self.characters.rate, 4),
            "insertions": self.words.insertions,
            "deletions": self.words.deletions,
            "substitutions": self.words.substitutions,
            "reference_words": self.words.reference_length,
        }

    def __str__(self) -> str:
        return f"{self.words}, {self.characters}"

    @property
    def warning(self) -> str | None:
        """One sentence where deletions have taken over, the usual failure of monotonic attention."""
        return deletion_collapse(self.characters)


def _counted(references: Sequence[str], hypotheses: Sequence[str], unit: str) -> tuple[ErrorCounts, float]:
    """Error counts, and the standard error of their rate in percent."""
    utterances = [count_edits(edits, unit) for edits in align(references, hypotheses, unit)]
    counts = sum(utterances, start=error_counts([], [], unit))
    if counts.reference_length == 0:
        return counts, 0.0
    error = rate_standard_error([u.errors for u in utterances], [u.reference_length for u in utterances])
    return counts, 100 * error

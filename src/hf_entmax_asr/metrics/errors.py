"""Word and character error rates, split into insertions, deletions and substitutions, and the alignments behind them.

Nothing is normalised here (case, punctuation, number words): the texts are compared as they are given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import jiwer

COLLAPSE_DELETION_RATE = 0.15  # of the reference; a healthy system deletes 1 to 5 %
COLLAPSE_DELETION_SHARE = 0.6  # of all errors; usually 10 to 30 %


@dataclass(frozen=True)
class ErrorCounts:
    """Edits that turn references into hypotheses, summed over utterances. Counts of the same unit can be added."""

    substitutions: int
    insertions: int
    deletions: int
    hits: int
    reference_length: int
    unit: str = "word"

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Errors over reference length (0.123 is 12.3 %); above 1 is possible. With empty references alone it is 0.0
        if nothing was inserted and infinity otherwise."""
        if self.reference_length == 0:
            return float("inf") if self.errors else 0.0
        return self.errors / self.reference_length

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        if self.unit != other.unit:
            raise ValueError(f"{self.unit} errors and {other.unit} errors cannot be added.")
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.hits + other.hits,
            self.reference_length + other.reference_length,
            self.unit,
        )

    def __str__(self) -> str:
        """For example "WER 12.3 % (ins 1.0, del 5.2, sub 6.1; 1,234 words)", all in percent of the reference."""
        name = "WER" if self.unit == "word" else "CER"
        plural = "" if self.reference_length == 1 else "s"
        length = f"{self.reference_length:,} {self.unit}{plural}"
        if self.reference_length == 0:
            return f"{name} undefined ({self.insertions:,} insertions; {length})"
        ins, dels, subs = (
            f"{100 * n / self.reference_length:.1f}" for n in (self.insertions, self.deletions, self.substitutions)
        )
        return f"{name} {100 * self.rate:.1f} % (ins {ins}, del {dels}, sub {subs}; {length})"


def error_counts(references: Sequence[str], hypotheses: Sequence[str], unit: str = "word") -> ErrorCounts:
    """Count the edits of the best alignment of each hypothesis with its reference (jiwer).

    Args:
        references, hypotheses: transcripts, in the same order.
        unit: "word" (split at white space) or "character" (white space at the ends is dropped; spaces inside count).

    An empty hypothesis is one deletion for each unit of its reference; against an empty reference each unit of the
    hypothesis is an insertion; two empty texts agree.

    Raises:
        TypeError: one of the two is a string instead of a list.
        ValueError: an unknown unit, or a different number of references and hypotheses.
    """
    counted = _aligned(references, hypotheses, unit)
    if counted is None:
        return ErrorCounts(0, 0, 0, 0, 0, unit)
    reference_length = counted.hits + counted.substitutions + counted.deletions
    return ErrorCounts(
        counted.substitutions, counted.insertions, counted.deletions, counted.hits, reference_length, unit
    )


@dataclass(frozen=True)
class Edit:
    """One column of an alignment: a unit of the reference, of the hypothesis, or of both."""

    kind: Literal["hit", "substitution", "deletion", "insertion"]
    reference: str | None
    hypothesis: str | None


def align(references: Sequence[str], hypotheses: Sequence[str], unit: str = "word") -> list[list[Edit]]:
    """A best alignment of each hypothesis with its reference, one list of edits per utterance (jiwer).

    The edits are those that `error_counts` counts. Where several alignments are equally good, jiwer chooses. Arguments
    and errors are those of `error_counts`.
    """
    processed = _aligned(references, hypotheses, unit)
    if processed is None:
        return []
    utterances = zip(processed.alignments, processed.references, processed.hypotheses, strict=True)
    return [
        [edit for chunk in chunks for edit in _edits(chunk, reference, hypothesis)]
        for chunks, reference, hypothesis in utterances
    ]


def count_edits(edits: Sequence[Edit], unit: str = "word") -> ErrorCounts:
    """The counts of an alignment."""
    kinds: list[str] = [edit.kind for edit in edits]
    substitutions, insertions, deletions, hits = map(kinds.count, ("substitution", "insertion", "deletion", "hit"))
    return ErrorCounts(substitutions, insertions, deletions, hits, hits + substitutions + deletions, unit)


def _aligned(
    references: Sequence[str], hypotheses: Sequence[str], unit: str
) -> "jiwer.WordOutput | jiwer.CharacterOutput | None":
    if unit not in ("word", "character"):
        raise ValueError(f"unit is {unit!r}; use 'word' or 'character'.")
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TypeError("references and hypotheses must be lists of texts, not one text.")
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses: give one for each.")
    if not references:
        return None
    import jiwer  # only here: who transcribes without scoring need not have it

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    # jiwer splits words at the space alone, so a tab or a line break is made one.
    split = [" ".join(text.split()) if unit == "word" else text for text in (*references, *hypotheses)]
    return process(split[: len(references)], split[len(references) :])


def _edits(chunk: "jiwer.AlignmentChunk", reference: Sequence[str], hypothesis: Sequence[str]) -> list[Edit]:
    given = reference[chunk.ref_start_idx : chunk.ref_end_idx]
    heard = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
    if chunk.type == "delete":
        return [Edit("deletion", unit, None) for unit in given]
    if chunk.type == "insert":
        return [Edit("insertion", None, unit) for unit in heard]
    pairs = zip(given, heard, strict=True)
    return [Edit("hit" if chunk.type == "equal" else "substitution", *pair) for pair in pairs]


def deletion_collapse(counts: ErrorCounts) -> str | None:
    """Whether deletions have taken over, the usual failure of monotonic attention, and what to do about it.

    The rule: at least 15 % of the reference is deleted, and at least 60 % of all errors are deletions. A model that has
    hardly been trained meets it too.

    Returns:
        A line for the log, or None.
    """
    deleted = counts.deletions / max(1, counts.reference_length)
    share = counts.deletions / max(1, counts.errors)
    if deleted < COLLAPSE_DELETION_RATE or share < COLLAPSE_DELETION_SHARE:
        return None
    return (
        f"Deletion collapse: {100 * deleted:.1f} % of the {counts.unit}s are deleted, {100 * share:.0f} % of all "
        "errors. Likely cause: monotonic heads that fire late or never. If monotonic_decoding='soft' scores much "
        "better, decode with firing_rule='cumulative' or end the training with monotonic_straight_through=True; if it "
        "does not, train longer, raise ctc_loss_weight, or set energy_bias_init to -log(positions per token)."
    )

"""How sure a score is, and whether two systems differ: bootstrap over utterances, and the matched-pair segment test.

All of it takes the utterances as independent. Where a few speakers say many utterances each, they are not quite, and
the intervals are somewhat too narrow.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_entmax_asr.metrics.errors import Edit

REPLICATES = 10_000
DRAWS_AT_ONCE = 4_000_000  # 32 MB of indices
BUFFER = 2  # correct words of both systems that separate two segments; NIST's sclite takes as many
FEW_SEGMENTS = 50  # below which the normal approximation is poor (Gillick & Cox 1989, section 4)


@dataclass(frozen=True)
class Interval:
    """An error rate (0.123 is 12.3 %) and the interval that holds the true one with probability `level`."""

    rate: float
    low: float
    high: float
    level: float

    def __str__(self) -> str:
        return f"[{100 * self.low:.1f}, {100 * self.high:.1f}] % ({100 * self.level:g} % confidence)"


@dataclass(frozen=True)
class BootstrapDifference:
    """Rate of system A minus rate of system B, its interval, and the share of samples in which A has fewer errors."""

    difference: float
    low: float
    high: float
    level: float
    probability_of_improvement: float


def rate_standard_error(errors: ArrayLike, lengths: ArrayLike) -> float:
    """Standard error of an error rate over utterances (0.012 is 1.2 points), as of a ratio of two means.

    √(N/(N−1) · Σ(eᵢ − r·nᵢ)²) / Σnᵢ with r = Σeᵢ/Σnᵢ (Cochran 1977, section 2.11): what the bootstrap gives, in closed
    form. Of a single utterance there is no spread: 0.

    Args:
        errors, lengths: (N,) errors and reference lengths of the utterances.

    Raises:
        ValueError: as `bootstrap_interval`.
    """
    counts, reference = _checked(0.95, 1, lengths, errors)
    if len(counts) < 2:
        return 0.0
    residuals = counts - reference * (counts.sum() / reference.sum())
    return math.sqrt(float((residuals**2).sum()) * len(counts) / (len(counts) - 1)) / float(reference.sum())


def bootstrap_interval(
    errors: ArrayLike, lengths: ArrayLike, *, level: float = 0.95, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """Percentile interval of an error rate under resampling of the utterances (Bisani & Ney 2004, equations 2 to 5).

    Args:
        errors, lengths: (N,) errors and reference lengths of the utterances.
        level: probability that the interval is to hold.

    Raises:
        ValueError: arrays of different or zero length, negative numbers, no reference at all, a level outside (0, 1).
    """
    counts, reference = _checked(level, replicates, lengths, errors)
    rates = np.concatenate([e / n for e, n in _resampled(reference, counts, replicates, seed)])
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(counts.sum() / reference.sum()), float(low), float(high), level)


def bootstrap_difference(
    errors_a: ArrayLike,
    errors_b: ArrayLike,
    lengths: ArrayLike,
    *,
    level: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> BootstrapDifference:
    """The difference of two systems on the same utterances, resampled together (Bisani & Ney 2004, section 3).

    Args and errors as for `bootstrap_interval`. A sample in which both have as many errors counts half for each.
    """
    a, b, reference = _checked(level, replicates, lengths, errors_a, errors_b)
    differences = np.concatenate([e / n for e, n in _resampled(reference, a - b, replicates, seed)])
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    better = float(np.mean(differences < 0) + np.mean(differences == 0) / 2)
    return BootstrapDifference(float((a - b).sum() / reference.sum()), float(low), float(high), level, better)


def _checked(level: float, replicates: int, lengths: ArrayLike, *errors: ArrayLike) -> list[NDArray[np.int64]]:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it is a probability between 0 and 1, for example 0.95")
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}; it must be at least 1")
    arrays = [np.asarray(values, dtype=np.int64) for values in (*errors, lengths)]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1 or arrays[0].ndim != 1:
        raise ValueError(f"errors and lengths must be vectors of one length, they have shapes {shapes}")
    if any((array < 0).any() for array in arrays):
        raise ValueError("errors and lengths must not be negative")
    if arrays[-1].sum() == 0:
        raise ValueError("the references are empty: there is no error rate")
    return arrays


def _resampled(
    lengths: NDArray[np.int64], errors: NDArray[np.int64], replicates: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(errors, reference length) sums of samples of N utterances with replacement, in portions."""
    random = np.random.default_rng(seed)
    portion = max(1, DRAWS_AT_ONCE // len(lengths))
    for start in range(0, replicates, portion):
        drawn = random.integers(len(lengths), size=(min(portion, replicates - start), len(lengths)))
        # A sample of empty references alone has no rate; a length of one stands for it.
        yield errors[drawn].sum(1), np.maximum(1, lengths[drawn].sum(1))


@dataclass(frozen=True)
class MatchedPairs:
    """Result of the matched-pair test of system A against system B.

    Attributes:
        segments: how many segments hold an error of A or B.
        mean: errors of A minus errors of B in a segment, on average.
        statistic: W, standard normal if the systems are equally good; negative where A is better; infinite where all
            segments differ alike.
        p_value: probability of a W at least as far from 0 if they are equally good (two-sided); 1 below two segments.
    """

    segments: int
    mean: float
    statistic: float
    p_value: float

    @property
    def caution(self) -> str | None:
        if self.segments >= FEW_SEGMENTS:
            return None
        return f"only {self.segments} segments with errors: the test needs about {FEW_SEGMENTS} to be trusted"


def error_segments(first: Sequence[Edit], second: Sequence[Edit], buffer: int = BUFFER) -> list[tuple[int, int]]:
    """Errors of two systems in the segments of one utterance (Gillick & Cox 1989, section 4).

    A segment ends where `buffer` words of the reference in a row are right in both systems, with nothing inserted
    between them, or where the utterance ends: errors on its two sides can then be taken as independent.

    Args:
        first, second: alignments of the two hypotheses with the same reference, as `align` gives them.

    Returns:
        (errors of the first, errors of the second) of each segment in which there is one.

    Raises:
        ValueError: the references differ, or buffer is below 1.
    """
    if buffer < 1:
        raise ValueError(f"buffer is {buffer}; segments are separated by at least 1 correct word")
    references = [[edit.reference for edit in edits if edit.reference is not None] for edits in (first, second)]
    if references[0] != references[1]:
        texts = [" ".join(words) for words in references]
        raise ValueError(f"the two alignments have different references: {texts[0]!r} and {texts[1]!r}")
    columns = [_errors_by_position(edits) for edits in (first, second)]
    segments: list[tuple[int, int]] = []
    a = b = correct = 0
    for position, (error_a, error_b) in enumerate(zip(*columns, strict=True)):
        if error_a or error_b:
            if correct >= buffer and (a or b):
                segments.append((a, b))
                a = b = 0
            a, b, correct = a + error_a, b + error_b, 0
        elif position % 2:  # a word; a gap without insertions neither adds to the run nor breaks it
            correct += 1
    return [*segments, (a, b)] if a or b else segments


def _errors_by_position(edits: Sequence[Edit]) -> list[int]:
    """Errors in gap 0, word 0, gap 1, word 1, ..., last gap: insertions in the gaps, the rest at the words."""
    errors = [0]
    for edit in edits:
        if edit.kind == "insertion":
            errors[-1] += 1
        else:
            errors += [int(edit.kind != "hit"), 0]
    return errors


def matched_pairs(segments: Sequence[tuple[int, int]]) -> MatchedPairs:
    """Matched-pair sentence-segment word error test, MAPSSWE (Gillick & Cox 1989, "Some statistical issues in the
    comparison of speech recognition algorithms", section 4).

    With Z the difference of errors in a segment, W = mean(Z) / sqrt(variance(Z) / segments).

    Args:
        segments: (errors of A, errors of B) of each segment of all utterances, from `error_segments`.
    """
    differences = np.array([a - b for a, b in segments], dtype=np.float64)
    if len(differences) < 2:
        return MatchedPairs(len(differences), float(differences.sum()), 0.0, 1.0)
    mean = float(differences.mean())
    error = math.sqrt(float(differences.var(ddof=1)) / len(differences))
    if mean == 0:
        statistic = 0.0
    else:
        statistic = mean / error if error > 0 else math.copysign(math.inf, mean)
    return MatchedPairs(len(differences), mean, statistic, math.erfc(abs(statistic) / math.sqrt(2)))

"""Bootstrap against closed forms, a naive twin and simulated data; the matched-pair test against worked examples."""

import math
from random import Random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.metrics import (
    Interval,
    align,
    bootstrap_difference,
    bootstrap_interval,
    count_edits,
    error_segments,
    matched_pairs,
    rate_standard_error,
)

words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12).map(" ".join)


# bootstrap


def test_the_interval_of_two_utterances_in_closed_form():
    """Of two utterances with rates 0 and 1 a sample has rate 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    interval = bootstrap_interval([0, 4], [4, 4], level=0.4, replicates=20_000)
    assert (interval.rate, interval.low, interval.high) == (0.5, 0.5, 0.5)
    interval = bootstrap_interval([0, 4], [4, 4], level=0.6, replicates=20_000)
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_the_interval_of_many_utterances_is_the_normal_one():
    """Utterances of one word, wrong with probability p: the rate is a binomial share."""
    errors = np.repeat([0, 1], [700, 300])
    interval = bootstrap_interval(errors, np.ones(1000, dtype=int), replicates=20_000)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert interval.low == pytest.approx(0.3 - half, abs=0.002)
    assert interval.high == pytest.approx(0.3 + half, abs=0.002)
    assert str(Interval(0.3, 0.2716, 0.328, 0.95)) == "[27.2, 32.8] % (95 % confidence)"


def test_the_standard_error_of_a_rate():
    errors = np.repeat([0, 1], [700, 300])  # utterances of one word: the rate is a binomial share
    assert rate_standard_error(errors, np.ones(1000, dtype=int)) == pytest.approx(math.sqrt(0.3 * 0.7 / 999))
    assert rate_standard_error([2] * 30, [8] * 30) == 0
    assert rate_standard_error([3], [8]) == 0
    with pytest.raises(ValueError, match="there is no error rate"):
        rate_standard_error([1, 0], [0, 0])
    # By hand: r = 6/12, residuals -1, -1, 2; sqrt(3/2 * 6) / 12.
    assert rate_standard_error([1, 1, 4], [4, 4, 4]) == pytest.approx(3 / 12)


def test_the_standard_error_is_the_spread_of_the_bootstrap():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 20, 400)
    errors = random.binomial(lengths, 0.2)
    interval = bootstrap_interval(errors, lengths, level=0.6827, replicates=20_000)  # one standard error either side
    assert (interval.high - interval.low) / 2 == pytest.approx(rate_standard_error(errors, lengths), rel=0.03)


def test_equal_utterances_leave_no_doubt():
    interval = bootstrap_interval([2] * 30, [8] * 30)
    assert (interval.rate, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_the_interval_against_one_sample_at_a_time(monkeypatch):
    errors, lengths = np.array([0, 3, 1, 7]), np.array([5, 0, 2, 9])
    monkeypatch.setattr("hf_entmax_asr.metrics.significance.DRAWS_AT_ONCE", 40)
    interval = bootstrap_interval(errors, lengths, level=0.9, replicates=500, seed=3)
    random, rates = np.random.default_rng(3), []
    for _ in range(500):
        drawn = [random.integers(4) for _ in range(4)]
        rates.append(sum(errors[i] for i in drawn) / max(1, sum(lengths[i] for i in drawn)))
    # One draw at a time takes the same numbers from the generator as many at once.
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(rates, [0.05, 0.95])))
    assert bootstrap_interval(errors, lengths, level=0.9, replicates=500, seed=3) == interval
    assert bootstrap_interval(errors, lengths, level=0.9, replicates=500, seed=4) != interval


def simulate(random: np.random.Generator, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Errors and lengths of 80 utterances whose difficulty varies: a rate of 0.1 · factor on average."""
    lengths = random.integers(3, 20, size=80)
    return random.binomial(lengths, factor * random.beta(1, 9, size=80)), lengths


def test_the_interval_covers_the_true_rate_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        interval = bootstrap_interval(*simulate(random), level=0.9, replicates=500)
        covered += interval.low <= 0.1 <= interval.high
    assert 0.84 <= covered / 300 <= 0.95  # the percentile interval is a little narrow for 80 utterances


def test_the_difference_is_paired():
    """Two systems that share their hard utterances: the paired interval is much narrower than either one's."""
    random = np.random.default_rng(1)
    errors, lengths = simulate(random)
    better = np.maximum(0, errors - random.binomial(1, 0.3, size=80))
    difference = bootstrap_difference(better, errors, lengths)
    own = bootstrap_interval(errors, lengths)
    assert difference.difference == pytest.approx((better.sum() - errors.sum()) / lengths.sum())
    assert difference.high < 0
    assert difference.high - difference.low < 0.5 * (own.high - own.low)
    assert difference.probability_of_improvement == 1.0
    other = bootstrap_difference(errors, better, lengths)
    assert (other.low, other.high) == pytest.approx((-difference.high, -difference.low))
    assert other.probability_of_improvement == 0.0
    same = bootstrap_difference(errors, errors, lengths)
    assert (same.difference, same.low, same.high, same.probability_of_improvement) == (0, 0, 0, 0.5)


@pytest.mark.parametrize(
    ("errors", "lengths", "options", "message"),
    [
        ([1], [1, 2], {}, r"shapes \[\(1,\), \(2,\)\]"),
        ([], [], {}, "references are empty"),
        ([1, 2], [0, 0], {}, "references are empty"),
        ([-1], [2], {}, "must not be negative"),
        ([1], [2], {"level": 95}, "level is 95"),
        ([1], [2], {"replicates": 0}, "replicates is 0"),
    ],
)
def test_bootstrap_refusals(errors, lengths, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(errors, lengths, **options)


# matched pairs


def segments_of(reference: str, first: str, second: str, **options) -> list[tuple[int, int]]:
    a, b = align([reference] * 2, [first, second])
    return error_segments(a, b, **options)


def test_segments_of_a_worked_example():
    #            I          |           II            |      III
    reference = "a b c d     e f g h i j               k l m n"
    first = "    a x c d     e f g y i z               k l m n o"  # b wrong; h and j wrong; o too much
    second = "   a b c d     e f h i j                 k l m n"  # g missing
    assert segments_of(reference, first, second) == [(1, 0), (2, 1), (1, 0)]
    # One correct word between the errors at g, h and at j does not separate them, and at least three would
    # separate nothing but the first segment.
    assert segments_of(reference, first, second, buffer=1) == [(1, 0), (1, 1), (1, 0), (1, 0)]
    assert segments_of(reference, first, second, buffer=4) == [(1, 0), (2, 1), (1, 0)]
    assert segments_of(reference, first, second, buffer=5) == [(4, 1)]


def test_an_insertion_between_correct_words_breaks_the_buffer():
    assert segments_of("a b c d", "x a b c y d z", "a b c d") == [(1, 0), (2, 0)]
    assert segments_of("a b c", "x a y b z c", "a b c") == [(3, 0)]
    assert segments_of("a b c d", "x a b c d", "a b c d z") == [(1, 0), (0, 1)]


def test_segments_without_errors_do_not_count():
    assert segments_of("a b c d", "a b c d", "a b c d") == []
    assert segments_of("", "", "a") == [(0, 1)]
    assert segments_of("", "", "") == []


@settings(max_examples=100, deadline=None)
@given(words, words, words, st.integers(1, 4))
def test_segments_hold_every_error_once_and_are_symmetric(reference, first, second, buffer):
    a, b = align([reference] * 2, [first, second])
    segments = error_segments(a, b, buffer)
    assert sum(x for x, _ in segments) == count_edits(a).errors
    assert sum(y for _, y in segments) == count_edits(b).errors
    assert all(x or y for x, y in segments)
    assert error_segments(b, a, buffer) == [(y, x) for x, y in segments]
    assert len(error_segments(a, b, buffer + 1)) <= len(segments)


def test_the_statistic_by_hand():
    """Z = 1, 2, 0, 1: mean 1, variance 2/3, W = 1 / sqrt(2/3 / 4) = sqrt(6)."""
    test = matched_pairs([(1, 0), (3, 1), (1, 1), (2, 1)])
    assert (test.segments, test.mean) == (4, 1.0)
    assert test.statistic == pytest.approx(math.sqrt(6))
    assert test.p_value == pytest.approx(0.0143059, abs=1e-6)  # 2 · (1 - Φ(2.44949))
    assert test.caution is not None
    assert "only 4 segments" in test.caution
    swapped = matched_pairs([(0, 1), (1, 3), (1, 1), (1, 2)])
    assert (swapped.statistic, swapped.p_value) == (-test.statistic, test.p_value)
    many = matched_pairs([(1, 0), (3, 1), (1, 1), (2, 1)] * 20)
    assert many.caution is None
    assert many.p_value < test.p_value


def damaged(words: list[str], rate: float, random: Random) -> str:
    """Deletions, substitutions and insertions, each as likely."""
    heard = []
    for word in words:
        kind = 3 * random.random() / rate
        if kind >= 1:
            heard.append(f"x{word}" if kind < 2 else word)
        if 2 <= kind < 3:
            heard.append("y")
    return " ".join(heard)


@pytest.mark.parametrize(
    ("seed", "segments", "totals", "mean", "statistic"),
    [(1, 90, (66, 90), -0.267, -1.978), (3, 114, (72, 125), -0.465, -4.552)],
)
def test_the_test_of_nist(seed, segments, totals, mean, statistic):
    """What sclite and sc_stats 2.4.10 (Debian's sctk) print for the same texts: `sc_stats -t mapsswe -v`."""
    random = Random(seed)
    references = [[f"w{random.randrange(30)}" for _ in range(random.randrange(3, 15))] for _ in range(60)]
    hypotheses = [[damaged(words, rate, random) for words in references] for rate in (0.15, 0.25)]
    a, b = (align([" ".join(words) for words in references], texts) for texts in hypotheses)
    found = [segment for edits in zip(a, b, strict=True) for segment in error_segments(*edits)]
    test = matched_pairs(found)
    assert test.segments == segments
    assert (sum(x for x, _ in found), sum(y for _, y in found)) == totals
    assert (round(test.mean, 3), round(test.statistic, 3)) == (mean, statistic)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=60))
def test_the_statistic_is_the_one_sample_t(segments):
    """W has the form of Student's t for the differences; only its distribution is taken as normal."""
    test = matched_pairs(segments)
    differences = [a - b for a, b in segments]
    if len(set(differences)) == 1:
        mean = differences[0]
        assert test.statistic == (math.copysign(math.inf, mean) if mean else 0)
        assert test.p_value == (0.0 if mean else 1.0)
    else:
        expected = scipy.stats.ttest_1samp(differences, 0).statistic
        assert test.statistic == pytest.approx(expected, abs=1e-9)
        assert test.p_value == pytest.approx(2 * scipy.stats.norm.sf(abs(expected)), abs=1e-9)


def test_too_few_segments_show_nothing():
    assert matched_pairs([]).p_value == 1
    assert matched_pairs([(5, 0)]).p_value == 1


def test_the_test_finds_a_difference_as_often_as_it_says():
    """Equal systems are called different in about 5 of 100 tests, clearly different ones nearly always."""
    random = np.random.default_rng(2)

    def tests(rate_a: float, rate_b: float) -> float:
        draws = (random.poisson((rate_a, rate_b), size=(150, 2)).tolist() for _ in range(400))
        return float(np.mean([matched_pairs(draw).p_value < 0.05 for draw in draws]))

    assert 0.02 <= tests(1.0, 1.0) <= 0.08
    assert tests(1.0, 1.5) > 0.95


def test_alignments_of_different_references_are_refused():
    a, b = align(["a b", "a c"], ["a", "a"])
    with pytest.raises(ValueError, match="different references: 'a b' and 'a c'"):
        error_segments(a, b)
    with pytest.raises(ValueError, match="buffer is 0"):
        error_segments(a, a, buffer=0)

"""Error counts against jiwer and against a plain edit distance; the log line; the deletion check."""

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.metrics import ErrorCounts, deletion_collapse, error_counts

texts = st.lists(st.sampled_from(["a", "b", "cc", "dd"]), max_size=7).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=5)


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, r in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, h in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (r != h))
    return row[-1]


@settings(max_examples=80, deadline=None)
@given(pairs, st.sampled_from(["word", "character"]))
def test_counts_are_a_best_alignment(pairs, unit):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    split = str.split if unit == "word" else list
    counts = error_counts(references, hypotheses, unit)
    assert counts.errors == sum(edit_distance(split(r), split(h)) for r, h in pairs)
    assert counts.reference_length == sum(len(split(r)) for r in references)
    assert counts.reference_length == counts.hits + counts.substitutions + counts.deletions
    assert sum(len(split(h)) for h in hypotheses) == counts.hits + counts.substitutions + counts.insertions
    if counts.reference_length:
        jiwers = jiwer.wer(references, hypotheses) if unit == "word" else jiwer.cer(references, hypotheses)
        assert counts.rate == pytest.approx(jiwers)
    summed = error_counts([], [], unit)
    for reference, hypothesis in pairs:
        summed += error_counts([reference], [hypothesis], unit)
    assert summed == counts


def test_a_worked_example():
    counts = error_counts(["the cat sat on the mat", "hello"], ["the bat sat the mat today", "hello"])
    assert counts == ErrorCounts(substitutions=1, insertions=1, deletions=1, hits=5, reference_length=7)
    assert counts.rate == pytest.approx(3 / 7)
    counts = error_counts(["而对楼市"], ["而楼时啊"], unit="character")
    assert counts.errors == 3
    assert counts.reference_length == 4


def test_empty_texts():
    assert error_counts([""], [""]) == ErrorCounts(0, 0, 0, 0, 0)
    assert error_counts(["a b"], [""]) == ErrorCounts(0, 0, 2, 0, 2)
    assert error_counts(["", "c"], ["a b", "c"]) == ErrorCounts(0, 2, 0, 1, 1)
    assert error_counts([], []).rate == 0
    assert error_counts([""], [" \n"]).rate == 0
    assert error_counts([""], ["a"]).rate == float("inf")
    assert error_counts(["", "ab"], ["x", ""], "character") == ErrorCounts(0, 1, 2, 0, 2, "character")


def test_nothing_but_white_space_is_normalised():
    assert error_counts(["a  b\tc\n"], [" a b c"]).errors == 0
    assert error_counts(["A b."], ["a b"]).substitutions == 2
    assert error_counts(["a b"], ["ab"], "character").deletions == 1


def test_refusals():
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        error_counts(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="unit is 'token'"):
        error_counts(["a"], ["a"], "token")
    with pytest.raises(TypeError, match="lists of texts"):
        error_counts("abc", ["abc"])
    with pytest.raises(ValueError, match="word errors and character errors"):
        error_counts(["a"], ["a"]) + error_counts(["a"], ["a"], "character")


def test_the_log_line():
    counts = ErrorCounts(substitutions=75, insertions=12, deletions=64, hits=1095, reference_length=1234)
    assert str(counts) == "WER 12.2 % (ins 1.0, del 5.2, sub 6.1; 1,234 words)"
    assert str(ErrorCounts(1, 0, 0, 0, 1, "character")) == "CER 100.0 % (ins 0.0, del 0.0, sub 100.0; 1 character)"
    assert str(error_counts([""], ["a b"])) == "WER undefined (2 insertions; 0 words)"


def test_deletion_collapse():
    collapsed = ErrorCounts(substitutions=80, insertions=11, deletions=229, hits=691, reference_length=1000)
    message = deletion_collapse(collapsed)  # the ratios of neural_sp issue 101: CER 32, deletions 22.9
    assert message is not None
    assert "22.9 % of the words are deleted, 72 % of all errors" in message
    assert "firing_rule='cumulative'" in message
    healthy = [
        ErrorCounts(0, 0, 0, 0, 0),
        ErrorCounts(0, 5, 0, 0, 0),
        ErrorCounts(substitutions=60, insertions=10, deletions=20, hits=920, reference_length=1000),
        ErrorCounts(substitutions=0, insertions=0, deletions=100, hits=900, reference_length=1000),  # few errors
        ErrorCounts(
            substitutions=400, insertions=20, deletions=300, hits=300, reference_length=1000
        ),  # wrong throughout
    ]
    assert [deletion_collapse(counts) for counts in healthy] == [None] * len(healthy)

"""Scores of a set of utterances: the counts of all together, how far chance carries them, and texts without words."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.metrics import Scores, error_counts

texts = st.lists(st.sampled_from(["a", "b", "cc"]), max_size=5).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_scores_are_the_counts_of_all_texts_together(pairs):
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    scores = Scores.of(references, hypotheses)
    assert scores.words == error_counts(references, hypotheses)
    assert scores.characters == error_counts(references, hypotheses, "character")


def test_the_tolerance_is_one_standard_error():
    scores = Scores.of(["ab"] * 10, ["bb"] * 2 + ["ab"] * 8)  # 2 of 10 words and 2 of 20 characters
    assert scores.tolerance("wer") == scores.wer_error == pytest.approx(100 * math.sqrt(0.2 * 0.8 / 9))
    assert scores.tolerance("cer") == scores.cer_error == pytest.approx(100 * math.sqrt(0.2 * 0.8 / 9) / 2)


def test_the_tolerance_is_at_least_one_word_or_character():
    for references, hypotheses in ((["a b", "c d"], ["a b", "c d"]), (["a b c d"], ["x y c d"])):
        scores = Scores.of(references, hypotheses)  # no spread: no error at all, or a single utterance
        assert scores.wer_error == 0
        assert scores.tolerance("wer") == pytest.approx(100 / 4)


def test_texts_without_words_have_a_tolerance_too():
    assert Scores.of([], []).tolerance("wer") == 100
    scores = Scores.of(["", ""], ["a", ""])
    assert scores.words.rate == math.inf
    assert scores.tolerance("wer") == 100

"""Times of words from those of tokens, and back."""

import math

import pytest

from hf_entmax_asr.analysis.phonemes import Interval
from hf_entmax_asr.analysis.word_alignment import label_ends, word_intervals

TEXT = "go on, then"
OFFSETS = [(0, 1), (1, 2), (2, 3), (3, 6), (6, 11), (11, 11)]  # g o _ on, _then </s>


def test_words_take_the_times_of_their_tokens():
    words = word_intervals(TEXT, OFFSETS, [0.1, 0.3, 0.4, 0.9, 1.5, 2.0])
    assert words == [Interval(0.0, 0.3, "go"), Interval(0.4, 0.9, "on,"), Interval(0.9, 1.5, "then")]


def test_tokens_share_the_time_of_their_word():
    words = [Interval(0.2, 0.6, "GO"), Interval(0.7, 1.0, "On,"), Interval(1.0, 1.4, "then")]
    ends = label_ends(TEXT, OFFSETS, words)
    assert ends[:5] == pytest.approx([0.4, 0.6, 0.6, 1.0, 1.4])
    assert math.isnan(ends[5])
    assert label_ends(TEXT, OFFSETS, words[:2]) is None
    assert label_ends("  go", [(0, 2), (2, 4)], words[:1]) == pytest.approx([0.2, 0.6])

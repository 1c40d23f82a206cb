"""Dividing the audio among tokens, and times of tokens from those of words and back."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.analysis.phonemes import Interval
from hf_entmax_asr.analysis.word_alignment import label_ends, monotonic_path, token_ends, word_intervals


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 10_000))
def test_the_path_is_the_best_of_all_divisions(tokens, more, seed):
    positions = tokens + more
    scores = torch.randn(tokens, positions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def total(ends: tuple[int, ...]) -> float:
        return sum(float(scores[u, a:b].sum()) for u, (a, b) in enumerate(itertools.pairwise((0, *ends))))

    divisions = [(*cuts, positions) for cuts in itertools.combinations(range(1, positions), tokens - 1)]
    found = tuple(monotonic_path(scores).tolist())
    assert found in divisions
    assert total(found) == pytest.approx(max(map(total, divisions)))


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="3 tokens cannot share 2 positions"):
        monotonic_path(torch.zeros(3, 2))


def test_ends_follow_the_heads_that_walk_among_noise():
    generator = torch.Generator().manual_seed(0)
    ends = [10, 24, 40, 60]
    weights = torch.rand(3, 4, 60, generator=generator) * 0.4
    for token, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        weights[:, token, begin:end] += 1
    found = token_ends(weights / weights.sum(-1, keepdim=True))
    assert (found - torch.tensor(ends)).abs().max() <= 1


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

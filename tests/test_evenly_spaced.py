"""A few of many, evenly spaced."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_entmax_asr.evenly_spaced import evenly_spaced


@pytest.mark.parametrize(
    ("total", "most", "chosen"),
    [(1, 6, [0]), (6, 6, [0, 1, 2, 3, 4, 5]), (7, 3, [0, 3, 6]), (12, 6, [0, 2, 4, 7, 9, 11]), (9, 1, [0])],
)
def test_worked_examples(total, most, chosen):
    assert evenly_spaced(total, most) == chosen


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_gaps_differ_by_one_at_most(total, most):
    chosen = evenly_spaced(total, most)
    assert len(chosen) == min(total, most)
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (0, total - 1)
        gaps = {after - before for before, after in itertools.pairwise(chosen)}
        assert min(gaps) >= 1
        assert max(gaps) - min(gaps) <= 1

"""A few numbers out of many."""

import numpy as np
import pytest

from hf_entmax_asr.evenly_spaced import evenly_spaced


@pytest.mark.parametrize(
    ("count", "most", "numbers"),
    [(1, 6, [0]), (6, 6, list(range(6))), (7, 3, [0, 3, 6]), (7, 1, [0]), (0, 3, []), (3, 0, [])],
)
def test_the_first_and_the_last_are_among_them(count, most, numbers):
    assert evenly_spaced(count, most) == numbers


@pytest.mark.parametrize("count", [2, 17, 100, 2703])
@pytest.mark.parametrize("most", [2, 5, 16, 100])
def test_gaps_are_equal_but_for_rounding(count, most):
    found = evenly_spaced(count, most)
    assert len(found) == min(count, most)
    gaps = np.diff(found)
    assert gaps.min() > 0
    assert gaps.max() - gaps.min() <= 1

"""Latency: the values of SimulEval, and the definitions worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.metrics import (
    boundary_coverage,
    first_token_delay,
    lagging,
    last_token_delay,
    streamability,
    token_emission_delays,
)


@pytest.mark.parametrize(
    ("delays", "source", "reference", "expected"),  # AL, LAAL, AP, DAL as SimulEval prints them
    [
        ([1, 2, 3, 4, 5], 5, 5, (1, 1, 0.6, 1)),
        ([3, 4, 5, 5, 5], 5, 5, (3, 3, 0.88, 3)),
        ([2, 2, 4, 6, 8, 8], 8, 4, (0.4, 1.7333, 0.9375, 2.2222)),
    ],
)
def test_lagging_agrees_with_simuleval(delays, source, reference, expected):
    found = lagging(delays, source, reference)
    assert (
        found.average_lagging,
        found.length_adaptive_average_lagging,
        found.average_proportion,
        found.differentiable_average_lagging,
    ) == pytest.approx(expected, abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).map(sorted), st.floats(0.5, 100))
def test_lagging_follows_the_unit_and_is_the_source_for_a_reader_of_everything(delays, unit):
    small, large = lagging(delays, 1.0), lagging([unit * delay for delay in delays], unit)
    assert large.average_lagging == pytest.approx(unit * small.average_lagging)
    assert large.differentiable_average_lagging == pytest.approx(unit * small.differentiable_average_lagging)
    assert large.average_proportion == pytest.approx(small.average_proportion)
    waits = lagging([unit] * len(delays), unit)
    assert (waits.average_lagging, waits.average_proportion) == pytest.approx((unit, 1))


def test_delays_behind_true_ends():
    assert token_emission_delays([300, 700], [350, 500]) == [-50, 200]
    assert first_token_delay([300, 700], 120) == 180
    assert last_token_delay([300, 700], 650) == 50


def test_coverage_counts_stops_and_streamability_utterances():
    """The last position of 5 is 4; the second utterance waits for it once, the last tokens do not count."""
    stops = [torch.tensor([[0, 2, 4], [1, 3, 4]]), torch.tensor([[0, 4, 4], [1, 3, 4]])]
    assert boundary_coverage(stops, [5, 5]) == pytest.approx(7 / 8)
    assert streamability(stops, [5, 5]) == pytest.approx(1 / 2)


def test_refusals():
    with pytest.raises(ValueError, match="0 delays"):
        lagging([], 5)
    with pytest.raises(ValueError, match="source_length = 0"):
        lagging([1], 0)
    with pytest.raises(ValueError, match="delays fall from 2 to 1 at token 1"):
        lagging([2, 1], 5)
    with pytest.raises(ValueError, match="2 tokens were written but 1 ends"):
        token_emission_delays([1, 2], [1])
    with pytest.raises(ValueError, match="no token was written"):
        first_token_delay([], 0)
    with pytest.raises(ValueError, match="stops of 1 utterances but positions of 2"):
        boundary_coverage([torch.zeros(1, 2)], [1, 2])
    with pytest.raises(ValueError, match="no token in front of the last one"):
        boundary_coverage([torch.zeros(2, 1)], [3])
    with pytest.raises(ValueError, match="there are no utterances"):
        streamability([], [])

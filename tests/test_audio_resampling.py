"""Resampling against scipy and against sines that are known at both rates; bounded memory; what is refused."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.signal
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_entmax_asr.audio import resample, resample_by_ratio
from hf_entmax_asr.audio import resampling as resampling_module


@pytest.mark.parametrize("from_rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_what_both_rates_can_hold(from_rate):
    random = np.random.default_rng(from_rate)
    hertz = random.uniform(50, 0.9 * min(from_rate, 16_000) / 2, 12)
    phase = random.uniform(0, 2 * np.pi, 12)

    def signal(rate):
        times = np.arange(2 * rate)[:, None] / rate
        return np.sin(2 * np.pi * hertz * times + phase).mean(axis=1)

    ours = resample(signal(from_rate), from_rate, 16_000)
    common = math.gcd(from_rate, 16_000)
    # scipy's filter with as long a reach as ours; its own default is much shorter
    up, down = 16_000 // common, from_rate // common
    taps = scipy.signal.firwin(2 * 96 * max(up, down) + 1, 0.97 / max(up, down), window=("kaiser", 9.0))
    theirs = scipy.signal.resample_poly(signal(from_rate), up, down, window=taps)
    inner = slice(500, -500)  # both take what lies beyond the ends for silence
    assert len(ours) == len(theirs) == 32_000
    np.testing.assert_allclose(ours[inner], signal(16_000)[inner], atol=2e-5)
    np.testing.assert_allclose(ours, theirs, atol=5e-4)
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=5e-5)


@pytest.mark.parametrize("from_rate", [22_050, 44_100, 48_000])
def test_resampling_removes_what_the_new_rate_cannot_hold(from_rate):
    above = np.sin(2 * np.pi * 8_300 * np.arange(from_rate) / from_rate)
    assert np.abs(resample(above, from_rate, 16_000)[500:-500]).max() < 1e-4  # 80 dB down


@given(st.integers(0, 3000), st.sampled_from([8_000, 11_025, 16_000, 44_100]), st.sampled_from([8_000, 16_000, 22_050]))
@settings(max_examples=30, deadline=None)
def test_resampled_length(count, from_rate, to_rate):
    assert len(resample(np.ones(count), from_rate, to_rate)) == -(-count * to_rate // from_rate)


COMMON_RATES = [8_000, 11_025, 12_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]


@pytest.mark.parametrize("to_rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("from_rate", COMMON_RATES)
def test_kernels_from_the_table_give_what_exact_kernels_give(from_rate, to_rate):
    if from_rate == to_rate:
        return
    noise = np.random.default_rng(0).uniform(-1, 1, 3000).astype(np.float32)
    common = math.gcd(from_rate, to_rate)
    ratio = from_rate // common, to_rate // common
    exact = resampling_module._resample_by_bank(noise, *ratio)
    np.testing.assert_allclose(resampling_module._resample_by_table(noise, *ratio), exact, atol=1e-5)
    assert np.array_equal(resample(noise, from_rate, to_rate), exact)  # common rates have exact kernels


def summed_directly(waveform, from_rate, to_rate):
    """The definition in float64: every new sample a sum over all old ones."""
    slower = min(1.0, to_rate / from_rate)
    count = -(-len(waveform) * to_rate // from_rate)
    distance = np.arange(len(waveform)) - np.arange(count)[:, None] * from_rate / to_rate  # (new, old)
    window = np.i0(9.0 * np.sqrt(np.clip(1 - (distance * slower / 96) ** 2, 0, None))) / np.i0(9.0)
    window *= np.abs(distance) * slower < 96
    return (0.97 * slower * np.sinc(0.97 * slower * distance) * window) @ waveform


@given(st.integers(1_000, 768_000), st.integers(1_000, 768_000), st.integers(0, 300), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_any_two_rates_give_the_sums_of_the_definition(from_rate, to_rate, count, seed):
    to_rate = min(to_rate, 8 * from_rate)  # the reference is quadratic
    assume(from_rate != to_rate)
    noise = np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)
    found = resample(noise, from_rate, to_rate)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, summed_directly(noise, from_rate, to_rate), atol=2e-5)


@pytest.mark.parametrize(
    ("from_rate", "to_rate"),
    [(16_001, 16_000), (11_127, 16_000), (44_099, 16_000), (16_000, 44_099), (767_999, 1_000), (1_009, 767_999)],
)
def test_memory_is_bounded_for_rates_without_a_common_divisor(from_rate, to_rate):
    resampling_module._kernel_table.cache_clear()
    second = np.ones(min(from_rate, 20_000), np.float32)
    tracemalloc.start()
    result = resample(second, from_rate, to_rate)
    megabytes = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert len(result) == -(-len(second) * to_rate // from_rate)
    assert megabytes < 32 + 12 * len(result) / 2**20  # one kernel for each place would take 700 MB and more


@pytest.mark.parametrize("from_rate", [16_001, 44_099, 95_999])
def test_odd_rates_keep_a_tone(from_rate):
    tone = np.sin(2 * np.pi * 1_000 * np.arange(from_rate // 4) / from_rate)
    found = resample(tone, from_rate, 16_000)
    expected = np.sin(2 * np.pi * 1_000 * np.arange(len(found)) / 16_000)
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=2e-5)


@pytest.mark.parametrize("rates", [(999, 16_000), (16_000, 768_001), (0, 16_000), (16_000, -8_000), (500, 500)])
def test_rates_that_no_recording_has_are_refused(rates):
    with pytest.raises(ValueError, match=r"a sampling rate of -?\d+ Hz is not between 1,000 and 768,000 Hz"):
        resample(np.ones(10), *rates)


def test_a_ratio_has_no_limits_but_must_be_positive():
    assert len(resample_by_ratio(np.ones(90), 9, 10)) == 100
    with pytest.raises(ValueError, match="every 0 samples cannot become 100: both must be positive"):
        resample_by_ratio(np.ones(10), 0, 100)

"""Where a stream is cut: levels of 10 ms, whatever pieces the audio comes in."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.model.pauses import PauseRule, Pauses

RATE = 16_000


def sound(seconds: float, amplitude: float = 0.3) -> torch.Tensor:
    return amplitude * torch.sin(torch.arange(int(seconds * RATE)) * 0.3)


def heard_in_pieces(audio: torch.Tensor, cuts=(), rule: PauseRule | None = None) -> tuple[int | None, Pauses]:
    """How many samples are of the first utterance, None for all of them."""
    pauses, before = Pauses(rule or PauseRule(pause_ms=300), RATE), 0
    for first, last in itertools.pairwise([0, *sorted(cuts), len(audio)]):
        if (end := pauses.hear(audio[first:last])) is not None:
            return before + end, pauses
        before += last - first
    pauses.end()
    return None, pauses


@given(cuts=st.lists(st.integers(0, 32_000), max_size=8), noise=st.sampled_from([0.0, 0.002]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_an_utterance_ends_as_soon_as_it_was_quiet_for_the_pause(cuts, noise):
    random = np.random.default_rng(0)
    audio = torch.cat([sound(0.5), torch.zeros(int(0.29 * RATE)), sound(0.2), torch.zeros(int(1.01 * RATE))])
    audio += torch.from_numpy(noise * random.standard_normal(len(audio))).float()
    end, pauses = heard_in_pieces(audio, cuts)
    assert end == round((0.5 + 0.29 + 0.2 + 0.3) * RATE)
    assert pauses.heard == end
    assert pauses.quiet_samples == 0.3 * RATE
    assert not pauses.silent


def test_silence_ends_too_and_is_told_from_speech():
    end, pauses = heard_in_pieces(torch.zeros(RATE))
    assert end == 0.3 * RATE
    assert pauses.silent


def test_what_is_no_whole_step_counts_at_the_end():
    click = torch.zeros(100)
    click[-1] = 0.9
    end, pauses = heard_in_pieces(click)
    assert end is None
    assert not pauses.silent


def test_the_longest_utterance_needs_no_pause_and_shorter_ones_will_do_before():
    rule = PauseRule(pause_ms=300, longest_ms=2000)
    end, pauses = heard_in_pieces(sound(3), (), rule)
    assert (end, pauses.quiet_samples) == (2 * RATE, 0)
    end, _ = heard_in_pieces(torch.cat([sound(1.4), torch.zeros(4000), sound(1)]), (), rule)
    assert end == pytest.approx(1.54 * RATE, abs=200)  # at 1.54 s a pause of 0.14 s is enough


def test_speech_goes_on_at_the_quietest_place_behind_the_last_token():
    murmur = sound(0.05, 0.005)
    _, pauses = heard_in_pieces(torch.cat([sound(0.5), murmur, sound(0.14), murmur, sound(0.5)]))
    for last, expected in ((0.68, None), (0.73, None), (0.77, 0.5), (1.2, 0.5)):  # 0.15 s may be a word
        start = pauses.speech_behind(int(0.45 * RATE), int(last * RATE))
        assert start == (None if expected is None else pytest.approx(expected * RATE, abs=0.05 * RATE))
    assert pauses.speech_behind(int(0.6 * RATE), int(1.2 * RATE)) == pytest.approx(0.7 * RATE, abs=0.05 * RATE)
    assert pauses.speech_behind(2 * RATE, 3 * RATE) is None
    assert pauses.speech_behind(0, RATE) >= 0.15 * RATE  # or the same utterance would begin again, and again
    _, pauses = heard_in_pieces(torch.cat([sound(0.5), torch.zeros(4000)]))
    assert pauses.speech_behind(int(0.45 * RATE), int(0.75 * RATE)) is None


def test_a_rule_that_cannot_be():
    with pytest.raises(ValueError, match=r"pause_ms = 5 must be at least 10, and longest_ms = 25000.0 above it"):
        PauseRule(pause_ms=5)

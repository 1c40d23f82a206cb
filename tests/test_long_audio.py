"""Where long recordings are cut."""

import numpy as np
import pytest

from hf_entmax_asr.model.long_audio import PieceRule, pieces_at_pauses

RATE = 16_000


def recording(seconds: float, pauses: list[tuple[float, float]], noise_db: float | None = None) -> np.ndarray:
    """Noise as loud as speech, but for pauses (start, end) in seconds of silence or weak noise."""
    generator = np.random.default_rng(0)
    waveform = 0.1 * generator.standard_normal(int(seconds * RATE)).astype(np.float32)
    level = 0 if noise_db is None else 0.1 * 10 ** (noise_db / 20)
    for start, end in pauses:
        waveform[int(start * RATE) : int(end * RATE)] *= level / 0.1
    return waveform


def spans(waveform: np.ndarray, rule: PieceRule, block: float = 3.0) -> list[tuple[float, float]]:
    """(start, end) in seconds of the pieces, each of which holds the audio of its place."""
    size = int(block * RATE)
    blocks = [waveform[first : first + size] for first in range(0, len(waveform), size)]
    found = []
    for start, piece in pieces_at_pauses(blocks, RATE, rule):
        np.testing.assert_array_equal(piece, waveform[start : start + len(piece)])
        found.append((start / RATE, (start + len(piece)) / RATE))
    return found


@pytest.mark.parametrize("noise_db", [None, -30])
def test_a_long_recording_is_cut_in_every_pause_and_loses_no_speech(noise_db):
    waveform = recording(13, [(0, 1), (3.3, 3.8), (5, 5.3), (7, 10)], noise_db)
    rule = PieceRule(longest_seconds=6, pause_seconds=0.4, margin_seconds=0.2)
    expected = [(0.8, 3.5), (3.6, 7.2), (9.8, 13)]  # 0.3 s are no pause
    np.testing.assert_allclose(spans(waveform, rule), expected, atol=0.011)
    assert spans(waveform, rule, block=0.37) == spans(waveform, rule, block=60)


def test_a_recording_within_the_limit_is_left_as_it_is():
    waveform = recording(6, [(0, 1), (3, 4)])
    assert spans(waveform, PieceRule(longest_seconds=6)) == [(0, 6)]
    ((start, nothing),) = pieces_at_pauses([], RATE)
    assert (start, len(nothing)) == (0, 0)


def test_without_pauses_the_quietest_moment_of_the_second_half_will_do():
    waveform = recording(12, [(3.5, 3.7), (9, 9.2)], noise_db=-12)
    found = spans(waveform, PieceRule(longest_seconds=5))
    assert [start for start, _ in found[1:]] == [end for _, end in found[:-1]]
    assert (found[0][0], found[-1][1]) == (0, 12)
    assert found[0][1] == pytest.approx(3.6, abs=0.06)


def test_silence_has_no_pieces():
    assert spans(np.zeros(20 * RATE, np.float32), PieceRule(longest_seconds=6)) == []
    assert spans(recording(20, [(0, 20)], noise_db=-60), PieceRule(longest_seconds=6)) == []


def test_no_more_is_held_than_a_piece_and_a_block():
    held = most = 0

    def blocks():
        nonlocal held, most
        for _ in range(30):
            held += 2 * RATE
            most = max(most, held)
            yield recording(2, [(0.5, 1.5)])

    for _, piece in pieces_at_pauses(blocks(), RATE, PieceRule(longest_seconds=6)):
        held -= len(piece)
        held = min(held, 6 * RATE)  # pauses are dropped with the pieces
    assert most <= 8 * RATE


def test_rules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"pieces of 0.5 s"):
        PieceRule(longest_seconds=0.5)
    with pytest.raises(ValueError, match=r"pause_seconds = 0.01"):
        PieceRule(pause_seconds=0.01)
    with pytest.raises(ValueError, match=r"margin_seconds = 0.3"):
        PieceRule(margin_seconds=0.3)


def test_a_piece_begins_with_speech_however_late_that_comes():
    waveform = recording(4, [(0, 1.1)])
    np.testing.assert_allclose(spans(waveform, PieceRule(longest_seconds=1.2))[0][0], 0.95, atol=0.011)

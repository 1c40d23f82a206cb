"""Speed, volume and noise: what they do to a waveform."""

import numpy as np
import pytest
import soundfile
import torch
from experiments.silence import place_between_words

from hf_entmax_asr.analysis.phonemes import Interval
from hf_entmax_asr.augmentation import (
    WaveformPerturbation,
    add_noise,
    change_speed,
    find_noise_files,
    quietest_place,
    tune,
)

RATE = 16_000


def tone(frequency_hz: float, seconds: float = 0.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def pitch(waveform: np.ndarray) -> float:
    """The strongest frequency, in Hz."""
    return float(np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))).argmax() * RATE / len(waveform))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("speed", [0.9, 1.1, 0.85])
def test_speed_moves_length_and_pitch_together(speed):
    changed = change_speed(tone(800), speed)
    assert len(changed) == int(np.ceil(8000 / speed))
    assert changed.dtype == np.float32
    assert pitch(changed) == pytest.approx(800 * speed, abs=RATE / len(changed))
    inner = slice(500, -500)  # away from the ends, where the sums reach into silence
    expected = 0.3 * np.sin(2 * np.pi * 800 * speed * np.arange(len(changed)) / RATE)
    np.testing.assert_allclose(changed[inner], expected[inner], atol=1e-4)


def test_speed_one_is_the_same_waveform():
    assert np.array_equal(change_speed(tone(500), 1.0), tone(500))


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_has_the_asked_power(snr_db):
    speech, noise = tone(300), np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    added = add_noise(speech, noise, snr_db) - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.01)
    assert np.array_equal(add_noise(speech, np.zeros(8000), snr_db), speech)
    assert np.array_equal(add_noise(np.zeros(8000), noise, snr_db), np.zeros(8000))


def changed(perturb, waveform, source):
    return perturb.apply(waveform, perturb.draw(source))


def test_what_one_utterance_gets_changes_nothing_for_the_next():
    sources = [generator(1), generator(1)]
    for share, source in zip((0.0, 1.0), sources, strict=True):
        WaveformPerturbation(noise_share=share, silence_share=share).draw(source)
    assert torch.equal(*(torch.rand(1, generator=source) for source in sources))


def test_a_tune_has_notes_of_a_scale_that_change_and_die_away():
    sound = tune(4 * RATE, RATE, np.random.default_rng(3))
    assert np.array_equal(sound, tune(4 * RATE, RATE, np.random.default_rng(3)))
    levels = np.square(sound[: len(sound) // 800 * 800]).reshape(-1, 800).mean(axis=1)
    assert (levels > 0).all()
    assert levels.max() > 20 * levels.min()
    notes = {round(12 * np.log2(pitch(sound[i : i + 4000]) / 440)) % 12 for i in range(0, 3 * RATE, 4000)}
    assert 2 < len(notes) <= 7


def test_volume_is_uniform_in_decibels_and_the_generator_decides():
    perturb, source = WaveformPerturbation(volume_db=6.0), generator()
    gains = [20 * np.log10(changed(perturb, tone(400), source)[3] / tone(400)[3]) for _ in range(400)]
    assert -6 <= min(gains) < -5.5
    assert 5.5 < max(gains) <= 6
    assert np.mean(gains) == pytest.approx(0, abs=0.6)
    again = [changed(perturb, tone(400), g) for g in (generator(3), generator(3), generator(4))]
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


def test_a_share_of_the_utterances_gets_noise_of_a_ratio_within_the_bounds():
    perturb, source = WaveformPerturbation(noise_share=0.3, noise_snr_db=(5.0, 15.0)), generator()
    speech = tone(400)
    added = [changed(perturb, speech, source) - speech for _ in range(400)]
    noisy = [float(10 * np.log10(np.mean(speech**2) / np.mean(a**2))) for a in added if a.any()]
    assert len(noisy) / 400 == pytest.approx(0.3, abs=0.07)
    assert 5 <= min(noisy) < 6
    assert 14 < max(noisy) <= 15.01


def test_recorded_noise_is_resampled_read_from_anywhere_and_repeated(tmp_path):
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "hum.wav", tone(1000, 0.1), RATE)
    soundfile.write(tmp_path / "other.flac", np.tile(tone(1000, 0.1)[::2], 2), RATE // 2)
    files = find_noise_files(tmp_path)
    assert [path.name for path in files] == ["hum.wav", "other.flac"]
    perturb, source = WaveformPerturbation(noise_share=1.0, noise_snr_db=(0.0, 0.0), noise_files=files), generator()
    added = [changed(perturb, tone(200), source) - tone(200) for _ in range(8)]
    assert all(pitch(a) == pytest.approx(1000, abs=5) for a in added)
    assert len({round(float(a[0]), 6) for a in added}) > 4
    with pytest.raises(ValueError, match="nothing holds no audio files"):
        find_noise_files(tmp_path / "nothing")


def test_a_share_of_the_utterances_gets_silence_around_or_in_its_quietest_place():
    perturb, source = WaveformPerturbation(silence_share=0.4, silence_seconds=0.5), generator()
    speech = np.concatenate([tone(400), np.zeros(1600, np.float32), tone(400)])
    made = [changed(perturb, speech, source) for _ in range(300)]
    longer = [m for m in made if len(m) > len(speech)]
    assert len(longer) / 300 == pytest.approx(0.4, abs=0.08)
    assert max(len(m) for m in made) - len(speech) <= 3 * 0.5 * RATE
    kinds = set()
    for waveform in longer:
        loud = np.flatnonzero(np.abs(waveform) > 0.1)
        kinds.add("before" if loud[0] > 8 else "not before")
        kinds.add("behind" if len(waveform) - loud[-1] > 8 else "not behind")
        kinds.add("within" if np.diff(loud).max() > 1700 else "not within")
        rest = np.r_[waveform[: max(0, loud[0] - 8)], waveform[loud[-1] + 9 :]]
        kinds.add("zeros" if not rest.any() else "noise")
        assert not len(rest) or np.abs(rest).max() < 5 * 10 ** (-45 / 20)
        assert (np.abs(waveform) > 0.1).sum() == (np.abs(speech) > 0.1).sum()  # nothing of the speech is lost
    assert len(kinds) == 8
    assert quietest_place(speech, 800) in range(8000, 9600)
    assert quietest_place(speech[:100], 800) == 50


def test_a_share_of_the_utterances_becomes_audio_without_speech():
    perturb, source = WaveformPerturbation(no_speech_share=0.3), generator()
    speech = tone(400)[:4000]
    draws = [perturb.draw(source) for _ in range(300)]
    assert all(perturb.replaces(draw) == (draw is not None) for draw in draws)
    assert perturb.apply(speech, None) is speech
    others = [perturb.apply(speech, draw) for draw in draws if draw is not None]
    assert len(others) / 300 == pytest.approx(0.3, abs=0.08)
    assert all(len(m) == 4000 and m.dtype == np.float32 and np.abs(m).max() < 4 for m in others)
    assert 0 < sum(not m.any() for m in others) < len(others) / 2
    powers = [20 * np.log10(np.sqrt(np.mean(m**2))) for m in others if m.any()]
    assert -66 < min(powers) < -50
    assert -20 < max(powers) < -5


def test_a_pause_is_put_between_two_words():
    second = np.zeros(RATE)  # its inner half is 0.25 to 0.75 s
    words = [Interval(*w) for w in ((0, 0.1, "a"), (0.2, 0.3, "b"), (0.32, 0.5, "c"), (0.6, 0.7, "d"), (0.9, 1.0, "e"))]
    assert place_between_words(words, second, RATE) == round(0.55 * RATE)
    assert place_between_words([words[0], words[-1]], np.zeros(4 * RATE), RATE) == round(0.5 * RATE)
    assert place_between_words(words[:1], second, RATE) == 0

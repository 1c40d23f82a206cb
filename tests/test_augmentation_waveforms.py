"""Speed, volume and noise: what they do to a waveform."""

import numpy as np
import pytest
import soundfile
import torch

from hf_entmax_asr.augmentation import WaveformPerturbation, add_noise, change_speed, find_noise_files

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


def test_volume_is_uniform_in_decibels_and_the_generator_decides():
    perturb, source = WaveformPerturbation(volume_db=6.0), generator()
    gains = [20 * np.log10(perturb(tone(400), source)[3] / tone(400)[3]) for _ in range(400)]
    assert -6 <= min(gains) < -5.5
    assert 5.5 < max(gains) <= 6
    assert np.mean(gains) == pytest.approx(0, abs=0.6)
    again = [perturb(tone(400), g) for g in (generator(3), generator(3), generator(4))]
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


def test_a_share_of_the_utterances_gets_noise_of_a_ratio_within_the_bounds():
    perturb, source = WaveformPerturbation(noise_share=0.3, noise_snr_db=(5.0, 15.0)), generator()
    speech = tone(400)
    added = [perturb(speech, source) - speech for _ in range(400)]
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
    added = [perturb(tone(200), source) - tone(200) for _ in range(8)]
    assert all(pitch(a) == pytest.approx(1000, abs=5) for a in added)
    assert len({round(float(a[0]), 6) for a in added}) > 4
    with pytest.raises(ValueError, match="nothing holds no audio files"):
        find_noise_files(tmp_path / "nothing")

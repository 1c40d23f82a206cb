"""Features of version 2: silence, pauses and faint noise around speech change nothing in its frames."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import AutoFeatureExtractor

from hf_entmax_asr.augmentation import add_noise
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.model.generation_inputs import sounds

RATE = 16000
SPEECH, _ = soundfile.read(Path(__file__).parent / "speech.flac", dtype="float32")
PLAIN = EntmaxAsrFeatureExtractor(cmvn="none")


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def plain(samples: np.ndarray) -> np.ndarray:
    return PLAIN(samples, sampling_rate=RATE, return_tensors="np").input_features


def of_sounding_frames(samples):
    """The mean and deviation (F,) of the frames at most 40 dB below the fifth loudest, and how many they are."""
    raw = plain(samples)[0].astype(np.float64)
    energy = np.log(np.exp(raw).sum(axis=1))
    sounding = raw[energy > np.sort(energy)[-5] - np.log(1e4)]
    return sounding.mean(axis=0), sounding.std(axis=0), len(sounding)


def test_utterance_cmvn_is_of_the_frames_that_sound():
    """A second of a pause, far below the loudest frames, counts for nothing; nor does a click make speech one."""
    mean, deviation, _ = of_sounding_frames(SPEECH)
    expected = ((plain(SPEECH)[0] - mean) / deviation).clip(-4)
    alone = EntmaxAsrFeatureExtractor()(SPEECH, sampling_rate=RATE, return_tensors="np").input_features[0]
    np.testing.assert_allclose(alone, expected, atol=1e-4)
    click = np.zeros(16000, np.float32)
    click[8000] = 0.9
    clicked = EntmaxAsrFeatureExtractor()(np.r_[SPEECH / 30, click], sampling_rate=RATE, return_tensors="np")
    assert np.abs(clicked.input_features[0, : len(alone)] - expected).mean() < 0.1


@pytest.mark.parametrize("seconds", [0.1, 0.5, 2.0, 60.0])
@pytest.mark.parametrize("amplitude", [0.0, 1 / 32768])
def test_silence_around_speech_changes_nothing_in_it(seconds, amplitude):
    silence = amplitude * np.sign(noise(round(seconds * RATE) // 160 * 160))  # zeros, or noise of one bit
    alone = EntmaxAsrFeatureExtractor()(SPEECH, sampling_rate=RATE, return_tensors="np").input_features[0]
    for before, behind in ((silence, silence[:0]), (silence[:0], silence), (silence, silence)):
        around = np.concatenate([before, SPEECH, behind]).astype(np.float32)
        found = EntmaxAsrFeatureExtractor()(around, sampling_rate=RATE, return_tensors="np").input_features[0]
        speech = found[len(before) // 160 :][: len(alone)]
        np.testing.assert_allclose(speech, alone, atol=0.15)
        outside = np.r_[found[: max(0, len(before) // 160 - 2)], found[len(before) // 160 + len(alone) + 4 :]]
        assert (outside == -4).all() if amplitude == 0 else outside.mean() < -1


@pytest.mark.parametrize("cmvn", ["utterance", "global"])
def test_digital_silence_is_as_low_as_values_go(cmvn):
    extractor = EntmaxAsrFeatureExtractor()
    if cmvn == "global":
        extractor.fit_global_cmvn([SPEECH], sampling_rate=RATE)
    features = extractor(np.zeros(8000, np.float32), sampling_rate=RATE, return_tensors="np").input_features
    assert (features == -4).all()


def test_extractors_that_were_saved_without_a_version_keep_their_features(tmp_path):
    old = EntmaxAsrFeatureExtractor(version=1)
    settings = old.to_dict()
    del settings["version"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    for loaded in (
        EntmaxAsrFeatureExtractor.from_dict(settings),
        EntmaxAsrFeatureExtractor.from_pretrained(tmp_path),
        AutoFeatureExtractor.from_pretrained(tmp_path),
    ):
        assert loaded.version == 1
        np.testing.assert_array_equal(
            loaded(SPEECH, sampling_rate=RATE, return_tensors="np").input_features,
            old(SPEECH, sampling_rate=RATE, return_tensors="np").input_features,
        )
    latest = EntmaxAsrFeatureExtractor()
    assert latest.version == EntmaxAsrFeatureExtractor(**latest.to_dict()).version == 2


def test_global_cmvn_is_of_the_frames_that_sound():
    mean, deviation, count = of_sounding_frames(SPEECH)
    zeros = np.zeros(16000, np.float32)
    extractor = EntmaxAsrFeatureExtractor()
    frames = extractor.fit_global_cmvn([np.r_[SPEECH, zeros], zeros], sampling_rate=RATE)
    assert count <= frames <= count + 3  # windows that stand half in the zeros
    np.testing.assert_allclose(extractor.cmvn_mean, mean, atol=0.1)
    np.testing.assert_allclose(extractor.cmvn_std, deviation, atol=0.1)
    with pytest.raises(ValueError, match="silence alone"):
        extractor.fit_global_cmvn([zeros], sampling_rate=RATE)


HUM = 0.1 * np.sin(2 * np.pi * 50 * np.arange(5 * RATE) / RATE)


@pytest.mark.parametrize("kind", ["kaldi", "whisper"])
@pytest.mark.parametrize("sound", [0.03 * noise(5 * RATE), noise(5 * RATE) / 32768, 0.3 * noise(RATE), HUM])
def test_one_steady_sound_is_silence(kind, sound):
    extractor = EntmaxAsrFeatureExtractor(kind=kind, cmvn="utterance" if kind == "kaldi" else "none")
    found = extractor(sound.astype(np.float32), sampling_rate=RATE, return_tensors="pt").input_features
    assert not sounds(found).any()


@pytest.mark.parametrize("kind", ["kaldi", "whisper"])
def test_speech_in_noise_and_noise_of_two_levels_are_none(kind):
    extractor = EntmaxAsrFeatureExtractor(kind=kind, cmvn="utterance" if kind == "kaldi" else "none")
    for waveform in (
        add_noise(SPEECH, noise(len(SPEECH)), 0),
        np.r_[0.01 * noise(RATE), 0.03 * noise(RATE)],
        0.1 * noise(RATE // 2),  # too short to say
    ):
        found = extractor(waveform.astype(np.float32), sampling_rate=RATE, return_tensors="pt").input_features
        assert sounds(found).all()

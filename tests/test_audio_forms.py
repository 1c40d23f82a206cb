"""The forms in which people hand audio over."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from hf_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.audio import read_audio, waveform_of

RATE = 16_000


def tone(rate=RATE):
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)).astype(np.float32)


def test_every_form_is_the_same_waveform(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE, subtype="FLOAT")
    content = (tmp_path / "a.wav").read_bytes()
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(tone())[None], sample_rate=RATE)
    )
    for item in (
        tmp_path / "a.wav",
        str(tmp_path / "a.wav"),
        content,
        io.BytesIO(content),
        {"path": str(tmp_path / "a.wav"), "bytes": None},
        {"path": None, "bytes": content},
        {"array": tone(), "sampling_rate": RATE, "path": "elsewhere"},
        {"raw": tone().tolist(), "sampling_rate": RATE},
        decoder,
        tone(),
        tone().astype(np.float64),
        torch.from_numpy(tone()),
        np.stack([tone(), tone()]),
        np.stack([tone(), tone()], axis=1),
        tone().tolist(),
    ):
        waveform = waveform_of(item, RATE)
        assert waveform.dtype == np.float32
        np.testing.assert_allclose(waveform, tone(), atol=1e-6)
    as_integers = np.round(32768 * tone()).astype(np.int16)
    np.testing.assert_allclose(waveform_of(as_integers, RATE), tone(), atol=2e-5)


def test_another_rate_is_resampled():
    waveform = waveform_of({"array": tone(44_100), "sampling_rate": 44_100}, RATE)
    assert len(waveform) == RATE // 2
    np.testing.assert_allclose(waveform[300:-300], tone()[300:-300], atol=1e-3)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"array": tone()}, "lacks its sampling_rate"),
        ({"path": None}, "neither bytes nor a path"),
        (np.zeros((2, 2, 2)), "is none that is known"),
        (np.arange(5), "is none that is known"),
        (["a"], "is none that is known"),
    ],
)
def test_other_things_are_refused(item, said):
    with pytest.raises((ValueError, TypeError), match=said):
        waveform_of(item, RATE)


def test_the_feature_extractor_takes_decoded_columns():
    extractor = EntmaxAsrFeatureExtractor()
    expected = extractor(tone(), sampling_rate=RATE, return_tensors="np").input_features
    row = {"array": tone(), "sampling_rate": RATE}
    for given in (row, {"raw": tone(), "sampling_rate": RATE}):
        np.testing.assert_array_equal(extractor(given, return_tensors="np").input_features, expected)
    assert extractor([row, row], return_tensors="np").input_features.shape[0] == 2
    with pytest.raises(ValueError, match="sampling rate of 8000 Hz"):
        extractor({"array": tone(), "sampling_rate": 8000}, return_tensors="np")
    with pytest.raises(ValueError, match="has sampling rates of"):
        extractor(row, sampling_rate=8000)


def test_read_audio_is_public():
    import hf_entmax_asr

    assert hf_entmax_asr.read_audio is read_audio

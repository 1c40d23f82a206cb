"""The feature extractor against Kaldi's filterbank, against a plain float64 twin, and against bad input.

tests/speech.flac is three seconds of LibriVox (public domain), from Debian's pocketsphinx-testdata.
"""

import copy
import json
import multiprocessing
import pickle
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor

from hf_entmax_asr.model import feature_extraction_entmax_asr, speech_features
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor

RATE = 16000
SPEECH, _ = soundfile.read(Path(__file__).parent / "speech.flac", dtype="float32")
PLAIN = EntmaxAsrFeatureExtractor(cmvn="none")


def noise(samples: int, scale: float = 0.1, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * scale).astype(np.float32)


def kaldi(samples: np.ndarray, rate: int = RATE, bins: int = 80) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = bins
    extractor = kaldi_native_fbank.OnlineFbank(options)
    extractor.accept_waveform(rate, (samples * 32768).astype(np.float32))
    extractor.input_finished()
    return np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])


def twin(samples: np.ndarray) -> np.ndarray:
    """The filterbank one frame and one bin at a time, in float64, straight from Kaldi's definition."""
    mel = lambda hz: 1127 * np.log(1 + hz / 700)  # noqa: E731
    window = np.array([(0.5 - 0.5 * np.cos(2 * np.pi * n / 399)) ** 0.85 for n in range(400)])
    step = (mel(8000) - mel(20)) / 81
    frames = []
    for start in range(0, len(samples) - 399, 160):
        x = samples[start : start + 400].astype(np.float64) * 32768
        x = x - x.mean()
        y = np.array([x[n] - 0.97 * x[max(n - 1, 0)] for n in range(400)]) * window
        power = np.abs(np.fft.fft(y, 512)[:257]) ** 2
        bins = []
        for b in range(80):
            position = (mel(np.arange(257) * 31.25) - mel(20)) / step - b  # 0 at the left edge, 1 centre, 2 right
            bins.append(max((power * np.clip(1 - np.abs(position - 1), 0, None)).sum(), 2.0**-23))
        frames.append(np.log(bins))
    return np.array(frames)


def plain(samples, **options) -> np.ndarray:
    return PLAIN(samples, sampling_rate=RATE, return_tensors="np", **options).input_features


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4], ids=["loud", "quiet", "very quiet"])
@pytest.mark.parametrize("signal", ["speech", "noise"])
def test_equals_kaldi(signal, scale):
    samples = (SPEECH if signal == "speech" else noise(48000)) * np.float32(scale)
    ours, theirs = plain(samples)[0], kaldi(samples)
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


def test_equals_kaldi_on_16_bit_speech_at_one_thousandth_and_on_silence():
    samples = np.round(SPEECH * 32.768).astype(np.int16)  # a handful of quantisation steps
    np.testing.assert_allclose(plain(samples)[0], kaldi(samples / 32768), rtol=0, atol=1e-3)
    silence = np.zeros(4000, np.float32)
    np.testing.assert_array_equal(plain(silence)[0], kaldi(silence))


@pytest.mark.parametrize(("rate", "bins"), [(8000, 40), (11025, 23), (22050, 80)])
def test_equals_kaldi_at_other_rates(rate, bins):
    extractor = EntmaxAsrFeatureExtractor(feature_size=bins, sampling_rate=rate, cmvn="none")
    ours = extractor(noise(rate), sampling_rate=rate, return_tensors="np").input_features[0]
    np.testing.assert_allclose(ours, kaldi(noise(rate), rate, bins), rtol=0, atol=1e-3)


def test_equals_the_twin_where_kaldis_float32_does_not():
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / RATE)).astype(np.float32)
    for samples in (SPEECH[:8000], tone, noise(4000, 1e-3) + np.float32(0.5)):
        np.testing.assert_allclose(plain(samples)[0], twin(samples), rtol=0, atol=2e-5)
    assert np.abs(kaldi(tone) - twin(tone)).max() > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 2500), min_size=1, max_size=5), st.sampled_from(["utterance", "none"]))
def test_a_batch_gives_what_each_recording_gives_alone(lengths, cmvn):
    extractor = EntmaxAsrFeatureExtractor(cmvn=cmvn)
    recordings = [noise(length, seed=length) for length in lengths]
    batch = extractor(recordings, sampling_rate=RATE, return_tensors="pt")
    frames = [1 if n < 400 else 1 + (n - 400) // 160 for n in lengths]
    assert [extractor.num_frames(n) for n in lengths] == frames
    assert batch.input_features.shape == (len(lengths), max(frames), 80)
    assert batch.attention_mask.tolist() == [[1] * n + [0] * (max(frames) - n) for n in frames]
    for recording, features, real in zip(recordings, batch.input_features, frames, strict=True):
        alone = extractor(recording, sampling_rate=RATE, return_tensors="pt")
        assert alone.attention_mask.tolist() == [[1] * real]
        assert torch.equal(features[:real], alone.input_features[0])
        assert not features[real:].any()


def test_blocks_leave_no_seam(monkeypatch):
    whole = plain(SPEECH)
    monkeypatch.setattr(feature_extraction_entmax_asr, "FRAMES_PER_BLOCK", 7)
    np.testing.assert_allclose(plain(SPEECH), whole, rtol=0, atol=1e-5)


def test_utterance_cmvn():
    extractor = EntmaxAsrFeatureExtractor(version=1)
    features = extractor([SPEECH, noise(9000)], sampling_rate=RATE, return_tensors="np")
    for row, mask in zip(features.input_features, features.attention_mask, strict=True):
        real = row[mask == 1].astype(np.float64)
        np.testing.assert_allclose(real.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(real.std(axis=0), 1, atol=1e-5)
        assert not row[mask == 0].any()
    raw = plain(SPEECH)[0].astype(np.float64)
    expected = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    np.testing.assert_allclose(features.input_features[0], expected, atol=1e-4)


@pytest.mark.parametrize("samples", [np.zeros(8000, np.float32), noise(400)], ids=["silence", "one frame"])
def test_bins_that_never_move_become_zero(samples):
    extractor = EntmaxAsrFeatureExtractor(version=1)
    features = extractor(samples, sampling_rate=RATE, return_tensors="np").input_features
    assert not features.any()


def test_global_cmvn_is_measured_stored_and_used(tmp_path):
    recordings = [SPEECH[:20000], SPEECH[20000:], noise(5000)]
    extractor = EntmaxAsrFeatureExtractor(version=1)
    frames = extractor.fit_global_cmvn((recording for recording in recordings), sampling_rate=RATE)
    raw = np.concatenate([plain(recording)[0] for recording in recordings]).astype(np.float64)
    assert frames == len(raw)
    np.testing.assert_allclose(extractor.cmvn_mean, raw.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(extractor.cmvn_std, raw.std(axis=0), rtol=1e-7)
    extractor.save_pretrained(tmp_path)
    reloaded = EntmaxAsrFeatureExtractor.from_pretrained(tmp_path)
    assert (reloaded.cmvn, reloaded.cmvn_mean, reloaded.cmvn_std) == (
        "global",
        extractor.cmvn_mean,
        extractor.cmvn_std,
    )
    features = reloaded(recordings, sampling_rate=RATE, return_tensors="np")
    np.testing.assert_allclose(
        features.input_features[features.attention_mask == 1], (raw - raw.mean(0)) / raw.std(0), atol=1e-4
    )
    assert not features.input_features[features.attention_mask == 0].any()


def test_global_cmvn_never_amplifies_a_still_bin_without_bound():
    extractor = EntmaxAsrFeatureExtractor(version=1)
    extractor.fit_global_cmvn([np.zeros(8000, np.float32)], sampling_rate=RATE)
    assert extractor.cmvn_std == [feature_extraction_entmax_asr.GLOBAL_STD_FLOOR] * 80


def test_global_cmvn_refuses_and_keeps_the_settings():
    extractor = EntmaxAsrFeatureExtractor()
    with pytest.raises(ValueError, match="no recordings"):
        extractor.fit_global_cmvn([], sampling_rate=RATE)
    with pytest.raises(ValueError, match="Recording 1 is empty"):
        extractor.fit_global_cmvn([SPEECH, SPEECH[:0]], sampling_rate=RATE)
    with pytest.raises(ValueError, match="8000 Hz"):
        extractor.fit_global_cmvn([SPEECH], sampling_rate=8000)
    assert (extractor.cmvn, extractor.cmvn_mean, extractor.cmvn_std) == ("utterance", None, None)
    with pytest.raises(ValueError, match="fit_global_cmvn"):
        EntmaxAsrFeatureExtractor(cmvn="global")(SPEECH, sampling_rate=RATE)


@pytest.mark.parametrize(
    "audio",
    [
        SPEECH,
        SPEECH.tolist(),
        SPEECH.astype(np.float64),
        SPEECH[::-1][::-1],
        torch.from_numpy(SPEECH),
        torch.from_numpy(SPEECH).requires_grad_(),
        SPEECH[None],
        torch.from_numpy(SPEECH)[None],
        [SPEECH],
        [SPEECH.tolist()],
        (torch.from_numpy(SPEECH),),
        [SPEECH[:, None]],
        np.round(SPEECH * 32768).astype(np.int16),
        torch.from_numpy(np.round(SPEECH * 32768).astype(np.int16)),
    ],
    ids=lambda audio: f"{type(audio).__name__}-{getattr(audio, 'dtype', '')}",
)
def test_forms_of_one_recording(audio):
    np.testing.assert_array_equal(plain(audio), plain(SPEECH))


def test_read_only_and_half_precision_audio():
    frozen = SPEECH.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(plain(frozen), plain(SPEECH))
    half = torch.from_numpy(SPEECH).bfloat16()
    np.testing.assert_array_equal(plain(half), plain(half.float()))


def test_a_recording_shorter_than_a_window_is_filled_up_with_silence():
    filled = np.concatenate([SPEECH[5000:5100], np.zeros(300, np.float32)])
    np.testing.assert_array_equal(plain(SPEECH[5000:5100]), plain(filled))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([], "raw_speech is empty"),
        (np.zeros(0), "Recording 0 is empty"),
        ([SPEECH, SPEECH[:0]], "Recording 1 is empty"),
        (np.stack([SPEECH, SPEECH], axis=1), "channels"),
        ([SPEECH, np.stack([SPEECH, SPEECH], axis=1)], r"Recording 1 has shape \(47840, 2\); it must be mono"),
        ([np.stack([SPEECH, SPEECH])], r"shape \(2, 47840\)"),
        (np.zeros((2, 2, 400)), "neither one recording"),
        (np.array([0, np.nan, 0]), "Recording 0 is not finite: sample 1 is nan"),
        ([SPEECH, np.array([-np.inf, 0])], "Recording 1 is not finite: sample 0 is -inf"),
        (SPEECH * 32768, "Divide 16-bit audio by 32768"),
        ((SPEECH * 32768).astype(np.int32), "int32; give floats"),
        ([0, 1, 2], "int64; give floats"),
        (np.zeros(1000, complex), "complex128; give floats"),
    ],
)
def test_bad_audio_is_refused(audio, message):
    with pytest.raises(ValueError, match=message):
        PLAIN(audio, sampling_rate=RATE)


@pytest.mark.parametrize("audio", ["speech.flac", {"samples": SPEECH}, None, ["speech.flac"]])
def test_what_is_not_samples_is_refused(audio):
    with pytest.raises(TypeError, match="Decode files first"):
        PLAIN(audio, sampling_rate=RATE)


def test_sampling_rate(monkeypatch):
    with pytest.raises(ValueError, match="8000 Hz, this extractor needs 16000 Hz"):
        PLAIN(SPEECH, sampling_rate=8000)
    warnings = []
    monkeypatch.setattr(speech_features.logger, "warning_once", warnings.append)
    np.testing.assert_array_equal(PLAIN(SPEECH, return_tensors="np").input_features, plain(SPEECH))
    assert len(warnings) == 1
    assert "pass sampling_rate" in warnings[0]


def test_padding_options():
    batch = [SPEECH[:4000], SPEECH[:8000]]  # 23 and 48 frames
    assert PLAIN(batch, sampling_rate=RATE, return_tensors="pt").input_features.shape == (2, 48, 80)
    assert plain(batch, pad_to_multiple_of=32).shape == (2, 64, 80)
    assert plain(batch, padding="max_length", max_length=100).shape == (2, 100, 80)
    unpadded = PLAIN(batch, sampling_rate=RATE, padding=False)
    assert [len(features) for features in unpadded.input_features] == [23, 48]
    assert [mask.sum() for mask in unpadded.attention_mask] == [23, 48]
    assert "attention_mask" not in PLAIN(batch, sampling_rate=RATE, return_attention_mask=False)
    with pytest.raises(ValueError, match="max_length"):
        plain(batch, padding="max_length")
    with pytest.raises(ValueError, match="max_length"):
        plain(batch, truncation=True)


def test_truncation_comes_before_normalisation():
    extractor = EntmaxAsrFeatureExtractor()
    options = {"truncation": True, "return_tensors": "np", "sampling_rate": RATE}
    cut = extractor([SPEECH, SPEECH[:4000]], max_length=30, **options)
    assert cut.attention_mask.sum(axis=1).tolist() == [30, 23]
    same = extractor(SPEECH[: 400 + 29 * 160], sampling_rate=RATE, return_tensors="np").input_features
    np.testing.assert_array_equal(cut.input_features[:1], same)
    assert extractor(SPEECH, max_length=30, pad_to_multiple_of=16, **options).input_features.shape[1] == 32


def test_results_can_be_trained_on():
    features = EntmaxAsrFeatureExtractor()(SPEECH, sampling_rate=RATE, return_tensors="pt").input_features
    weight = torch.ones(80, requires_grad=True)
    (features * weight).sum().backward()  # an inference tensor would be refused here
    assert weight.grad is not None


def test_a_default_device_or_dtype_of_the_caller_changes_nothing():
    feature_extraction_entmax_asr._window_and_filters.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            features = plain(SPEECH)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(features, plain(SPEECH))
    assert features.dtype == np.float32


def test_settings_travel_as_json_and_nothing_else(tmp_path):
    extractor = EntmaxAsrFeatureExtractor(feature_size=40, hop_ms=12.5, cmvn="none")
    extractor(SPEECH, sampling_rate=RATE)
    saved = json.loads(extractor.to_json_string())
    assert saved == extractor.to_dict()
    assert saved.keys() == EntmaxAsrFeatureExtractor().to_dict().keys()
    extractor.save_pretrained(tmp_path)
    assert (tmp_path / "feature_extraction_entmax_asr.py").exists()
    for copied in (
        EntmaxAsrFeatureExtractor.from_pretrained(tmp_path),
        AutoFeatureExtractor.from_pretrained(tmp_path),
        EntmaxAsrFeatureExtractor(**saved),
        pickle.loads(pickle.dumps(extractor)),
        copy.deepcopy(extractor),
    ):
        assert type(copied) is EntmaxAsrFeatureExtractor
        assert copied.hop_samples == 200
        np.testing.assert_array_equal(
            copied(SPEECH, sampling_rate=RATE, return_tensors="np").input_features,
            extractor(SPEECH, sampling_rate=RATE, return_tensors="np").input_features,
        )
    assert EntmaxAsrFeatureExtractor.from_pretrained(tmp_path, cmvn="utterance").cmvn == "utterance"


def test_statistics_may_be_arrays():
    extractor = EntmaxAsrFeatureExtractor(
        feature_size=3, cmvn="global", cmvn_mean=np.zeros(3, np.float32), cmvn_std=torch.ones(3)
    )
    assert json.loads(extractor.to_json_string())["cmvn_std"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"feature_size": 2}, "feature_size is 2; .* at least 3"),
        ({"feature_size": 80.5}, "feature_size is 80.5; it must be a whole number"),
        ({"feature_size": 128}, "feature_size is 128, too many for a spectrum of 257"),
        ({"sampling_rate": 16}, "at least 1000 Hz"),
        ({"hop_ms": 0}, "hop_ms is 0"),
        ({"hop_ms": float("nan")}, "hop_ms is nan"),
        ({"window_ms": 5}, "window_ms is 5; it must not be shorter than hop_ms, 10"),
        ({"version": 3}, "version is 3; this package knows 1 to 2"),
        ({"cmvn": "speaker"}, "cmvn is 'speaker'; use 'utterance', 'global', 'running' or 'none'"),
        ({"cmvn_mean": [0.0] * 80}, "give both or neither"),
        ({"cmvn_mean": [0.0] * 79, "cmvn_std": [1.0] * 80}, "cmvn_mean must be 80 finite numbers"),
        ({"cmvn_mean": [0.0] * 80, "cmvn_std": [float("inf")] * 80}, "cmvn_std must be 80 finite numbers"),
        ({"cmvn_mean": [0.0] * 80, "cmvn_std": [0.0] * 80}, "cmvn_std must be positive"),
        ({"padding_side": "left"}, "use 'right'"),
        ({"return_attention_mask": 1e30}, "return_attention_mask is 1e\\+30; it must be true or false"),
        ({"padding_value": float("nan")}, "padding_value is nan"),
    ],
)
def test_bad_settings_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        EntmaxAsrFeatureExtractor(**settings_)


def test_works_in_a_forked_worker():
    expected = plain(SPEECH)
    with multiprocessing.get_context("fork").Pool(1, torch.set_num_threads, (1,)) as pool:
        np.testing.assert_array_equal(pool.apply(plain, (SPEECH,)), expected)


@pytest.mark.parametrize("options", [{}, {"hop_ms": 12.5, "window_ms": 32}, {"sampling_rate": 11_025}])
def test_frames_of_samples_and_samples_of_frames(options):
    extractor = EntmaxAsrFeatureExtractor(**options)
    counts = np.arange(1, 6 * extractor.hop_samples + extractor.window_samples)
    frames = extractor.num_frames(counts)
    assert frames.tolist() == [extractor.num_frames(int(count)) for count in counts]
    assert frames.min() == 1
    for number in np.unique(frames):
        assert min(extractor.longest_samples(int(number)), counts[-1]) == counts[frames == number].max()
    audio = np.zeros(extractor.longest_samples(3), dtype=np.float32)
    rate = extractor.sampling_rate
    assert extractor(audio, sampling_rate=rate)["input_features"][0].shape[0] == 3
    assert extractor.seconds_per_frame == extractor.hop_samples / rate
    assert extractor.shortest_samples == extractor.window_samples


def test_features_go_where_they_are_wanted():
    made = EntmaxAsrFeatureExtractor()(SPEECH, sampling_rate=RATE, return_tensors="pt", device="meta")
    assert {name: tensor.device.type for name, tensor in made.items()} == dict.fromkeys(made, "meta")

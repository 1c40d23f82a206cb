"""Audio files block by block: the same samples as read at once, and the same refusals."""

import itertools

import numpy as np
import pytest
import soundfile

from hf_entmax_asr.audio import announced_seconds, audio_blocks, read_audio, resampling
from hf_entmax_asr.audio import blocks as blocks_module
from hf_entmax_asr.audio.resampling import resample, resample_blocks


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr(blocks_module, "BLOCK_S", 0.25)


def tone(rate: int, seconds: float = 1.3) -> np.ndarray:
    return 0.3 * np.sin(np.arange(int(seconds * rate)) * 0.05).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"), [("wav", 16000, 2), ("flac", 44100, 1), ("ogg", 22050, 2), ("mp3", 48000, 1)]
)
def test_blocks_are_the_whole_file(tmp_path, short_blocks, suffix, rate, channels):
    file = tmp_path / f"a.{suffix}"
    soundfile.write(file, np.stack([tone(rate)] * channels, axis=1), rate)
    found = list(audio_blocks(file))
    assert len(found) > 3
    np.testing.assert_allclose(np.concatenate(found), read_audio(file), atol=1e-6)
    assert announced_seconds(file) == pytest.approx(1.3, abs=0.1)


def test_what_only_ffmpeg_reads_comes_in_blocks_too(tmp_path, short_blocks):
    av = pytest.importorskip("av")
    file = tmp_path / "a.m4a"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(16000)[None], format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = list(audio_blocks(file))
    assert len(found) > 3
    np.testing.assert_array_equal(np.concatenate(found), read_audio(file))
    assert announced_seconds(file) is None


@pytest.mark.parametrize(("old", "new"), [(44100, 16000), (8000, 16000), (16000, 11025), (44099, 16000)])
def test_resampling_in_blocks_is_resampling_at_once(monkeypatch, old, new):
    monkeypatch.setattr(resampling, "LARGEST_BANK", 2**19)  # the last one goes by the table
    waveform = np.random.default_rng(0).standard_normal(3 * old + 77).astype(np.float32)
    cuts = [0, 1, 50, old // 2, old // 2, 2 * old + 5, len(waveform)]
    blocks = [waveform[a:b] for a, b in itertools.pairwise(cuts)]
    np.testing.assert_allclose(
        np.concatenate(list(resample_blocks(blocks, old, new))), resample(waveform, old, new), atol=1e-5
    )


def test_faults_are_told_with_the_name_of_the_file(tmp_path):
    cut = tmp_path / "cut.wav"
    soundfile.write(cut, tone(16000), 16000)
    cut.write_bytes(cut.read_bytes()[:-2000])
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.array([0.1, np.nan] * 800, np.float32), 16000, subtype="FLOAT")
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0), 16000)
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    nothing = tmp_path / "nothing.flac"
    nothing.write_bytes(b"")
    for file, message in (
        (nothing, "the file is empty"),
        (cut, "cut short"),
        (nan, "NaN"),
        (empty, "no audio samples"),
        (text, "cannot be decoded"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            list(audio_blocks(file))
        assert str(caught.value).startswith(str(file))
    with pytest.raises(FileNotFoundError):
        list(audio_blocks(tmp_path / "missing.wav"))

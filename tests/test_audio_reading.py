"""Reading audio files: what is decoded, mixed and resampled, and what is refused."""

import io

import numpy as np
import pytest
import soundfile

from hf_entmax_asr.audio import audio_duration, read_audio


def tone(seconds=0.2, rate=16_000, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("ogg", "OPUS")]
)
def test_files_cut_short_are_refused(tmp_path, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000)
    soundfile.write(path, noise, 16_000, subtype=subtype)
    assert len(read_audio(path)) == 32_000
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    with pytest.raises(ValueError, match=r"a\.\w+: (the file is cut short|cannot be decoded)"):
        read_audio(path)
    with pytest.raises(ValueError, match="cut short"):
        audio_duration(path)


def test_audio_comes_from_bytes_path_or_both(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(), 16_000, subtype="FLOAT")
    content = path.read_bytes()
    for item in (path, str(path), {"path": str(path), "bytes": None}, {"path": None, "bytes": content}):
        waveform = read_audio(item)
        assert waveform.dtype == np.float32
        np.testing.assert_array_equal(waveform, tone())
    np.testing.assert_array_equal(read_audio({"path": "elsewhere.wav", "bytes": content}), tone())


def test_channels_are_mixed_by_their_mean(tmp_path):
    left, right = tone(hertz=300.0), tone(hertz=700.0)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "stereo.wav"), (left + right) / 2, atol=1e-7)


def test_unusable_audio_is_refused_by_name(tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, np.inf, 0.1]), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(ValueError, match=r"nan\.wav: 2 of 4 samples are NaN or infinite"):
        read_audio(tmp_path / "nan.wav")
    with pytest.raises(ValueError, match=r"empty\.wav: the file holds no audio samples"):
        read_audio(tmp_path / "empty.wav")
    with pytest.raises(ValueError, match=r"text\.wav: cannot be decoded .*; convert it to WAV or FLAC"):
        read_audio(tmp_path / "text.wav")
    with pytest.raises(FileNotFoundError, match=r"gone\.wav does not exist"):
        read_audio({"path": str(tmp_path / "gone.wav"), "bytes": None})
    with pytest.raises(ValueError, match="neither bytes nor a path"):
        read_audio({"path": None, "bytes": None})
    with pytest.raises(ValueError, match="no audio samples"):
        audio_duration(tmp_path / "empty.wav")


def test_a_stream_of_unknown_length_is_not_cut_short():
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), 16_000, format="WAV")
    content = bytearray(buffer.getvalue())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    assert len(read_audio({"path": None, "bytes": bytes(content)})) == len(tone())


def test_audio_is_resampled_and_rates_that_no_recording_has_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0, 48_000), 48_000, subtype="FLOAT")
    waveform = read_audio(tmp_path / "a.wav", sampling_rate=16_000)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform[300:-300], tone(1.0)[300:-300], atol=1e-4)
    with pytest.raises(ValueError, match=r"a\.wav: a sampling rate of 0 Hz is not between 1,000 and 768,000 Hz"):
        read_audio(tmp_path / "a.wav", sampling_rate=0)
    soundfile.write(tmp_path / "slow.wav", tone(), 999)
    for read in (read_audio, audio_duration):
        with pytest.raises(ValueError, match=r"a sampling rate of 999 Hz is not between 1,000 and 768,000 Hz.* header"):
            read(tmp_path / "slow.wav")

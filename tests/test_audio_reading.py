"""Reading audio files: what is decoded, mixed and resampled, and what is refused."""

import io
import os

import numpy as np
import pytest
import soundfile

from hf_entmax_asr.audio import audio_duration, read_audio, reading


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


def test_sphere_cut_short_is_refused(tmp_path):
    """libsndfile takes what is left for the whole."""
    path = tmp_path / "a.sph"
    soundfile.write(path, np.zeros(8000), 16_000, format="NIST")
    assert len(read_audio(path)) == 8000
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        ValueError, match=r"a\.sph: the file is cut short: its header announces 17024 bytes, it has 17021"
    ):
        read_audio(path)


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


@pytest.mark.parametrize(
    ("kind", "subtype"), [("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16")]
)
def test_other_containers_are_read_whole_or_refused(tmp_path, kind, subtype):
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 32_000), 16_000, format=kind, subtype="PCM_16")
    assert len(read_audio(path)) == 32_000
    assert audio_duration(path) == 2.0
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    for read in (read_audio, audio_duration):
        with pytest.raises(ValueError, match=r"cut short|cannot be decoded"):
            read(path)


def test_an_ogg_file_with_a_hole_is_refused(tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 160_000), 16_000, subtype="VORBIS")
    content = path.read_bytes()
    pages = [i for i in range(len(content)) if content[i : i + 4] == b"OggS"]
    assert len(pages) > 5
    for holed, said in (
        (content[: pages[3]] + content[pages[4] :], "its page 3 is missing"),
        (content[: pages[3] + 40] + content[pages[4] :], "not whole"),
    ):
        path.write_bytes(holed)
        for read in (read_audio, audio_duration):
            with pytest.raises(ValueError, match=said):
                read(path)


def test_what_libsndfile_does_not_read_goes_to_ffmpeg(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    waveform = read_audio(path)
    assert audio_duration(path) == pytest.approx(1.0, abs=0.15)
    assert len(waveform) == pytest.approx(16_000, abs=2400)
    assert np.abs(np.fft.rfft(waveform[4000:12_000])).argmax() == pytest.approx(220, abs=1)  # 440 Hz in half a second
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"a\.m4a: cannot be decoded"):
        read_audio(path)


def test_a_wave_file_of_an_unknown_kind_is_refused(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.1), 16_000)
    content = bytearray(path.read_bytes())
    for kind in (0xFF00, 0x0F0F, 0x0021):
        content[20:22] = kind.to_bytes(2, "little")
        path.write_bytes(content)
        for read in (read_audio, audio_duration):
            with pytest.raises(ValueError, match=r"cannot be decoded .* FFmpeg does not know"):
                read(path)


def test_a_pipe_a_folder_and_hours_in_a_small_file_are_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.wav")
    for read in (read_audio, audio_duration):
        with pytest.raises(ValueError, match=r"pipe\.wav is no regular file, but a pipe"):
            read(tmp_path / "pipe.wav")
        with pytest.raises(ValueError, match="but a folder"):
            read(tmp_path)
    soundfile.write(tmp_path / "long.flac", np.zeros((3000, 2)), 1000)
    monkeypatch.setattr(reading, "MOST_SAMPLES", 5999)
    with pytest.raises(ValueError, match=r"long\.flac: it lasts 3 s, 6,000 samples; cut it first"):
        read_audio(tmp_path / "long.flac")
    assert audio_duration(tmp_path / "long.flac") == 3.0

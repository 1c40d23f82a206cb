"""Folder corpora: the layouts, the columns, what is refused and how it is said; decoding and resampling."""

import csv
import io
import math

import datasets
import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.audio import read_audio, resample
from hf_entmax_asr.corpora.folder import load_folder


def tone(seconds=0.2, rate=16_000, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_metadata(folder, rows, columns=("file_name", "text", "speaker")):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_corpus(folder, names=("a.wav", "b.flac")):
    write_metadata(folder, [(name, f"text of {name}", f"speaker {name[0]}") for name in names])
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, tone(), 16_000)


def test_one_metadata_file_makes_one_split(tmp_path):
    write_metadata(tmp_path, [("deep/a.wav", " one two ", "ann"), ("b.ogg", "three", "")])
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "a.wav", tone(0.25, 8_000), 8_000)
    soundfile.write(tmp_path / "b.ogg", tone(0.5), 16_000)

    corpus = load_folder(tmp_path)

    assert list(corpus) == ["train"]
    assert corpus["train"].features["audio"] == datasets.Audio(sampling_rate=16_000, decode=False)
    assert corpus["train"].column_names == ["id", "audio", "text", "speaker", "duration"]
    first, second = corpus["train"]
    assert first == {
        "id": "deep/a",
        "audio": {"path": str(tmp_path / "deep" / "a.wav"), "bytes": None},
        "text": "one two",
        "speaker": "ann",
        "duration": 0.25,
    }
    assert (second["id"], second["speaker"], second["duration"]) == ("b", None, 0.5)


def test_each_folder_with_metadata_is_a_split(tmp_path):
    write_corpus(tmp_path / "train")
    write_corpus(tmp_path / "test", names=("c.wav",))
    (tmp_path / "notes").mkdir()  # no audio in it: not a split
    (tmp_path / ".cache").mkdir()

    corpus = load_folder(str(tmp_path))

    assert {name: rows["id"][:] for name, rows in corpus.items()} == {"test": ["c"], "train": ["a", "b"]}


def test_speaker_column_may_be_absent_and_other_columns_are_ignored(tmp_path):
    write_metadata(tmp_path, [("a.wav", "one", "5")], columns=("file_name", "text", "age"))
    soundfile.write(tmp_path / "a.wav", tone(), 16_000)
    assert load_folder(tmp_path)["train"][0]["speaker"] is None


def test_all_problems_are_told_at_once(tmp_path):
    write_corpus(tmp_path, names=("a.wav", "b.wav"))
    extra = [
        ("gone.wav", "text", ""),
        ("also_gone.wav", "text", ""),
        ("silent.wav", " ", ""),
        ("a.wav", "again", ""),
        ("b.flac", "twin", ""),
        ("../outside.wav", "text", ""),
        ("noise.wav", "not audio", ""),
        ("", "no name", ""),
    ]
    with open(tmp_path / "metadata.csv", "a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(extra)
    for name in ("silent.wav", "b.flac", "unlisted.wav"):
        soundfile.write(tmp_path / name, tone(), 16_000)
    (tmp_path / "noise.wav").write_bytes(b"this is text, not audio")

    with pytest.raises(ValueError, match="has problems") as error:
        load_folder(tmp_path)

    message = str(error.value)
    for expected in (
        f"2 listed but missing: {tmp_path / 'gone.wav'}, {tmp_path / 'also_gone.wav'}",
        f"1 with an empty text: {tmp_path / 'silent.wav'}",
        f"1 listed twice: {tmp_path / 'a.wav'}",
        f"1 with the name of another file but for its suffix (ids must differ): {tmp_path / 'b.flac'}",
        "1 outside the corpus folder",
        f"1 cannot be read as audio: {tmp_path / 'noise.wav'} (",
        "1 empty file_name",
        f"1 not listed in metadata.csv: {tmp_path / 'unlisted.wav'}",
    ):
        assert expected in message


def test_long_lists_of_paths_are_shortened(tmp_path):
    write_corpus(tmp_path, names=("a.wav",))
    for number in range(9):
        soundfile.write(tmp_path / f"unlisted{number}.wav", tone(0.01), 16_000)
    with pytest.raises(ValueError, match=r"9 not listed in metadata.csv: .*unlisted4.wav and 4 more"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("a.wav", "one")], ("file", "transcript"), "no column file_name and no column text; found"),
        ([("a.wav",)], ("file_name",), "no column text; found"),
        ([], ("file_name", "text"), "no rows"),
    ],
)
def test_metadata_without_its_columns_or_rows(tmp_path, rows, columns, message):
    write_metadata(tmp_path, rows, columns)
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path)


def test_folders_without_metadata(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no metadata\.csv"):
        load_folder(tmp_path)
    write_corpus(tmp_path / "train")
    (tmp_path / "test").mkdir()
    soundfile.write(tmp_path / "test" / "a.wav", tone(), 16_000)
    with pytest.raises(FileNotFoundError, match=rf"no metadata\.csv .* in {tmp_path / 'test'}$"):
        load_folder(tmp_path)
    write_metadata(tmp_path, [("a.wav", "one", "")])
    with pytest.raises(ValueError, match="keep one of the layouts"):
        load_folder(tmp_path)


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
    if suffix != "flac":  # a FLAC file shows it only when it is decoded
        write_metadata(tmp_path, [(path.name, "text", "")])
        with pytest.raises(ValueError, match=r"1 cannot be read as audio: .*cut short"):
            load_folder(tmp_path)


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
    write_metadata(tmp_path, [("empty.wav", "text", "")])
    with pytest.raises(ValueError, match="no audio samples"):
        load_folder(tmp_path)


def test_a_stream_of_unknown_length_is_not_cut_short():
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), 16_000, format="WAV")
    content = bytearray(buffer.getvalue())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    assert len(read_audio({"path": None, "bytes": bytes(content)})) == len(tone())


@pytest.mark.parametrize("from_rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_what_both_rates_can_hold(from_rate):
    random = np.random.default_rng(from_rate)
    hertz = random.uniform(50, 0.9 * min(from_rate, 16_000) / 2, 12)
    phase = random.uniform(0, 2 * np.pi, 12)

    def signal(rate):
        times = np.arange(2 * rate)[:, None] / rate
        return np.sin(2 * np.pi * hertz * times + phase).mean(axis=1)

    ours = resample(signal(from_rate), from_rate, 16_000)
    common = math.gcd(from_rate, 16_000)
    # scipy's filter with as long a reach as ours; its own default is much shorter
    up, down = 16_000 // common, from_rate // common
    taps = scipy.signal.firwin(2 * 96 * max(up, down) + 1, 0.97 / max(up, down), window=("kaiser", 9.0))
    theirs = scipy.signal.resample_poly(signal(from_rate), up, down, window=taps)
    inner = slice(500, -500)  # both take what lies beyond the ends for silence
    assert len(ours) == len(theirs) == 32_000
    np.testing.assert_allclose(ours[inner], signal(16_000)[inner], atol=2e-5)
    np.testing.assert_allclose(ours, theirs, atol=5e-4)
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=5e-5)


@pytest.mark.parametrize("from_rate", [22_050, 44_100, 48_000])
def test_resampling_removes_what_the_new_rate_cannot_hold(from_rate):
    above = np.sin(2 * np.pi * 8_300 * np.arange(from_rate) / from_rate)
    assert np.abs(resample(above, from_rate, 16_000)[500:-500]).max() < 1e-4  # 80 dB down


@given(st.integers(0, 3000), st.sampled_from([8_000, 11_025, 16_000, 44_100]), st.sampled_from([8_000, 16_000, 22_050]))
@settings(max_examples=30, deadline=None)
def test_resampled_length(count, from_rate, to_rate):
    assert len(resample(np.ones(count), from_rate, to_rate)) == -(-count * to_rate // from_rate)


def test_read_audio_resamples_and_rates_must_be_positive(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0, 48_000), 48_000, subtype="FLOAT")
    waveform = read_audio(tmp_path / "a.wav", sampling_rate=16_000)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform[300:-300], tone(1.0)[300:-300], atol=1e-4)
    with pytest.raises(ValueError, match="must be positive, got 48000 and 0 Hz"):
        read_audio(tmp_path / "a.wav", sampling_rate=0)

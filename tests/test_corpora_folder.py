"""Folder corpora: the layouts, the columns, what is refused and how it is said."""

import csv
import os

import datasets
import numpy as np
import pytest
import soundfile

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


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_list_that_is_no_regular_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is a pipe or device; it must be a regular file"):
        load_folder(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is a folder"):
        load_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["wav", "ogg"])
def test_audio_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 32_000), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    write_metadata(tmp_path, [(path.name, "text", "")])
    with pytest.raises(ValueError, match=r"1 cannot be read as audio: .*cut short"):
        load_folder(tmp_path)


def test_audio_without_samples_or_with_an_impossible_rate_is_refused(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "slow.wav", np.zeros(100), 500)
    write_metadata(tmp_path, [("empty.wav", "text", ""), ("slow.wav", "text", "")])
    with pytest.raises(ValueError, match=r"no audio samples.*slow.wav \(a sampling rate of 500 Hz is not between"):
        load_folder(tmp_path)


def test_a_list_of_json_lines_and_other_names_of_the_text_are_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), 16_000)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "./a.wav", "transcription": "one", "speaker": 7}\n\n')
    row = load_folder(tmp_path)["train"][0]
    assert (row["id"], row["text"], row["speaker"]) == ("a", "one", "7")
    (tmp_path / "metadata.csv").write_text("file_name,words\n.//a.wav,two\n")
    with pytest.raises(ValueError, match=r"both metadata\.csv and metadata\.jsonl"):
        load_folder(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    assert load_folder(tmp_path, text_column="words")["train"]["text"][:] == ["two"]
    assert [row["text"] for row in load_folder(tmp_path, streaming=True, text_column="words")["train"]] == ["two"]
    with pytest.raises(ValueError, match="no column text; found"):
        load_folder(tmp_path)


def test_audio_in_which_nothing_is_said_may_be_there_for_scores(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), 16_000)
    write_metadata(tmp_path, [("a.wav", "", "")])
    with pytest.raises(ValueError, match="1 with an empty text"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, empty_texts=True)["train"]["text"][:] == [""]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"file_name,text\na.wav,well, yes\n", "line 2: 3 fields under 2 columns: 'a.wav,well, yes'"),
        (b"file_name,text\na.wav\n", "line 2: 1 fields under 2 columns"),
        (b'file_name,text\na.wav,"one\nb.wav,"two"\n', "quotation mark left open"),
        (b'file_name,text\na.wav,"one\nb.wav,two\n', "quotation mark left open"),
        (b'file_name,text\na.wav,"one\nb.wav"\n', "line 2: the text that begins here goes over several lines"),
        (b"file_name,text,text\na.wav,one,two\n", "line 1: a column is there twice"),
        (b"file_name,text\na.wav,caf\xe9\n", "line 2: byte 0xe9 is not UTF-8.*iconv -f cp1252"),
        ("file_name,text\na.wav,one\n".encode("utf-16"), "is UTF-16; convert it: iconv"),
        (b"file_name,text\na.wav,o\0e\n", "line 2: there is a zero byte"),
        (b"file_name,text\na.wav," + b"x" * 200_000, "line 2: it has 200,006 characters"),
        (b"", "no column file_name and no column text"),
    ],
)
def test_a_list_that_is_not_what_it_seems_is_refused_with_its_line(tmp_path, content, said):
    soundfile.write(tmp_path / "a.wav", tone(), 16_000)
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        load_folder(tmp_path)
    assert str(tmp_path / "metadata.csv") in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{\n", "line 1: no JSON"),
        ("[1]\n", "line 1: a list, not an object with file_name"),
        ('{"file_name": "a.wav", "text": ["x"]}\n', r"line 1: text is \['x'\]; it must be text"),
        ('{"file_name": "a.wav", "text": "x"}\n{"text": "y"}\n', "line 2: no column file_name"),
        ("[" * 100_000, "line 1: no JSON"),
        ('{"file_name": "a.wav", "text": "x", "speaker": "\\ud800"}\n', "speaker is '.ud800', half of a character"),
    ],
)
def test_json_lines_that_are_none_are_refused_with_their_line(tmp_path, content, said):
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(ValueError, match=said):
        load_folder(tmp_path)

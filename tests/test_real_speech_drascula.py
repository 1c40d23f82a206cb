"""The corpus of Drascula: its texts and recordings, written here by their description."""

import csv
import struct
from dataclasses import replace

import numpy as np
import pytest
from experiments.real_speech import build_corpus
from experiments.real_speech.corpus_folder import ContainerError, SplitCounts
from experiments.real_speech.drascula import TABLES, read_clips, read_texts
from experiments.real_speech.drascula_corpus import FOLDER, GAME, read

from hf_entmax_asr.audio import read_audio

TEXTS = {
    "": ["", "HI.", "A NOISE FOLLOWS", ""],
    "BJ": ["", "ROOM 6, BOB."],
    "D": ["", "IT COSTS 1.10", "F...(WHISTLE) YOU", "SHORT", "MUCH MORE THAN ANYBODY SAYS"],
    "VB": ["", "NOT RECORDED"],
}
RECORDED = {"1": 300, "3": 350, "BJ1": 400, "D1": 450, "D2": 500, "D3": 550, "D4": 575, "X1": 600, "77": 650}


def data_file(texts: dict[str, list[str]]) -> bytes:
    """A drascula.dat; other languages have other texts."""
    data = b"other tables"
    blocks = b""
    for name in TABLES:
        lines = texts.get(name, [""])
        blocks += struct.pack(">H", len(lines))
        for language in range(6):
            block = b"\0\0"
            for line in lines:
                words = (line if language == 0 else f"{language}: {line}").encode("cp437") + b"\0\0"
                block += struct.pack(">H", len(words) + 2) + words
            blocks += struct.pack(">H", len(block)) + block
    return data + blocks


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The files of the package; the table's first bytes are this small table's."""
    monkeypatch.setattr("experiments.real_speech.drascula.START", data_file(TEXTS)[12:16])
    folder = tmp_path / "tree" / FOLDER
    folder.mkdir(parents=True)
    (folder / "drascula.dat").write_bytes(data_file(TEXTS))
    for name, hertz in RECORDED.items():
        seconds = 0.1 if name == "D3" else 0.6
        time = np.arange(int(seconds * 11_025)) / 11_025
        (folder / f"{name}.ALS").write_bytes((128 + 60 * np.sin(2 * np.pi * hertz * time)).astype(np.uint8).tobytes())
    return tmp_path / "tree"


def test_each_recording_finds_its_text(tree):
    clips = {clip.name: (clip.speaker, clip.text) for clip in read_clips(tree / FOLDER)}
    assert clips == {
        "1": ("HACKER", "HI."),
        "3": ("HACKER", ""),
        "D1": ("DRASCULA", "IT COSTS 1.10"),
        "D2": ("DRASCULA", "F...(WHISTLE) YOU"),
        "D3": ("DRASCULA", "SHORT"),
        "D4": ("DRASCULA", "MUCH MORE THAN ANYBODY SAYS"),
        "BJ1": ("BILLIE JEAN", "ROOM 6, BOB."),
    }
    assert list(clips) == ["1", "3", "D1", "D2", "D3", "D4", "BJ1"]


def test_damaged_texts_are_refused(tree):
    data = data_file(TEXTS)
    assert read_texts(data)["VB"] == TEXTS["VB"]
    for length in range(16, len(data), 7):
        with pytest.raises(ContainerError, match=r"cut short|damaged"):
            read_texts(data[:length])
    with pytest.raises(ContainerError, match="has no texts"):
        read_texts(b"nothing")
    (tree / FOLDER / "drascula.dat").unlink()
    with pytest.raises(ContainerError, match=r"no drascula\.dat"):
        list(read(tree, {}))


def test_the_corpus_has_the_lines_that_can_be_written_down(tree, tmp_path, monkeypatch, capsys):
    game = replace(GAME, expected={"test": SplitCounts(2, 0.0, 2)})
    monkeypatch.setitem(build_corpus.GAMES, "drascula", game)
    monkeypatch.setattr(build_corpus, "unpack", lambda deb, target: target.symlink_to(deb))
    output = tmp_path / "out" / "drascula"
    assert build_corpus.main(["drascula", "--deb", str(tree), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "test: 2 utterances, 0.00 hours, 2 named speakers" in printed
    assert "left out: 5" in printed
    for reason in (
        "no text",
        "shorter than 0.2 s",
        "spoken in several ways",
        "noises among the words",
        "more text than",
    ):
        assert f"1: {reason}" in printed or f"1: a number or sign that may be {reason}" in printed
    with open(output / "test" / "metadata.csv", encoding="utf-8", newline="") as file:
        rows = {row["file_name"]: (row["text"], row["speaker"]) for row in csv.DictReader(file)}
    assert rows == {
        "1.mp3": ("HI", "HACKER"),
        "BJ1.mp3": ("ROOM SIX BOB", "BILLIE JEAN"),
    }
    for name, hertz in (("1", 300), ("BJ1", 400)):
        waveform = read_audio(output / "test" / f"{name}.mp3")
        assert abs(np.abs(np.fft.rfft(waveform)).argmax() * 16_000 / len(waveform) - hertz) < 10
    # Its folder is not taken for another game's.
    assert build_corpus.main(["amazon_queen", "--output", str(output)]) == 1
    assert "holds the corpus of the package drascula" in capsys.readouterr().err

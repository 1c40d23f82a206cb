"""The corpus of real speech: the game's container, written here by its description, and what is made of it."""

import csv
import io
import json
import os
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from experiments.real_speech import build_corpus
from experiments.real_speech.amazon_queen import read_clips, read_files, spoken_parts
from experiments.real_speech.amazon_queen_corpus import CONTAINER, GAME, TEST, VALIDATION, split_of
from experiments.real_speech.corpus_folder import ContainerError, SplitCounts

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora.folder import load_folder

needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="no dpkg-deb here to pack and unpack a package"
)
PACKAGE = GAME.packages[0].name
PACKAGE_VARIABLE = "HF_ENTMAX_ASR_AMAZON_QUEEN"


def pascal(text: str, align: int) -> bytes:
    """A string as the game stores it: its length, itself, zeros up to a multiple of `align`, none behind nothing."""
    data = bytes([len(text)]) + text.encode()
    return data + b"\0" * (-len(data) % align if text else 0)


def dialogue(key: int, joe: list, person: list, greetings: tuple[str, str], levels: int = 1) -> bytes:
    """A .DOG file; `joe` and `person` are lists of (number, line)."""

    def lines(entries):
        return b"".join(struct.pack(">hh", 0, number) + pascal(line, 4) for number, line in entries)

    joe_at = 32 + 96 * abs(levels)
    person_at = joe_at + len(lines(joe))
    greetings_at = person_at + len(lines(person)) + 4  # a piece that is not read
    head = struct.pack(">5h6h3H", levels, 99, key, len(joe), len(person), *[0] * 6, person_at, 0, greetings_at)
    body = head + b"\0" * (joe_at - len(head)) + lines(joe) + lines(person) + b"cut!"
    return b"x" * 20 + body + pascal(greetings[0], 2) + pascal(greetings[1], 2) + b"\0" * 16


def scene(lines: list[str]) -> bytes:
    """A .CUT file: the line of the entry, then one an action."""
    at = 12
    data = struct.pack(">6h", 0, -(len(lines) - 1), 0, 0, at, 0)
    for line in lines:
        padded = bytes([len(line)]) + line.encode()
        data += padded + b"\0" * (len(data + padded) % 2 if line else 0)
    return b"x" * 20 + data


def container(files: dict[str, bytes], compression: int = 1) -> bytes:
    """A queen.1c."""
    offset, table, body = 15 + 21 * len(files), b"", b""
    for name, data in files.items():
        table += struct.pack(">12sBII", name.encode(), 1, offset + len(body), len(data))
        body += data
    return b"QTBL" + b"CEM10\0" + b"\0\0" + struct.pack(">BH", compression, len(files)) + table + body


def recording(hertz: float, seconds: float = 0.6) -> bytes:
    time = np.arange(int(seconds * 11_025)) / 11_025
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * hertz * time), 11_025, format="MP3")
    return buffer.getvalue()


# name of the recording -> (line, speaker, source)
SPOKEN = {
    "07SSSSJ1": ("Hi Bob.", "JOE", "BOB1.DOG"),
    "070000J1": ("Hi Bob.", "JOE", "BOB1.DOG"),
    "07001AJ2": ("I need 24 nets.", "JOE", "BOB1.DOG"),
    "07001AP1": ("Sorry.", "BOB", "BOB1.DOG"),
    "07XXXXP1": ("Bye Mr. King!", "BOB", "BOB1.DOG"),
    "07XXXXJ1": ("Bye.", "JOE", "BOB1.DOG"),
    "120005P1": ("No entry!", "HENRY", "HENRY.DOG"),
    "120005P2": ("This is secret^_.", "HENRY", "HENRY.DOG"),
    "130005P1": ("Joe?", "LOU", "LOU2.DOG"),
    "C1A__001": ("Look out!", None, "C1A.CUT"),
    "C1A__022": ("It's a trap...", None, "C1A.CUT"),
    "C1A__02A": ("TEN", None, "C1A.CUT"),
    "JOE00411": ("It's open", "JOE", "QUEEN2.JAS"),
    "JOE00421": ('"2B or not 2B"', "JOE", "QUEEN2.JAS"),
}
SILENT = ("BLANK000", "99SSSSSS")
WITHOUT_RECORDING = "Never recorded*03"


def game(**changes: bytes) -> bytes:
    """A container whose lines give SPOKEN, and two recordings nobody speaks in."""
    henry = [
        (5, "No entry!*00This is secret^_.*03"),
        (5, "The second of a number is not spoken.*03"),
        (6, WITHOUT_RECORDING),
    ]
    parts = "".join(f"*0{n}" for n in range(7)) + "TEN*09"  # the tenth part is called A
    files = {
        "BOB1.DOG": dialogue(
            7,
            [(0, "Hi Bob.*03"), (26, "*XY00(237,112)I need 24 nets.*16")],
            [(26, "Sorry.*02")],
            ("Bye Mr. King!*02", "Bye.*03"),
            -2,
        ),
        "HENRY.DOG": dialogue(12, [(4, "")], henry, ("", "")),
        "LOU2.DOG": dialogue(13, [(1, WITHOUT_RECORDING)], [(5, "Joe?")], ("0", "0")),
        "C1A.CUT": scene(["Look out!*01", "", "*FRIt's a trap...*02" + parts]),
        "QUEEN2.JAS": b'It\'s open*02\r\n"2B or not 2B"*14\r\nc1a.CUT',
        "QUEEN.JAS": b"\xff\x00 something else",
    }
    sounds = {f"{name}.SB": recording(300 + 50 * n) for n, name in enumerate((*SPOKEN, *SILENT))}
    return container(files | sounds | changes)


COUNTS = {
    "train": SplitCounts(11, 0.0, 2),
    "validation": SplitCounts(1, 0.0, 1),
    "test": SplitCounts(2, 0.0, 1),
}


@pytest.fixture
def package(tmp_path) -> Path:
    return make_package(tmp_path / "tree", game(), tmp_path / "game.deb")


def make_package(tree: Path, content: bytes, deb: Path) -> Path:
    file = tree / CONTAINER
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    notice = tree / GAME.copyright
    notice.parent.mkdir(parents=True)
    notice.write_text("May be given away.\n")
    (tree / "DEBIAN").mkdir()
    control = f"Package: {PACKAGE}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\n"
    (tree / "DEBIAN" / "control").write_text(control + "Description: a game\n")
    subprocess.run(["dpkg-deb", "--build", str(tree), str(deb)], check=True, capture_output=True)
    return deb


def expect(monkeypatch, counts: dict[str, SplitCounts]) -> None:
    monkeypatch.setitem(build_corpus.GAMES, "amazon_queen", replace(GAME, expected=counts))


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program: (exit status, what it printed, what it said on the error stream)."""
    expect(monkeypatch, COUNTS)

    def run(*arguments):
        return build_corpus.main([*map(str, arguments)]), *capsys.readouterr()

    return run


def test_every_recording_finds_its_line():
    clips, silent = read_clips(game())
    assert {clip.name: (clip.text, clip.speaker, clip.source) for clip in clips} == SPOKEN
    assert [clip.name for clip in clips] == sorted(SPOKEN)
    assert silent == sorted(SILENT)
    files = read_files(game())
    assert all(clip.audio == files[f"{clip.name}.SB"] for clip in clips)


def test_a_line_is_cut_at_its_stage_directions():
    assert spoken_parts("*FRHe started it!*07") == ["", "He started it!", ""]
    assert spoken_parts("Go.*XY00(237,112)Now!") == ["Go.", "Now!"]
    assert spoken_parts("plain") == ["plain"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"RIFF" + data[4:], "begins with b'RIFF'"),
        (lambda data: data[:8], "begins with b'QTBL'|not a queen.1c"),
        (lambda data: data[:12] + b"\2" + data[13:], "compression 2"),
        (lambda data: data[:100], "cut short: 100 bytes do not hold a table"),
        (lambda data: data[:-10], "cut short: 99SSSSSS.SB ends at"),
    ],
)
def test_a_damaged_container_is_refused(damage, message):
    with pytest.raises(ContainerError, match=message):
        read_clips(damage(game()))


@pytest.mark.parametrize("name", ["BOB1.DOG", "C1A.CUT"])
def test_a_damaged_file_in_the_container_is_named(name):
    whole = read_files(game())[name]
    for length in (0, 25, 60, len(whole) - 40):
        with pytest.raises(ContainerError, match=f"{name} in the container is damaged"):
            read_clips(game(**{name: whole[:length]}))


def test_no_character_is_in_two_splits():
    assert not set(VALIDATION) & set(TEST)
    assert {split_of(s) for s in (None, "JOE", "DOG")} == {"train"}
    assert {split_of(s) for s in TEST} == {"test"}
    assert {split_of(s) for s in VALIDATION} == {"validation"}


@needs_dpkg
def test_the_corpus_is_a_folder_that_training_reads(call, package, tmp_path):
    output = tmp_path / "cache" / "real_speech"
    status, printed, complaint = call("--deb", package, "--output", output)
    assert (status, complaint) == (0, "")
    assert "test: 2 utterances, 0.00 hours, 1 named speakers" in printed
    splits = load_folder(output)
    texts = {name: dict(zip(rows["id"], rows["text"], strict=True)) for name, rows in splits.items()}
    assert texts["test"] == {"120005P1": "NO ENTRY", "120005P2": "THIS IS SECRET"}
    assert texts["validation"] == {"130005P1": "JOE"}
    assert texts["train"].keys() == SPOKEN.keys() - texts["test"].keys() - texts["validation"].keys()
    assert texts["train"]["JOE00421"] == "TO BE OR NOT TO BE"
    speakers = dict(zip(splits["train"]["id"], splits["train"]["speaker"], strict=True))
    assert speakers["07001AP1"] == "BOB"
    assert speakers["C1A__022"] is None
    with open(output / "train" / "metadata.csv", encoding="utf-8", newline="") as file:
        rows = {row["file_name"]: row for row in csv.DictReader(file)}
    assert rows["JOE00421.mp3"]["raw_text"] == '"2B or not 2B"'
    assert rows["JOE00421.mp3"]["source"] == "QUEEN2.JAS"
    # The recordings are the game's own bytes, and each stands beside its own line: the tone tells.
    clips = {clip.name: clip.audio for clip in read_clips(game())[0]}
    assert all((output / "train" / f"{name}.mp3").read_bytes() == clips[name] for name in texts["train"])
    waveform = read_audio(splits["test"][1]["audio"])
    peak = np.abs(np.fft.rfft(waveform)).argmax() * 16_000 / len(waveform)
    assert abs(peak - (300 + 50 * list(SPOKEN).index("120005P2"))) < 10
    assert (output / "copyright").read_text() == "May be given away.\n"
    assert os.listdir(output.parent) == ["real_speech"]  # nothing half-made beside it


@needs_dpkg
def test_a_second_call_does_nothing(call, package, tmp_path):
    output = tmp_path / "corpus"
    assert call("--deb", package, "--output", output)[0] == 0
    package.unlink()
    status, printed, _ = call("--deb", package, "--output", output)
    assert status == 0
    assert "(already there)" in printed
    assert "train: 11 utterances" in printed


@needs_dpkg
def test_a_corpus_of_an_older_form_is_made_anew(call, package, tmp_path):
    output = tmp_path / "corpus"
    output.mkdir()
    (output / "corpus.json").write_text(json.dumps({"form": 0}))
    (output / "stale").touch()
    status, printed, _ = call("--deb", package, "--output", output)
    assert status == 0
    assert "(made)" in printed
    assert not (output / "stale").exists()


@needs_dpkg
def test_other_counts_than_known_are_refused_and_nothing_is_written(call, monkeypatch, package, tmp_path):
    expect(monkeypatch, COUNTS | {"train": SplitCounts(12, 0.0, 2)})
    status, _, complaint = call("--deb", package, "--output", tmp_path / "out" / "corpus")
    assert status == 1
    assert "train: 11 utterances, 0.00 hours, 2 named speakers; expected 12 utterances" in complaint
    assert "test:" not in complaint
    assert os.listdir(tmp_path / "out") == []


@needs_dpkg
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JOE00411.SB": b"not a recording at all"}, "the recording JOE00411 cannot be read"),
        ({"QUEEN2.JAS": b"It's 77*02"}, 'no rule says how to speak the subtitle "It\'s 77"'),
        ({"C1A.CUT": b"x" * 24}, "C1A.CUT in the container is damaged"),
    ],
)
def test_damage_is_named_and_nothing_is_written(call, tmp_path, changes, message):
    deb = make_package(tmp_path / "tree", game(**changes), tmp_path / "game.deb")
    status, _, complaint = call("--deb", deb, "--output", tmp_path / "corpus")
    assert status == 1
    assert message in complaint
    assert not (tmp_path / "corpus").exists()


def test_a_folder_of_something_else_is_left_alone(call, tmp_path):
    (tmp_path / "letters").touch()
    status, _, complaint = call("--output", tmp_path)
    assert status == 1
    assert "was not made by this program" in complaint
    assert os.listdir(tmp_path) == ["letters"]


@needs_dpkg
def test_what_is_not_the_package_is_refused(call, tmp_path):
    status, _, complaint = call("--deb", tmp_path / "no.deb", "--output", tmp_path / "corpus")
    assert (status, complaint) == (1, f"build_corpus.py: there is no package at {tmp_path / 'no.deb'}\n")
    (tmp_path / "bad.deb").write_bytes(b"nothing of the kind")
    status, _, complaint = call("--deb", tmp_path / "bad.deb", "--output", tmp_path / "corpus")
    assert status == 1
    assert "bad.deb cannot be unpacked" in complaint


def programs(folder: Path, monkeypatch, **scripts: str) -> None:
    """Only these programs are to be found, beside dpkg-deb and what a shell script needs."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    for name in ("dpkg-deb", "tar", "xz", "cp", "sh"):
        if (found := shutil.which(name)) is not None:
            (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))


@needs_dpkg
def test_the_package_is_fetched_with_apt(call, monkeypatch, package, tmp_path):
    programs(
        tmp_path / "bin",
        monkeypatch,
        apt_get=f'[ "$*" = "download {PACKAGE}" ] && cp {package} x_1_all.deb',
    )
    status, printed, complaint = call("--output", tmp_path / "corpus")
    assert (status, complaint) == (0, "")
    assert "train: 11 utterances" in printed


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({}, "there is no apt-get on this machine"),
        ({"apt_get": "echo 'E: Unable to locate package' >&2; exit 100"}, "failed: E: Unable to locate package"),
    ],
)
def test_without_a_package_it_says_where_to_get_it(call, monkeypatch, tmp_path, script, message):
    programs(tmp_path / "bin", monkeypatch, **script)
    status, _, complaint = call("--output", tmp_path / "corpus")
    assert status == 1
    assert message in complaint
    assert "give it with --deb" in complaint


def test_without_mp3_it_says_what_to_install(call, monkeypatch, tmp_path):
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "WAV"})
    status, _, complaint = call("--output", tmp_path / "corpus")
    assert status == 1
    assert "cannot read MP3; use 1.1 or newer" in complaint


@pytest.mark.skipif(
    PACKAGE_VARIABLE not in os.environ,
    reason=f"needs Debian's game: apt-get download {PACKAGE}, and its file in {PACKAGE_VARIABLE}",
)
def test_the_real_package_gives_the_known_corpus(tmp_path):
    output = tmp_path / "corpus"
    counts = build_corpus.build(GAME, [Path(os.environ[PACKAGE_VARIABLE])], output)
    assert sum(split.utterances for split in counts.values()) == 6543
    assert sum(split.speakers for split in counts.values()) == 30
    splits = load_folder(output)
    rows = {row["id"]: row for split in splits.values() for row in split.remove_columns("audio")}
    assert rows["C1A__041"]["text"] == "IS IT THE COMMANDER ROCKET AUTHENTIC SECRET POCKET ROCKET DECODER RING COUPON"
    assert rows["290020P1"]["text"] == "HUH THAT'S A PRETTY WEIRD HOBBY"
    # Lines and recordings belong together: no voice is faster than speech can be, and longer lines take longer. (With
    # each line at its neighbour's recording, the correlation is 0.05 to 0.14.)
    for kind in ("[0-9]", "JOE", "(?!JOE)[A-Z]"):  # dialogues, remarks, scenes
        of_kind = [row for name, row in rows.items() if re.match(kind, name)]
        lengths = np.array([(len(row["text"]), row["duration"]) for row in of_kind])
        assert (lengths[:, 0] / lengths[:, 1]).max() < 27
        assert np.corrcoef(lengths.T)[0, 1] > 0.75
    for row in splits["test"].select(range(0, 643, 100)):
        assert len(read_audio(row["audio"])) == pytest.approx(16_000 * row["duration"], rel=0.2)

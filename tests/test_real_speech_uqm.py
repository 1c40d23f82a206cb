"""The corpus of The Ur-Quan Masters: archives written here, cut at the pauses between their lines."""

import csv
import io
import os
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from experiments.real_speech import build_corpus, uqm_corpus
from experiments.real_speech.corpus_folder import ContainerError, SplitCounts
from experiments.real_speech.pauses import Pause, cut_times, find_pauses, levels
from experiments.real_speech.uqm import read_entries, read_replies
from experiments.real_speech.uqm_corpus import CONTENT, GAME, SPLITS, VOICE, split_of, without_quotes

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora.folder import load_folder

RATE = 11_025
PACKAGES_VARIABLE = "HF_ENTMAX_ASR_UQM"


def speech(*parts: tuple[float, float], noise: float = 1e-3) -> np.ndarray:
    """Tones of (hertz, seconds) over a little noise; 0 hertz is a pause."""
    generator = np.random.default_rng(0)
    pieces = [0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE) for hertz, seconds in parts]
    waveform = np.concatenate(pieces)
    return (waveform + noise * generator.standard_normal(len(waveform))).astype(np.float32)


def ogg(waveform: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, RATE, format="OGG")
    return buffer.getvalue()


def test_pauses_are_what_is_as_quiet_as_the_quietest():
    waveform = speech((0, 0.2), (300, 1.0), (0, 0.3), (400, 0.8), (0, 0.08), (500, 0.5), (0, 0.5), (600, 0.3), (0, 0.4))
    assert len(levels(waveform, RATE)) == 408
    found = find_pauses(waveform, RATE)  # that of 0.08 s is part of a word; before and behind the speech is none
    assert [(round(p.start, 1), round(p.end, 1)) for p in found] == [(1.2, 1.5), (2.9, 3.4)]
    assert find_pauses(waveform[:50], RATE) == []


def test_a_cut_is_in_a_long_pause_nearby():
    pauses = [Pause(1.0, 1.2), Pause(2.0, 2.4), Pause(2.6, 2.8), Pause(6.0, 6.2)]
    assert cut_times(pauses, [1.4, 2.3, 4.5, 5.9]) == pytest.approx([1.1, 2.2, None, 6.1])
    assert cut_times(pauses, [1.9]) == pytest.approx([2.2])  # the longest
    assert cut_times([Pause(1.0, 1.6), Pause(1.9, 2.8)], [1.4]) == pytest.approx([1.3])  # the nearest of long ones
    # A pause that the next line needs is left to it.
    assert cut_times(pauses, [1.7, 2.2, 2.9]) == pytest.approx([1.1, 2.2, 2.7])
    # Two lines do not end in one pause, and not out of order.
    assert cut_times(pauses[:1], [1.05, 1.2]) == pytest.approx([1.1, None])
    assert cut_times([], [1.0]) == [None]


def test_entries_of_a_text():
    text = "#(ONE)\tspathi-000.ogg\nFirst line.\n Second. \n\n#(two)\nNot spoken\n#(THREE)  spathi-001.ogg\n"
    assert list(read_entries(text)) == [
        ("ONE", "spathi-000.ogg", ("First line.", "Second.")),
        ("two", "", ("Not spoken",)),
        ("THREE", "spathi-001.ogg", ()),
    ]


def test_quotation_marks_go_and_apostrophes_stay():
    lines = ("`Don't go', he said, `or", "the others' ship' will", "leave. It's `Huffi-Muffi'.")
    assert [" ".join(line.split()) for line in without_quotes(lines)] == [
        "Don't go , he said, or",
        "the others ship' will",
        "leave. It's Huffi-Muffi .",
    ]


def test_characters_of_one_family_are_in_one_split():
    assert {split_of(role) for role in ("yehat", "yehatrebels")} == {"test_other"}
    assert {split_of(role) for role in ("spathi", "safeones", "starbase", "commander")} == {"train"}
    roles = [role for roles in SPLITS.values() for role in roles]
    assert len(roles) == len(set(roles))


TWO_LINES = ((300, 1.0), (0, 0.4), (400, 1.0))
VOICES = {
    "arilou": {
        "arilou.txt": "#(HELLO)\tarilou-000.ogg\nHello there, *friends*!\nCome and dance.\n\n"
        "#(COSTS)\tarilou-001.ogg\nIt costs 100 crew.\nSeek us at 43.8 : 637.2\n"
        "#(GONE)\tarilou-002.ogg\nNever recorded\n#(ASK)\nNot spoken at all\n"
        "#(AGAIN)\tarilou-000.ogg\nHello again\n#(NOTHING)\tarilou-003.ogg\n",
        # The first time is in the middle of a word.
        "arilou.ts": "#(HELLO) 950\n#(COSTS) 1200\n#(GONE) \n#(ASK) \n#(AGAIN) \n#(NOTHING) \n",
        "arilou-000.ogg": ogg(speech(*TWO_LINES)),
        "arilou-001.ogg": ogg(speech(*TWO_LINES)),
        "arilou-003.ogg": ogg(speech(*TWO_LINES)),
    },
    "orz": {
        "orz.ts": "#(A) 1000,1000\n#(B) 900\n#(C) \n#(D) 1000,77\n",
        "orz-000.ogg": ogg(speech((300, 1.5), (400, 1.0), (0, 0.4), (500, 1.0))),
        "orz-001.ogg": ogg(speech((300, 12), (400, 12))),
        "orz-002.ogg": ogg(speech((600, 1.0))),
        "orz-003.ogg": ogg(speech((700, 2.4))),
    },
    "probe": {
        "probe.ts": "#(A) \n",
        "probe.txt": "#(A) probe-000.ogg\nPEACE\n",
        "probe-000.ogg": ogg(speech((300, 1.0))),
    },
}
CONTENTS = {
    "arilou": "not read, for the voices have their own",
    "orz": "#(A)\torz-000.ogg\nWe are the Orz\nand happy too,\nin a way\n#(B)\torz-001.ogg\nToo long\nto be cut\n"
    "#(C)\torz-002.ogg\nMuch more text than anybody can say in such a time, as it seems to us\n"
    "#(D)\torz-003.ogg\nTimes of three lines\nbut two are there\n",
}


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree", VOICES, CONTENTS)


def write_tree(tree, voices, contents):
    for path in (VOICE, CONTENT):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(tree / VOICE, "w") as archive:
        for role, files in voices.items():
            for name, data in files.items():
                archive.writestr(f"3dovoice/{role}/{name}", data)
    with zipfile.ZipFile(tree / CONTENT, "w") as archive:
        for role, text in contents.items():
            archive.writestr(f"base/comm/{role}/{role}.txt", text)
    return tree


def test_replies_have_their_lines_and_times(tree):
    replies = {reply.name: reply for reply in read_replies(tree / VOICE, tree / CONTENT)}
    assert list(replies) == [
        "arilou-000", "arilou-001", "arilou-002", "arilou-003", "orz-000", "orz-001", "orz-002", "orz-003", "probe-000",
    ]  # fmt: skip
    assert replies["orz-000"].seconds == (1.0, 1.0)
    assert replies["orz-002"].seconds == ()
    assert replies["orz-003"].seconds is None  # two times for one line break
    assert replies["arilou-002"].audio is None
    assert replies["orz-001"].audio == VOICES["orz"]["orz-001.ogg"]


def test_the_corpus_is_cut_at_pauses(tree, tmp_path, monkeypatch, capsys):
    counts = {
        "train": SplitCounts(3, 0.0, 1),
        "validation": SplitCounts(0, 0.0, 0),
        "test_other": SplitCounts(0, 0.0, 0),
    }
    monkeypatch.setitem(build_corpus.GAMES, "uqm", replace(GAME, expected=counts | {"test": SplitCounts(3, 0.0, 1)}))
    monkeypatch.setattr(build_corpus, "unpack", lambda deb, target: target.symlink_to(deb))
    output = tmp_path / "out" / "uqm"
    assert build_corpus.main(["uqm", "--deb", str(tree), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    rows = {}
    for split in ("train", "test"):
        with open(output / split / "metadata.csv", encoding="utf-8", newline="") as file:
            rows |= {row["file_name"]: (split, row["text"], row["speaker"]) for row in csv.DictReader(file)}
    assert rows == {
        "arilou-000-00.mp3": ("test", "HELLO THERE FRIENDS", "ARILOU"),
        "arilou-000-01.mp3": ("test", "COME AND DANCE", "ARILOU"),
        "arilou-001-00.mp3": ("test", "IT COSTS ONE HUNDRED CREW", "ARILOU"),
        "orz-000-00.mp3": ("train", "WE ARE THE ORZ AND HAPPY TOO", "ORZ"),
        "orz-000-02.mp3": ("train", "IN A WAY", "ORZ"),
        "orz-003.mp3": ("train", "TIMES OF THREE LINES BUT TWO ARE THERE", "ORZ"),
    }
    for reason in (
        "replies in a synthetic voice",
        "replies whose recording is not in the package",
        "replies with the recording of another",
        "replies without text",
        "pieces of more than 20 s without a pause to cut at",
        "pieces with a number or sign that may be spoken in several ways",
        "pieces whose text is too long or too short for them",
    ):
        assert f"    1: {reason}\n" in printed + "\n", reason
    # Each clip ends in the pause behind its line: its second half has the tone of the line.
    for name, hertz in (("test/arilou-000-00", 300), ("test/arilou-000-01", 400), ("train/orz-000-02", 500)):
        waveform = read_audio(output / f"{name}.mp3")
        assert len(waveform) / 16_000 == pytest.approx(1.2, abs=0.1)
        assert abs(np.abs(np.fft.rfft(waveform)).argmax() * 16_000 / len(waveform) - hertz) < 10


def test_training_reads_the_corpus(tree, tmp_path):
    folder = tmp_path / "corpus"
    counts = build_corpus.write_splits(uqm_corpus.read(tree, Counter()), ("train", "test"), folder)
    assert counts["train"] == SplitCounts(3, 0.0, 1)
    splits = load_folder(folder)
    assert splits["test"]["id"] == ["arilou-000-00", "arilou-000-01", "arilou-001-00"]


def test_damage_is_named(tree, tmp_path):
    with pytest.raises(ContainerError, match="there is no archive"):
        list(read_replies(tree / "none.uqm", tree / CONTENT))
    (tmp_path / "bad.uqm").write_bytes(b"PK nothing")
    with pytest.raises(ContainerError, match=r"bad\.uqm .* is damaged"):
        list(read_replies(tmp_path / "bad.uqm", tree / CONTENT))
    times = {"orz": VOICES["orz"] | {"orz.ts": "#(A) 10,x\n"}}
    other = write_tree(tmp_path / "times", times, CONTENTS)
    with pytest.raises(ContainerError, match=r"orz\.ts is damaged at the times of A"):
        list(read_replies(other / VOICE, other / CONTENT))
    other = write_tree(tmp_path / "texts", {"orz": VOICES["orz"]}, {})
    with pytest.raises(ContainerError, match="there is no text of orz"):
        list(read_replies(other / VOICE, other / CONTENT))
    recordings = {"orz": VOICES["orz"] | {"orz-000.ogg": b"no recording"}}
    other = write_tree(tmp_path / "audio", recordings, CONTENTS)
    with pytest.raises(build_corpus.CorpusError, match="the recording orz-000 cannot be read"):
        list(uqm_corpus.read(other, Counter()))


def test_counts_may_differ_a_little(tree):
    expected = {"test": SplitCounts(100, 1.0, 3)}
    assert build_corpus.differences({"test": SplitCounts(101, 0.99, 3)}, expected, 0.012) == ""
    for other in (SplitCounts(102, 1.0, 3), SplitCounts(100, 1.02, 3), SplitCounts(100, 1.0, 2)):
        assert "test: " in build_corpus.differences({"test": other}, expected, 0.012)
    assert "test: " in build_corpus.differences({"test": SplitCounts(101, 1.0, 3)}, expected, 0.0)


@pytest.mark.skipif(
    PACKAGES_VARIABLE not in os.environ,
    reason=f"needs Debian's game: the files of uqm-voice and uqm-content in {PACKAGES_VARIABLE}, with a colon between",
)
def test_the_real_packages_give_the_known_corpus(tmp_path):
    debs = [Path(name) for name in os.environ[PACKAGES_VARIABLE].split(":")]
    counts = build_corpus.build(GAME, debs, tmp_path / "corpus")
    assert counts.keys() == GAME.expected.keys()
    rows = {row["id"]: row for row in load_folder(tmp_path / "corpus")["test"].remove_columns("audio")}
    assert rows["syreen-001-00"]["text"] == "HELLO AGAIN PLEASANT HUMAN"

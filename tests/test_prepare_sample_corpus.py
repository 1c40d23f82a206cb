"""The sample corpus and the script that prepares it: texts, exclusions, Ogg pages, a run over a made-up tree."""

import csv
import gzip
import importlib.util
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora.folder import load_folder

ROOT = Path(__file__).parent.parent
SAMPLE_CORPUS = ROOT / "sample_corpus"

specification = importlib.util.spec_from_file_location(
    "prepare_sample_corpus", ROOT / "scripts" / "prepare_sample_corpus.py"
)
prepare = importlib.util.module_from_spec(specification)
specification.loader.exec_module(prepare)

TRANSCRIPT = """\
; Core sounds

hello: Hello there.
digits/1: one
beep: [this is a beep]
never-recorded: Not there.
spy-iax2: IAX (note: does not say "2")
"""
COPYRIGHT = (
    "License: CC-BY-SA-3.0\n"
    + "".join(f" clause {number}\n .\n" for number in range(12))
    + "\nLicense: CC-BY-3.0\n another licence\n"
)


def write_g722(path, seconds, hertz):
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (9_000 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16_000)) / 16_000)).astype(np.int16)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.fixture
def tree(tmp_path):
    """What the two packages unpack to, in small: four clips, one of them a beep and one without a text."""
    tree = tmp_path / "tree"
    for hertz, name in enumerate(("hello", "digits/1", "beep", "spy-iax2", "no-text"), 3):
        write_g722(tree / prepare.SOUNDS / f"{name}.g722", 0.5, 100 * hertz)
    for path in (prepare.TRANSCRIPT, prepare.COPYRIGHT):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / prepare.TRANSCRIPT).write_bytes(gzip.compress(TRANSCRIPT.encode()))
    (tree / prepare.COPYRIGHT).write_text(COPYRIGHT)
    return tree


@pytest.mark.parametrize(
    ("name", "written", "spoken"),
    [
        ("x", "Press 1, or 9!", "press one or nine"),
        ("letters/at", "at [@]", "at"),
        ("letters/space", "space [ ]", "space"),
        ("spy-iax2", 'IAX (note: does not say "2")', "iax"),
        ("x", '... letters of your party\'s "first" name.', "letters of your party's first name"),
        ("x", 'a polite "don\'t call" menu', "a polite don't call menu"),
        ("x", "'quoted' o'clock", "quoted o'clock"),
        ("digits/a-m", "A.M.", "am"),
        ("x", "the open source PBX.", "the open source p b x"),
        ("x", "full-featured Inter-Asterisk", "full featured inter asterisk"),
        ("x", "de-activated, re-record, re-entered", "deactivated rerecord reentered"),
        ("spy-h323", "H.323", "h three two three"),
        ("dictate/both_help", "press * or #", "press star or pound"),
        (
            "demo-instruct",
            "dial 500 at 28.8, extension 1234",
            "dial five zero zero at twenty eight point eight extension one two three four",
        ),
    ],
)
def test_spoken_form(name, written, spoken):
    assert prepare.spoken_form(name, written) == spoken


@pytest.mark.parametrize("written", ["dial 500", "press * now", "señor", "[only a remark]", "café 24/7"])
def test_what_no_rule_covers_is_refused(written):
    with pytest.raises(ValueError, match=r"clip x: no spoken form for .* add a line to CORRECTIONS"):
        prepare.spoken_form("x", written)


@pytest.mark.parametrize(
    ("transcript", "speech"),
    [
        ("[ascending tones]", False),
        ("(10 seconds of silence)", False),
        ("<beep decending>", False),
        ("at [@]", True),
        ('IAX (note: does not say "2")', True),
        ("Please hold.", True),
    ],
)
def test_clips_of_nothing_but_a_remark_are_no_speech(transcript, speech):
    assert prepare.is_speech(transcript) is speech


def test_transcript_lines(tmp_path):
    path = tmp_path / "sounds.txt.gz"
    path.write_bytes(gzip.compress(b"; comment\n\na: One: two\nb/c:  Three \n"))
    assert prepare.read_transcript(path) == {"a": "One: two", "b/c": "Three"}
    path.write_bytes(gzip.compress(b"a: one\na: two\n"))
    with pytest.raises(ValueError, match="line 2: a second text for"):
        prepare.read_transcript(path)
    path.write_bytes(gzip.compress(b"no colon\n"))
    with pytest.raises(ValueError, match="line 1: no name in"):
        prepare.read_transcript(path)


def test_opus_copies_repeat_and_keep_their_length():
    samples = (8_000 * np.sin(np.arange(40_000) ** 1.2 / 50)).astype(np.int16)
    first, again, other = (prepare.encode_opus(samples, serial) for serial in (7, 7, 8))
    assert first == again != other
    prepare.check_copy("sweep", samples, first)  # libsndfile would refuse pages with a wrong checksum
    with pytest.raises(ValueError, match="clip sweep: 39999 samples became"):
        prepare.check_copy("sweep", samples[1:], first)
    with pytest.raises(ValueError, match="shifted by 3 of 80000 samples"):
        prepare.check_copy("sweep", np.roll(samples, -3), first)


def test_ogg_checksum_is_that_of_other_writers():
    """Pages as libsndfile writes them carry the checksum that ours gives."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(1_000), 16_000, format="OGG", subtype="VORBIS")
    page = bytearray(buffer.getvalue()[:58])  # the first page of a Vorbis stream is 58 bytes long
    written = int.from_bytes(page[22:26], "little")
    page[22:26] = bytes(4)
    assert prepare.ogg_checksum(page) == written


def test_build_from_a_small_tree(tree, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    summary = prepare.build(tree, corpus)

    assert summary == {
        "clips": 3,
        "clips_of_one_word": 2,
        "words": 4,
        "distinct_words": 4,
        "minutes": 0.03,
        "megabytes": summary["megabytes"],
        "left_out_no_speech": ["beep"],
        "text_without_audio": ["never-recorded"],
        "audio_without_text": ["no-text"],
    }
    rows = load_folder(corpus)["train"]
    assert rows["id"][:] == ["clips/digits/1", "clips/hello", "clips/spy-iax2"]
    assert rows["text"][:] == ["one", "hello there", "iax"]
    assert rows["duration"][:] == [0.5, 0.5, 0.5]
    spectrum = np.abs(np.fft.rfft(read_audio(rows[0]["audio"])))
    assert spectrum.argmax() / 0.5 == pytest.approx(400, abs=4)
    licence = (corpus / "LICENSE").read_text()
    assert "Allison Smith" in licence
    assert "clause 11\n" in licence
    assert "another licence" not in licence
    readme = (corpus / "README.md").read_text()
    assert "3 clips" in readme
    assert "`beep`" in readme


def test_main_writes_whole_or_not_at_all(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "unpack", lambda packages, folder: shutil.copytree(tree, folder / "tree"))
    place = tmp_path / "place"
    place.mkdir()
    output = place / "corpus"
    first = [
        prepare.main(["--output", str(output)]),
        {p.name: p.read_bytes() for p in output.rglob("*") if p.is_file()},
    ]
    again = [
        prepare.main(["--output", str(output)]),
        {p.name: p.read_bytes() for p in output.rglob("*") if p.is_file()},
    ]
    assert first == again
    assert first[0] == 0
    assert "left_out_no_speech: 1 (beep)" in capsys.readouterr().out

    (tree / prepare.TRANSCRIPT).write_bytes(gzip.compress(b"hello: dial 24\n"))
    assert prepare.main(["--output", str(output)]) == 1
    assert "no spoken form" in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["corpus"]
    assert {p.name: p.read_bytes() for p in output.rglob("*") if p.is_file()} == first[1]

    with pytest.raises(SystemExit):
        prepare.main(["--output", str(tree)])
    assert "is no corpus" in capsys.readouterr().err


def test_a_licence_that_changed_is_noticed():
    with pytest.raises(ValueError, match="look at its licence anew"):
        prepare.licence_text("License: GPL-2+\n some text\n")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is a program of Debian and its relatives")
def test_packages_are_unpacked(tmp_path):
    for package in prepare.PACKAGES:
        source = tmp_path / package
        (source / "DEBIAN").mkdir(parents=True)
        (source / "DEBIAN" / "control").write_text(
            f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
        )
        (source / "usr").mkdir()
        (source / "usr" / package).write_text(package)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-b", str(source), str(tmp_path / f"{package}_1_all.deb")],
            check=True,
            capture_output=True,
        )
    work = tmp_path / "work"
    work.mkdir()
    prepare.unpack(tmp_path, work)
    assert sorted(path.name for path in (work / "tree" / "usr").iterdir()) == sorted(prepare.PACKAGES)
    with pytest.raises(FileNotFoundError, match=rf"one file {prepare.PACKAGES[0]}_\*\.deb expected, 0 found"):
        prepare.unpack(work, tmp_path)


@pytest.fixture(scope="module")
def sample_rows():
    with open(SAMPLE_CORPUS / "metadata.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_sample_corpus_is_what_the_script_makes_of_its_texts(sample_rows):
    used = set()
    for row in sample_rows:
        name = row["file_name"].removeprefix("clips/").removesuffix(".opus")
        assert prepare.spoken_form(name, row["source_text"]) == row["text"]
        assert re.fullmatch(r"[a-z']+( [a-z']+)*", row["text"])
        assert int(row["words"]) == len(row["text"].split())
        for correction in prepare.CORRECTIONS:
            if correction[0] in ("*", name) and correction[1] in row["source_text"].lower():
                used.add(correction)
    assert used == set(prepare.CORRECTIONS)  # each correction has its clip


def test_sample_corpus_is_whole_and_small(sample_rows):
    rows = load_folder(SAMPLE_CORPUS)["train"]
    assert len(rows) == len(sample_rows) > 500
    assert [f"{seconds:.4f}" for seconds in rows["duration"]] == [row["duration"] for row in sample_rows]
    assert set(rows["speaker"]) == {prepare.SPEAKER}
    assert sum(path.stat().st_size for path in SAMPLE_CORPUS.rglob("*") if path.is_file()) < 8e6
    assert prepare.ATTRIBUTION in (SAMPLE_CORPUS / "LICENSE").read_text(encoding="utf-8")
    assert prepare.ATTRIBUTION in (SAMPLE_CORPUS / "README.md").read_text(encoding="utf-8")

"""Readers of phoneme labels on genuine files, damaged ones too; classes; labels at encoder positions; the aligner."""

import csv
import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_entmax_asr.analysis import (
    AlignmentError,
    Interval,
    LabelError,
    PocketsphinxAligner,
    labels_at_positions,
    labels_of,
    phoneme,
    phoneme_classes,
    place_of,
    read_ctm,
    read_label_folder,
    read_textgrid,
)
from hf_entmax_asr.analysis.phoneme_aligner import spoken_words
from hf_entmax_asr.audio import read_audio

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.61
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "Anna - words"
        xmin = 0
        xmax = 0.61
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.61
            text = "say ""hi"" 1 <exists> ! "
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 0.61
        points: size = 1
        points [1]:
            number = 0.3
            mark = "click"
    item [3]:
        class = "IntervalTier"
        name = "Anna - phones"
        xmin = 0
        xmax = 0.61
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "HH"
        intervals [3]:
            xmin = 0.5
            xmax = 0.61
            text = "AY1"
""".replace("\n", " \n")  # as Praat writes lines
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
0.61
<exists>
3
"IntervalTier"
"Anna - words"
0
0.61
1
0
0.61
"say ""hi"" 1 <exists> ! "
"TextTier"
"clicks"
0
0.61
1
0.3
"click"
"IntervalTier"
"Anna - phones"
0
0.61
3
0
0.25
""
0.25
0.5
"HH"
0.5
0.61
"AY1"
"""
FREE = SHORT.replace("0\n0.61\n<exists>\n3", '! from a program\n0s 0.61s <exists> 3 tiers ! 99 "no"')
PHONES = [Interval(0, 0.25, ""), Interval(0.25, 0.5, "HH"), Interval(0.5, 0.61, "AY1")]


def textgrid(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "a.TextGrid"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("text", [LONG, SHORT, FREE], ids=["long", "short", "free"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_textgrid_forms_and_encodings(tmp_path, text, encoding, line_end):
    marked = text.replace("Anna", "Änna").replace("\n", line_end)
    path = textgrid(tmp_path, marked, encoding)
    assert read_textgrid(path) == PHONES
    assert read_textgrid(path, "Änna - words") == [Interval(0, 0.61, 'say "hi" 1 <exists> ! ')]


def test_textgrid_big_endian_utf16(tmp_path):
    path = tmp_path / "a.TextGrid"
    path.write_bytes(b"\xfe\xff" + LONG.encode("utf-16-be"))
    assert read_textgrid(path) == PHONES


def test_every_cut_of_a_textgrid_is_noticed(tmp_path):
    """Cut after any line before the last label, the file is refused, never read in part."""
    for text in (LONG, SHORT):
        lines = text.splitlines(keepends=True)
        for kept in range(len(lines) - 1):
            with pytest.raises(LabelError, match=r"a\.TextGrid"):
                read_textgrid(textgrid(tmp_path, "".join(lines[:kept])))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"ooTextFile"', '"other"', "is not a TextGrid"),
        ('"TextGrid"', '"Pitch"', "is not a TextGrid"),
        ("xmin = 0.25", 'xmin = "x"', "line 39: a number should stand where '\"x\"' stands"),
        ('"TextTier"', '"OddTier"', "'clicks' is a 'OddTier'"),
        (
            "xmin = 0.25 \n            xmax = 0.5 ",
            "xmin = 0.2 \n            xmax = 0.5 ",
            "'HH' from 0.2 to 0.5 s begins before 0.25",
        ),
        ("xmin = 0.25 \n            xmax = 0.5 ", "xmin = 0.25 \n            xmax = 0.2 ", "ends before it begins"),
        ("xmax = 0.5 ", "xmax = 0.5.1 ", "'0.5.1' is no number"),
        ("xmin = 0.25", "xmin = nan", "line 39: a number should stand where 'nan' stands"),
        (
            "Anna - phones",
            "Anna - tones",
            "0 interval tiers could be the phonemes; it has 'Anna - words', 'Anna - tones'",
        ),
        ("Anna - words", "Ben - phones", "2 interval tiers could be the phonemes"),
    ],
)
def test_damaged_textgrids(tmp_path, old, new, message):
    assert old in LONG
    with pytest.raises(LabelError) as error:
        read_textgrid(textgrid(tmp_path, LONG.replace(old, new)))
    assert message in str(error.value)


def test_textgrids_of_other_kinds(tmp_path):
    with pytest.raises(LabelError, match="binary"):
        read_textgrid(textgrid(tmp_path, "ooBinaryFile\x08TextGrid\x00\x00"))
    with pytest.raises(LabelError, match="chronological"):
        read_textgrid(textgrid(tmp_path, '"Praat chronological TextGrid text file"\n0 1\n'))
    with pytest.raises(LabelError, match="UTF-16"):
        read_textgrid_bytes(tmp_path, b"\xff\xfeF")
    with pytest.raises(LabelError, match="0 interval tiers could be 'syllables'"):
        read_textgrid(textgrid(tmp_path, LONG), "syllables")
    absent = SHORT.split("<exists>")[0] + "<absent>\n"
    with pytest.raises(LabelError, match="it has none"):
        read_textgrid(textgrid(tmp_path, absent))


def read_textgrid_bytes(tmp_path, content):
    path = tmp_path / "b.TextGrid"
    path.write_bytes(content)
    return read_textgrid(path)


def test_the_only_tier_is_taken_whatever_its_name(tmp_path):
    only = SHORT.replace("<exists>\n3", "<exists>\n1")
    assert read_textgrid(textgrid(tmp_path, only)) == [Interval(0, 0.61, 'say "hi" 1 <exists> ! ')]


def test_labels_are_found_by_the_longest_end_of_an_id():
    one, two = [Interval(0, 1, "B")], [Interval(0, 1, "K")]
    labels = {"0001": one, "anna/0001": two}
    assert labels_of(labels, "train/anna/0001") is two
    assert labels_of(labels, "train/ben/0001") is one
    assert labels_of(labels, "0001") is one
    assert labels_of(labels, "train/anna/0002") is None


CTM = """;; comment
utt-1 1 0.00 0.10 SIL
utt-1 1 0.25 0.05 IY1_E 0.99

utt-1 1 0.10 0.15 B_B
utt-2 A 0.5 0.2 ʃ
"""


def test_ctm(tmp_path):
    path = tmp_path / "phones.ctm"
    path.write_text(CTM, encoding="utf-8")
    labels = read_ctm(path)
    assert list(labels) == ["utt-1", "utt-2"]
    assert [i.label for i in labels["utt-1"]] == ["SIL", "B_B", "IY1_E"]  # in order of time
    assert labels["utt-2"] == [Interval(0.5, 0.7, "ʃ")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("utt-1 1 0.0 0.1\n", "line 1: 'utt-1 1 0.0 0.1' is not"),
        (CTM + "utt-3 1 zero 0.1 B\n", "line 7: 'utt-3 1 zero 0.1 B' is not"),
        (CTM + "utt-2 A 0.6 0.1 B\n", "utt-2: the label 'B' from 0.6 to 0.7"),
        ("utt-1 1 0.5 -0.1 B\n", "ends before it begins"),
        (";; nothing\n", "holds no label"),
    ],
)
def test_damaged_ctm(tmp_path, text, message):
    path = tmp_path / "phones.ctm"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabelError, match=message):
        read_ctm(path)


def test_a_folder_of_labels(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "utt-9.TextGrid").write_text(LONG, encoding="utf-8")
    (tmp_path / "phones.ctm").write_text(CTM, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("nothing")
    assert sorted(read_label_folder(tmp_path)) == ["utt-1", "utt-2", "utt-9"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "utt-9.TextGrid").write_text(SHORT, encoding="utf-8")
    assert sorted(read_label_folder(tmp_path)) == ["deep/utt-9", "other/utt-9", "utt-1", "utt-2"]
    (tmp_path / "utt-1.TextGrid").write_text(LONG, encoding="utf-8")
    with pytest.raises(LabelError, match="utt-1 has labels in another file too"):
        read_label_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_label_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no file"):
        read_label_folder(tmp_path / "empty")


# classes


@pytest.mark.parametrize(
    ("label", "name"),
    [("AH0", "AH"), ("AH0_B", "AH"), ("ng", "NG"), ("B_I", "B"), ("T", "T"), ("ʃ", "ʃ"), ("tʰ", "tʰ"), ("a1", "a1")]
    + [(silence, "SIL") for silence in ("", " ", "sil", "SIL", "sp", "spn", "+SPN+", "<eps>", "SIL_B", "h#", "<p:>")],
)
def test_names_of_classes(label, name):
    assert phoneme(label) == name


def test_classes_are_ordered_by_articulation():
    classes = phoneme_classes()
    assert len(classes) == 40  # the 39 phonemes of CMUdict, and silence
    places = [place_of(name) for name in classes]
    assert len([1 for a, b in itertools.pairwise(places) if a != b]) == 10  # each of 11 groups in one piece
    assert (classes[:3], classes[-1]) == (("P", "B", "M"), "SIL")
    assert phoneme_classes({"K", "SIL", "ʃ", "B", "a"}) == ("B", "K", "a", "ʃ", "SIL")
    assert place_of("ʃ") == "other"
    with pytest.raises(ValueError, match="201 classes"):
        phoneme_classes(f"word{i}" for i in range(201))


# positions


def test_labels_at_positions():
    """Position j has its middle at (j + ½) · 40 ms: here 20, 60, 100, 140, 180 ms."""
    intervals = [
        Interval(0, 0.06, "P"),
        Interval(0.06, 0.1, "AH0"),
        Interval(0.14, 0.15, "K"),
        Interval(0.15, 0.3, "x"),
    ]
    assert labels_at_positions(intervals, 5, 0.04, ("P", "AH", "K")).tolist() == [0, 1, -1, 2, -1]
    assert labels_at_positions([], 2, 0.04, ("P",)).tolist() == [-1, -1]
    assert labels_at_positions(intervals, 1, 0.04, ("P", "AH", "K")).tolist() == [0]


def test_labels_at_positions_equal_a_loop():
    generator = torch.Generator().manual_seed(1)
    ends = (torch.rand(30, generator=generator) * 0.15).cumsum(0).tolist()
    names = ("P", "B", "K")
    intervals = [Interval(a, b, names[i % 3]) for i, (a, b) in enumerate(zip([0, *ends], ends, strict=False))]
    expected = []
    for j in range(80):
        found = [names.index(i.label) for i in intervals if i.start <= (j + 0.5) * 0.04 < i.end]
        expected.append(found[0] if found else -1)
    assert labels_at_positions(intervals, 80, 0.04, names).tolist() == expected


# the aligner


def test_spoken_words():
    assert spoken_words("It's  “Anna’s” cat -- 42, café!") == ["it's", "anna's", "cat", "42", "café"]
    assert spoken_words(" ' - !") == []


needs_pocketsphinx = pytest.mark.skipif(
    importlib.util.find_spec("pocketsphinx") is None, reason="PocketSphinx is not installed (extra phonemes)"
)


@pytest.fixture(scope="module")
def clips():
    """Recordings of the sample corpus, with their texts."""
    root = Path(__file__).parent.parent / "sample_corpus"
    with (root / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["words"] == "1"][:4]
    return [(read_audio(root / row["file_name"]), row["text"]) for row in rows]


@needs_pocketsphinx
def test_aligned_phonemes_follow_the_text_and_fill_the_audio(clips):
    aligner = PocketsphinxAligner()
    for waveform, text in clips:
        intervals = aligner.align(waveform, f"“{text.upper()}!”")
        seconds = len(waveform) / 16000
        assert intervals[0].start == 0
        assert seconds - 0.05 < intervals[-1].end <= seconds + 0.05
        assert all(a.end == pytest.approx(b.start) for a, b in itertools.pairwise(intervals))
        assert {phoneme(i.label) for i in intervals} <= set(phoneme_classes())
        assert sum(i.label != "SIL" for i in intervals) >= 2


@needs_pocketsphinx
def test_aligned_words_are_where_their_phonemes_are(clips):
    aligner = PocketsphinxAligner()
    for waveform, text in clips:
        (word,) = aligner.align_words(waveform, f"“{text.upper()}!”")
        spoken = [i for i in aligner.align(waveform, text) if i.label != "SIL"]
        assert word == Interval(spoken[0].start, spoken[-1].end, text.lower())
    with pytest.raises(AlignmentError, match=r"dictionary: xyzzyq$"):
        aligner.align_words(clips[0][0], "xyzzyq")


@needs_pocketsphinx
def test_an_alignment_does_not_depend_on_those_before_it(clips):
    first, second = PocketsphinxAligner(), PocketsphinxAligner()
    forward = [first.align(*clip) for clip in clips]
    for bad in ((np.zeros(100), "hello"), (clips[0][0], "xyzzyq hello"), (np.zeros(0), "hello"), (clips[0][0], "…")):
        with pytest.raises(AlignmentError):
            second.align(*bad)
    assert [second.align(*clip) for clip in clips[::-1]][::-1] == forward


@needs_pocketsphinx
def test_why_an_alignment_fails(clips):
    aligner = PocketsphinxAligner()
    with pytest.raises(AlignmentError, match=r"dictionary: 42, xyzzyq$"):
        aligner.align(clips[0][0], "xyzzyq has 42")
    with pytest.raises(AlignmentError, match="does not fit"):
        aligner.align(clips[0][0][:3200], "a very long sentence about many things that nobody could say so quickly")
    with pytest.raises(AlignmentError, match="no words"):
        aligner.align(clips[0][0], "!")


def test_without_pocketsphinx_the_aligner_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ImportError, match=r"hf_entmax_asr\[phonemes\]"):
        PocketsphinxAligner()

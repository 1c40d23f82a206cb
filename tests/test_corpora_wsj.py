"""WSJ as shipped: discs and single tree, shorten inside SPHERE, splits by index, Kaldi's text rules."""

import builtins
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.audio.sphere import read_header
from hf_entmax_asr.corpora import CorpusError, load_wsj, read_corpus
from hf_entmax_asr.corpora.wsj import EXPECTED, INDICES, normalise_wsj
from support.corpus_trees import WORDS, as_lists, cut, held, voice, write_wsj
from support.shorten import sphere

SPLITS = ["train_si284", "train_si84", "test_dev93", "test_eval92", "test_eval93"]
FIRST = "11-1.1/wsj0/si_tr_s/01i/01ic0201.wv1"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("discs", [True, False])
@pytest.mark.parametrize("streaming", [False, True])
def test_splits_texts_and_samples(tmp_path, cache, discs, streaming):
    written = write_wsj(tmp_path / "wsj", discs)
    splits = load_wsj(tmp_path / "wsj", streaming, cache_dir=cache)
    assert list(splits) == SPLITS == list(INDICES) == list(EXPECTED)
    assert held(splits) == as_lists(written)  # bit for bit
    assert not [row["id"] for rows in splits.values() for row in rows if row["id"].startswith("401")]
    row = next(iter(splits["test_dev93"]))
    path = "13-16.1/WSJ1/SI_DT_20/4K0/4K0C0201.WV1" if discs else "wsj1/si_dt_20/4k0/4k0c0201.wv1"
    assert row["audio"] == {"path": str(tmp_path / "wsj" / path), "bytes": None}
    assert (row["id"], row["speaker"], row["text"]) == ("4k0c0201", "4k0", WORDS[0])
    assert row["duration"] == 2700 / 16_000


@pytest.mark.parametrize("below", ["LDC93S6A", "LDC/csr_1"])
def test_discs_may_lie_deeper(tmp_path, cache, below):
    written = write_wsj(tmp_path / below)
    assert (
        held(load_wsj(tmp_path, splits="train_si84", cache_dir=cache))["train_si84"] == as_lists(written)["train_si84"]
    )


def test_the_single_tree_may_be_named_by_its_half_or_hold_links(tmp_path, cache):
    written = as_lists(write_wsj(tmp_path / "tree", discs=False))
    assert held(load_wsj(tmp_path / "tree" / "wsj0", cache_dir=cache)) == written
    (tmp_path / "links").mkdir()
    for half in ("wsj0", "wsj1"):
        (tmp_path / "links" / half).symlink_to(tmp_path / "tree" / half)
    assert held(load_wsj(tmp_path / "links", cache_dir=cache)) == written


@pytest.mark.parametrize(
    ("detailed", "words"),
    [
        ("Mr\\. Smith isn\\'t here", "MR. SMITH ISN'T HERE"),
        ("ten %percent .point five %percents", "TEN PERCENT POINT FIVE %PERCENTS"),
        ("[<door_slam] one [door_slam>] two", "ONE TWO"),
        ("[phone_ring/] one [/phone_ring] two", "ONE TWO"),
        ("one ~ . two", "ONE TWO"),
        ("[loud_breath] one two[misc_noise]", "<NOISE> ONE <NOISE>"),
        ("<it's> <a> gone--dash --dash", "IT'S A GONE--DASH -DASH"),
        ("*stressed* stammer- wor(d)- e:longated !word", "*STRESSED* STAMMER- WOR(D)- E:LONGATED !WORD"),
        (" . ~ ", ""),
    ],
)
def test_text_rules(detailed, words):
    assert normalise_wsj(detailed) == words


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-32768, 32767), min_size=1, max_size=700),
    st.integers(0, 400),
    st.booleans(),
)
def test_shortened_samples_are_exact(values, silence, big_endian):
    signal = np.array([0] * silence + values, np.int16)
    waveform = read_audio({"path": "x.wv1", "bytes": sphere(signal, big_endian=big_endian)})
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform * 32768, signal)


def test_plain_sphere_needs_no_extra(monkeypatch):
    without_av(monkeypatch)
    signal = voice(3)
    for big_endian in (False, True):
        waveform = read_audio({"path": "x.wv1", "bytes": sphere(signal, shortened=False, big_endian=big_endian)})
        np.testing.assert_array_equal(waveform * 32768, signal)


def without_av(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    write_wsj(tmp_path)
    without_av(monkeypatch)
    with pytest.raises(ImportError, match=r"pip install hf_entmax_asr\[wsj\]"):
        load_wsj(tmp_path)
    with pytest.raises(ImportError, match=r"pip install hf_entmax_asr\[wsj\]"):
        read_audio(tmp_path / FIRST)


def test_sphere_that_is_not_whole(tmp_path):
    content = sphere(voice(5))
    header = read_header(content)
    assert header == (2700, 16_000, 1, "pcm,embedded-shorten-v2.00")
    for kept in [*range(1025, len(content) - 8, 7), *range(len(content) - 40, len(content) - 8)]:
        with pytest.raises(ValueError, match=r"x\.wv1: (cut short|cannot be decoded by FFmpeg)"):
            read_audio({"path": "x.wv1", "bytes": content[:kept]})
    with pytest.raises(ValueError, match=r"x\.wv1: the SPHERE header is cut short"):
        read_audio({"path": "x.wv1", "bytes": content[:700]})
    with pytest.raises(ValueError, match="the SPHERE header has no usable 'sample_rate'"):
        read_audio({"path": "x.wv1", "bytes": content.replace(b"sample_rate", b"sample_rite")})
    (tmp_path / "short.wv1").write_bytes(content[:-40])
    with pytest.raises(ValueError, match=r"short.wv1: cut short"):
        read_audio(tmp_path / "short.wv1")


def test_a_header_that_counts_too_few_samples_is_believed_as_sph2pipe_does():
    signal = voice(5)
    content = sphere(signal).replace(b"sample_count -i 2700", b"sample_count -i 2600")
    np.testing.assert_array_equal(read_audio({"path": "x.wv1", "bytes": content}) * 32768, signal[:2600])


def test_a_missing_index_is_a_missing_split(tmp_path, cache, caplog):
    write_wsj(tmp_path)
    (tmp_path / "13-34.1").rename(tmp_path / "away")
    with caplog.at_level(logging.WARNING):
        corpus = read_corpus("wsj", tmp_path, cache_dir=cache)
    assert list(corpus.splits) == ["train_si84", "test_eval92", "test_eval93"]
    assert "train_si284: not there (no index 13-34.1/wsj1/doc/indices/si_tr_s.ndx)" in caplog.text


def test_half_a_split_is_damage(tmp_path, cache):
    write_wsj(tmp_path)
    index = tmp_path / "13-34.1/wsj1/doc/indices/si_tr_s.ndx"  # of two that make train_si284
    index.write_text(";; File: si_tr_s.ndx\n")
    with pytest.raises(CorpusError, match=f"1 indices without an entry: train_si284 {index}"):
        load_wsj(tmp_path, splits="train_si284", cache_dir=cache)
    assert load_wsj(tmp_path, splits="train_si284", bad_utterances="drop", cache_dir=cache)["train_si284"].num_rows == 3


def test_damage_is_counted_named_and_refused_or_dropped(tmp_path, cache, caplog):
    write_wsj(tmp_path)
    cut(tmp_path / FIRST)
    (tmp_path / "11-14.1").rename(tmp_path / "away")  # a disc of eval92
    dots = tmp_path / "13-34.1/wsj1/trans/wsj1/si_tr_s/46t/46tc0200.dot"
    lines = dots.read_bytes().splitlines(keepends=True)
    dots.write_bytes(b"caf\xe9 (46tc0201)\n" + lines[1] + b"a line without an utterance\n")
    index = tmp_path / "13-32.1/wsj1/doc/indices/wsj1/eval/h1_p0.ndx"
    index.write_text(index.read_text() + "what is this\n")
    expected = (
        f"1 audio files that are damaged, cut short or empty: {tmp_path / FIRST} (cut short: its header announces",
        "3 transcripts or index entries without audio: 11-14.1/wsj0/si_et_20/440/440c0201.wv1 "
        "(there is no disc 11-14.1), ",
        f"1 transcript lines that are not UTF-8 (convert the file: iconv -f gb18030 -t utf-8): {dots}:1",
        "2 lines that are not in the corpus's format: "
        f"{dots}:3 (a line without an utterance), {index}:6 (what is this)",
    )
    with pytest.raises(CorpusError, match="is damaged") as error:
        load_wsj(tmp_path, splits=["train_si284", "test_eval92", "test_eval93"], cache_dir=cache)
    for part in expected:
        assert part in str(error.value)
    with caplog.at_level(logging.WARNING):
        splits = load_wsj(tmp_path, splits="train_si284", bad_utterances="drop", cache_dir=cache)
    assert splits["train_si284"]["id"][:] == ["01ic0202", "01ic0203", "46tc0202"]
    assert "2 audio files without a transcript, left out: " in caplog.text  # whose lines could not be read
    with pytest.raises(CorpusError, match="no utterance of test_eval92 can be used"):
        load_wsj(tmp_path, splits="test_eval92", bad_utterances="drop", cache_dir=cache)


def test_of_two_transcripts_the_nearest_counts(tmp_path, cache):
    write_wsj(tmp_path)
    other = tmp_path / "13-34.1/wsj1/trans/wsj1/other/01i/01ic0200.dot"
    other.parent.mkdir(parents=True)
    other.write_text("a wrong text (01ic0201)\n")
    corpus = read_corpus("wsj", tmp_path, splits="train_si84", cache_dir=cache)
    assert corpus.splits["train_si84"]["text"][:] == list(WORDS)
    notes = corpus.report.findings["utterances with different transcripts, of which that nearest to the audio is used"]
    assert notes == [f"01ic0201 ({tmp_path}/11-13.1/wsj0/transcrp/dots/si_tr_s/01i/01ic0200.dot)"]
    assert not corpus.report.damage


def test_an_entry_listed_twice_is_used_once(tmp_path, cache):
    write_wsj(tmp_path)
    index = tmp_path / "11-13.1/wsj0/doc/indices/train/tr_s_wv1.ndx"
    index.write_text(index.read_text() + "11_1_1:wsj0/si_tr_s/01i/01ic0201.wv1\n")
    corpus = read_corpus("wsj", tmp_path, splits="train_si84", cache_dir=cache)
    assert len(corpus.splits["train_si84"]) == 3
    assert corpus.report.findings["utterances listed twice, used once"] == [
        "train_si84 11-1.1/wsj0/si_tr_s/01i/01ic0201.wv1"
    ]


def test_what_is_not_wsj(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_wsj(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no WSJ: neither discs \(11-1.1 … 13-34.1\) nor folders"):
        load_wsj(tmp_path)
    (tmp_path / "wsj0").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no WSJ"):
        load_wsj(tmp_path)

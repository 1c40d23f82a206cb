"""AISHELL-1 as shipped: extracted or in speaker archives, whole or damaged, cached or streamed."""

import errno
import logging
import os

import numpy as np
import pytest
import soundfile
from datasets import Audio, DatasetDict, IterableDatasetDict

from hf_entmax_asr.corpora import CorpusError, load_aishell1, load_librispeech, load_wsj, read_corpus
from hf_entmax_asr.corpora.aishell1 import normalise_aishell1
from support.corpus_trees import AISHELL_READ, as_lists, cut, held, write_aishell1
from support.tones import write_splits

WAV = "data_aishell/wav"
TRANSCRIPT = "data_aishell/transcript/aishell_transcript_v0.8.txt"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("archives", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_splits_texts_and_samples(tmp_path, cache, archives, streaming):
    written = write_aishell1(tmp_path, archives)
    splits = load_aishell1(tmp_path, streaming, cache_dir=cache)
    assert isinstance(splits, IterableDatasetDict if streaming else DatasetDict)
    assert list(splits) == ["train", "dev", "test"]
    assert held(splits) == as_lists(written)
    row = next(iter(splits["dev"]))
    name = "BAC009S0724W0122"
    assert list(row) == ["id", "audio", "text", "speaker", "duration"]
    assert (row["id"], row["text"], row["speaker"]) == (name, AISHELL_READ[0], "S0724")
    assert row["duration"] == len(written["dev"][name][1]) / 16_000
    # A file that can be opened is not copied into the rows; one in an archive has to be.
    inside = f"S0724.tar.gz/dev/S0724/{name}.wav" if archives else f"dev/S0724/{name}.wav"
    assert row["audio"]["path"] == str(tmp_path / WAV / inside)
    assert (row["audio"]["bytes"] is not None) == archives
    if not streaming:
        assert splits["train"].features["audio"] == Audio(16_000, decode=False)


@pytest.mark.parametrize("root", ["", "data_aishell", "data_aishell/wav"])
def test_the_root_may_be_one_level_up_or_down(tmp_path, cache, root):
    write_aishell1(tmp_path)
    assert len(load_aishell1(tmp_path / root, cache_dir=cache)["train"]) == 6


def test_text_rules():
    assert normalise_aishell1("ＡＰＰ 和 ｋｔｖ　ok １０") == "APP和KTVOK１０"  # letters alone are narrowed
    assert normalise_aishell1(" 广州 市 ") == "广州市"


def test_the_report_counts_what_is_left_out_and_says_that_counts_differ(tmp_path, cache, caplog):
    write_aishell1(tmp_path)
    with caplog.at_level(logging.WARNING):
        report = read_corpus("aishell1", tmp_path, cache_dir=cache).report
    train = report.splits["train"]
    assert (train.utterances, train.expected, train.speakers) == (6, 120_098, 2)
    assert train.hours == pytest.approx(6 * 2700 / 16_000 / 3600)
    path = tmp_path / WAV / "train" / "S0003" / "BAC009S0003W0999.wav"
    assert str(path) in train.findings["audio files without a transcript, left out"]
    assert str(report) in caplog.text
    assert "train: 6 utterances, NOT the 120,098 of the published split, 0.02 minutes, 2 speakers" in caplog.text
    assert f"2 audio files without a transcript, left out: {tmp_path}" in caplog.text


def test_an_extracted_speaker_supersedes_the_archive(tmp_path, cache):
    written = write_aishell1(tmp_path)
    write_aishell1(tmp_path / "again", archives=True)
    archive = tmp_path / WAV / "S0724.tar.gz"
    (tmp_path / "again" / WAV / "S0724.tar.gz").rename(archive)
    corpus = read_corpus("aishell1", tmp_path, cache_dir=cache)
    assert held(corpus.splits) == as_lists(written)
    assert corpus.report.findings["speaker archives beside their extracted folder, not read"] == [str(archive)]


def test_a_missing_split_is_told_and_refused_only_when_it_was_named(tmp_path, cache, caplog):
    write_aishell1(tmp_path)
    (tmp_path / WAV / "dev").rename(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        assert list(load_aishell1(tmp_path, cache_dir=cache)) == ["train", "test"]
    assert f"dev: not there (no speakers, extracted or as .tar.gz, in {tmp_path / WAV / 'dev'})" in caplog.text
    with pytest.raises(FileNotFoundError, match="lacks splits: dev: no speakers"):
        load_aishell1(tmp_path, splits=["dev", "test"], cache_dir=cache)
    assert list(load_aishell1(tmp_path, splits="test", cache_dir=cache)) == ["test"]
    with pytest.raises(ValueError, match="no split is named 'validation'; the splits are train, dev, test"):
        load_aishell1(tmp_path, splits="validation")


def damage(root):
    """One of each kind; returns what the message must hold."""
    wav, transcript = root / WAV, root / TRANSCRIPT
    short = wav / "train" / "S0002" / "BAC009S0002W0122.wav"
    cut(short)
    empty = wav / "train" / "S0002" / "BAC009S0002W0123.wav"
    soundfile.write(empty, np.zeros(0, np.int16), 16_000)
    gone = wav / "test" / "S0764" / "BAC009S0764W0124.wav"
    gone.unlink()
    lines = transcript.read_bytes().splitlines(keepends=True)
    assert lines[3].startswith(b"BAC009S0724W0124")
    lines[3] = lines[3].decode().encode("gb18030")
    lines[4] = b"BAC009S0724W0123\n"
    lines += [b"not a line of the corpus\n", "BAC009S0003W0122 又 一 个\n".encode()]
    transcript.write_bytes(b"".join(lines))
    return (
        f"2 audio files that are damaged, cut short or empty: {short} (cut short: its header announces",
        f"{empty} (no audio samples)",
        f"1 transcripts or index entries without audio: {gone}",
        f"1 transcript lines that are not UTF-8 (convert the file: iconv -f gb18030 -t utf-8): {transcript}:4",
        f"1 transcripts without a word: BAC009S0724W0123 ({wav}/dev/S0724/BAC009S0724W0123.wav)",
        f"1 lines that are not in the corpus's format: {transcript}:13 (not a line of the corpus)",
        f"1 utterances with two different transcripts: {transcript}:14 (BAC009S0003W0122)",
    )


def test_damage_is_counted_named_and_refused_or_dropped(tmp_path, cache, caplog):
    write_aishell1(tmp_path)
    expected = damage(tmp_path)
    for _ in range(2):  # read, and from the cache
        with pytest.raises(CorpusError, match="is damaged") as error:
            load_aishell1(tmp_path, cache_dir=cache)
        for part in expected:
            assert part in str(error.value)
        assert "bad_utterances='drop'" in str(error.value)
    with caplog.at_level(logging.WARNING):
        splits = load_aishell1(tmp_path, bad_utterances="drop", cache_dir=cache)
    assert {name: rows["id"][:] for name, rows in splits.items()} == {
        "train": ["BAC009S0002W0124", "BAC009S0003W0122", "BAC009S0003W0123", "BAC009S0003W0124"],
        "dev": ["BAC009S0724W0122"],
        "test": ["BAC009S0764W0122", "BAC009S0764W0123"],
    }
    for part in expected:
        assert part in caplog.text
    assert held(splits)["train"]["BAC009S0003W0122"][0] == AISHELL_READ[0]  # the first of the two transcripts


def test_a_stream_meets_damage_on_its_way(tmp_path, caplog):
    write_aishell1(tmp_path)
    short = tmp_path / WAV / "train" / "S0003" / "BAC009S0003W0122.wav"
    cut(short)
    rows = iter(load_aishell1(tmp_path, streaming=True)["train"])
    assert [next(rows)["id"][-4:] for _ in range(3)] == ["0122", "0123", "0124"]
    with pytest.raises(CorpusError, match=f"damaged, cut short or empty: {short}"):
        next(rows)
    assert len(list(load_aishell1(tmp_path, streaming=True, bad_utterances="drop")["train"])) == 5
    assert f"{short} (cut short" in caplog.text


def test_an_archive_that_has_no_end_is_not_waited_for(tmp_path, cache):
    write_aishell1(tmp_path, archives=True)
    archive = tmp_path / WAV / "S0003.tar.gz"
    archive.unlink()
    os.mkfifo(archive)
    with pytest.raises(CorpusError, match=f"{archive} is a pipe or device; it must be a regular file"):
        load_aishell1(tmp_path, cache_dir=cache)


@pytest.mark.parametrize("how", ["cut", "checksum"])
def test_a_damaged_archive_is_refused_or_dropped(tmp_path, cache, how):
    write_aishell1(tmp_path, archives=True)
    archive = tmp_path / WAV / "S0003.tar.gz"
    if how == "cut":
        cut(archive)
    else:
        content = bytearray(archive.read_bytes())
        content[-6] ^= 0xFF  # of the checksum at the end
        archive.write_bytes(content)
    what = rf"1 speaker archives that are damaged or cut short: {archive} \(.*of its recordings could not be read"
    with pytest.raises(CorpusError, match=what):
        load_aishell1(tmp_path, cache_dir=cache)
    rows = load_aishell1(tmp_path, bad_utterances="drop", cache_dir=cache)["train"]
    kept = [name for name in rows["id"] if "S0003" in name]
    assert len([name for name in rows["id"] if "S0002" in name]) == 3
    assert len(kept) < 3 if how == "cut" else len(kept) == 3


def test_a_speaker_that_is_nowhere(tmp_path, cache):
    write_aishell1(tmp_path)
    (tmp_path / WAV / "train" / "S0003").rename(tmp_path / "elsewhere")
    with pytest.raises(
        CorpusError, match=r"3 transcripts or index entries without audio: .*/\*/S0003/BAC009S0003W0122"
    ):
        load_aishell1(tmp_path, cache_dir=cache)


def test_what_is_not_aishell(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_aishell1(tmp_path / "nowhere")
    (tmp_path / "data_aishell.tgz").touch()
    with pytest.raises(FileNotFoundError, match=r"no wav/ beside .*extract data_aishell.tgz first"):
        load_aishell1(tmp_path)
    with pytest.raises(ValueError, match="there is no corpus 'aishell'; the corpora are folder, aishell1"):
        read_corpus("aishell", tmp_path)
    write_aishell1(tmp_path)
    with pytest.raises(ValueError, match="bad_utterances is 'ignore'; it must be 'refuse' or 'drop'"):
        load_aishell1(tmp_path, bad_utterances="ignore")


def test_the_cache_is_used_until_a_file_changes(tmp_path, cache, monkeypatch):
    write_aishell1(tmp_path)
    load_aishell1(tmp_path, cache_dir=cache)

    def unexpected(*_):
        raise AssertionError("an audio file is read again")

    with monkeypatch.context() as patch:
        patch.setattr("hf_entmax_asr.corpora.rows.audio_duration", unexpected)
        assert len(load_aishell1(tmp_path, cache_dir=cache)["train"]) == 6
    path = tmp_path / WAV / "test" / "S0764" / "BAC009S0764W0122.wav"
    soundfile.write(path, np.ones(16_000, np.int16), 16_000)
    assert load_aishell1(tmp_path, cache_dir=cache)["test"]["duration"][0] == 1.0
    transcript = tmp_path / TRANSCRIPT
    transcript.write_text(transcript.read_text(encoding="utf-8").replace("楼市", "车市"), encoding="utf-8")
    assert load_aishell1(tmp_path, cache_dir=cache)["test"]["text"][0].startswith("而对车市")
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CorpusError, match=f"damaged, cut short or empty: {path}"):
        load_aishell1(tmp_path, cache_dir=cache)


def test_processes_share_the_work_and_change_nothing(tmp_path, cache):
    write_aishell1(tmp_path, archives=True)
    alone = load_aishell1(tmp_path, cache_dir=cache)
    together = load_aishell1(tmp_path, cache_dir=tmp_path / "other", num_proc=2)
    assert held(alone) == held(together)
    assert alone["train"]["id"][:] == together["train"]["id"][:]


def test_a_stream_goes_on_where_it_was(tmp_path):
    write_aishell1(tmp_path)
    stream = load_aishell1(tmp_path, streaming=True)["train"]
    names = [row["id"] for row in stream]
    rows = iter(stream)
    for _ in range(4):
        next(rows)
    state = stream.state_dict()
    again = load_aishell1(tmp_path, streaming=True)["train"]
    again.load_state_dict(state)
    assert [row["id"] for row in again] == names[4:]
    assert stream.num_shards == 2  # a speaker each, for the workers of a DataLoader


def test_the_loaders_have_one_signature():
    assert load_aishell1.__kwdefaults__ == load_wsj.__kwdefaults__ == load_librispeech.__kwdefaults__


@pytest.mark.filterwarnings("ignore")  # of lhotse's own imports
def test_against_lhotse(tmp_path, cache):
    pytest.importorskip("lhotse")
    from lhotse.recipes import prepare_aishell

    write_aishell1(tmp_path)
    theirs = prepare_aishell(tmp_path)
    ours = load_aishell1(tmp_path, cache_dir=cache)
    assert set(ours) == set(theirs)
    for split, rows in ours.items():
        paths = {recording.id: recording.sources[0].source for recording in theirs[split]["recordings"]}
        expected = {s.id: (s.text, s.speaker, s.duration, paths[s.id]) for s in theirs[split]["supervisions"]}
        found = {row["id"]: (row["text"], row["speaker"], row["duration"], row["audio"]["path"]) for row in rows}
        assert found == expected


def test_paths_with_odd_bytes(tmp_path, cache):
    root = os.fsdecode(os.fsencode(tmp_path) + b"/k\xc3\xb6rper mit leerzeichen")
    os.mkdir(root)
    write_aishell1(tmp_path / os.path.basename(root))
    assert len(load_aishell1(root, cache_dir=cache)["dev"]) == 3


def test_a_folder_is_a_corpus_too(tmp_path):
    write_splits(tmp_path, train=3, test=2)
    corpus = read_corpus("folder", tmp_path, splits="test")
    assert list(corpus.splits) == ["test"]
    assert str(corpus.report).startswith(f"folder in {tmp_path}\n  test: 2 utterances, 0.0")
    with pytest.raises(ValueError, match="has no split 'dev'; it has test, train"):
        read_corpus("folder", tmp_path, splits=["dev"])
    with pytest.raises(ValueError, match="a folder corpus takes no num_proc"):
        read_corpus("folder", tmp_path, num_proc=2)


def test_a_file_that_cannot_be_read_for_now_is_not_taken_for_damage(tmp_path, cache, monkeypatch):
    write_aishell1(tmp_path)

    def unreachable(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("hf_entmax_asr.corpora.rows.audio_duration", unreachable)
        with pytest.raises(OSError, match="Stale file handle"):
            load_aishell1(tmp_path, bad_utterances="drop", cache_dir=cache)
    assert len(load_aishell1(tmp_path, cache_dir=cache)["train"]) == 6

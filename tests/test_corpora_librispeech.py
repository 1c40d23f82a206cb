"""LibriSpeech as shipped and as the Hub has it; a large tree of it, in bounded memory."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import soundfile

from hf_entmax_asr.corpora import CorpusError, from_hub, load_librispeech, read_corpus
from hf_entmax_asr.corpora.librispeech import EXPECTED
from support.corpus_trees import as_lists, cut, held, voice, write_librispeech

CHAPTER = "LibriSpeech/train-clean-5/103/1240"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "subsets", [("train-clean-5", "dev-clean-2"), ("train-clean-100", "train-other-500", "test-other")]
)
def test_splits_texts_and_samples(tmp_path, cache, subsets, streaming):
    written = write_librispeech(tmp_path, subsets)
    splits = load_librispeech(tmp_path, streaming, cache_dir=cache)
    assert list(splits) == list(subsets)
    assert held(splits) == as_lists(written)
    row = next(iter(splits[subsets[0]]))
    path = tmp_path / "LibriSpeech" / subsets[0] / "103/1240/103-1240-0000.flac"
    assert row == {
        "id": "103-1240-0000",
        "audio": {"path": str(path), "bytes": None},
        "text": f"CHAPTER ONE IT'S {subsets[0].upper()}",
        "speaker": "103",
        "duration": 1900 / 16_000,
    }


@pytest.mark.parametrize(("root", "count"), [("", 2), ("LibriSpeech", 2), ("LibriSpeech/dev-clean-2", 2)])
def test_the_root_may_be_one_level_up_or_down(tmp_path, cache, root, count):
    write_librispeech(tmp_path)
    assert len(load_librispeech(tmp_path / root, cache_dir=cache)) == count


def test_any_subset_will_do_but_one_that_was_named_must_be_there(tmp_path, cache, caplog):
    write_librispeech(tmp_path, ("dev-clean",))
    with caplog.at_level(logging.WARNING):
        assert list(load_librispeech(tmp_path, cache_dir=cache)) == ["dev-clean"]
    assert "dev-clean: 9 utterances, NOT the 2,703 of the published split, 0.03 minutes, 2 speakers" in caplog.text
    assert "test-clean" not in caplog.text
    with pytest.raises(FileNotFoundError, match="lacks splits: test-clean: no speakers' folders in"):
        load_librispeech(tmp_path, splits=["dev-clean", "test-clean"], cache_dir=cache)
    with pytest.raises(FileNotFoundError, match="holds no LibriSpeech: none of the folders train-clean-100, "):
        load_librispeech(tmp_path / "LibriSpeech" / "dev-clean" / "103")
    assert sum(EXPECTED[name] for name in EXPECTED if name.startswith("train-") and name != "train-clean-5") == 281_241


def test_damage_is_counted_named_and_refused_or_dropped(tmp_path, cache, caplog):
    write_librispeech(tmp_path)
    folder = tmp_path / CHAPTER
    short, noise, gone = (folder / f"103-1240-000{number}.flac" for number in range(3))
    cut(short, 0.97)
    noise.write_bytes(b"this is text, not audio")
    gone.unlink()
    (folder / "103-1240-0009.flac").write_bytes((folder.parent / "1241/103-1241-0000.flac").read_bytes())
    other = folder.parent / "1241" / "103-1241.trans.txt"
    lines = other.read_bytes().splitlines(keepends=True)
    other.write_bytes(lines[0] + lines[0] + lines[1].replace(b"TWO", b"T\xffO") + b"999-1-0 OF ANOTHER CHAPTER\n")
    with pytest.raises(CorpusError, match="is damaged") as error:
        load_librispeech(tmp_path, cache_dir=cache)
    expected = (
        f"2 audio files that are damaged, cut short or empty: {short} (cut short: its last samples are missing), ",
        f"{noise} (",
        f"1 transcripts or index entries without audio: {gone}",
        f"1 transcript lines that are not UTF-8 (convert the file: iconv -f gb18030 -t utf-8): {other}:3",
        f"1 lines that are not in the corpus's format: {other}:4 (999-1-0 OF ANOTHER CHAPTER)",
    )
    for part in expected:
        assert part in str(error.value)
    with caplog.at_level(logging.WARNING):
        rows = load_librispeech(tmp_path, bad_utterances="drop", cache_dir=cache)["train-clean-5"]
    assert rows["id"][:] == ["103-1241-0000", *(f"1034-121119-000{number}" for number in range(3))]
    for part in (
        *expected,
        f"3 audio files without a transcript, left out: {folder / '103-1240-0009.flac'}, ",
        f"1 utterances listed twice, used once: {other}:2 (103-1241-0000)",
    ):
        assert part in caplog.text


def test_a_chapter_without_its_transcript_is_left_out_and_told(tmp_path, cache):
    write_librispeech(tmp_path)
    (tmp_path / CHAPTER / "103-1240.trans.txt").unlink()
    corpus = read_corpus("librispeech", tmp_path, cache_dir=cache)
    assert len(corpus.splits["train-clean-5"]) == 6
    left_out = corpus.report.splits["train-clean-5"].findings["audio files without a transcript, left out"]
    assert left_out == [str(tmp_path / CHAPTER / f"103-1240-000{number}.flac") for number in range(3)]


def hub_form(folder):
    """Rows as in openslr/librispeech_asr: audio inside, ids of speakers and chapters as numbers."""
    written = write_librispeech(folder, ("train-clean-100",))["train-clean-100"]
    columns = {
        "file": datasets.Value("string"),
        "audio": {"path": datasets.Value("string"), "bytes": datasets.Value("binary")},
        "text": datasets.Value("string"),
        "speaker_id": datasets.Value("int64"),
        "chapter_id": datasets.Value("int64"),
        "id": datasets.Value("string"),
    }
    rows = []
    for name, (text, _) in written.items():
        speaker, chapter, _ = name.split("-")
        path = folder / "LibriSpeech/train-clean-100" / speaker / chapter / f"{name}.flac"
        audio = {"path": path.name, "bytes": path.read_bytes()}
        numbers = {"speaker_id": int(speaker), "chapter_id": int(chapter)}
        rows.append({"file": path.name, "audio": audio, "text": text, "id": name, **numbers})
    split = datasets.Dataset.from_list(rows, features=datasets.Features(columns))
    return split.cast_column("audio", datasets.Audio(16_000)), written


def test_the_hubs_form(tmp_path, cache):
    split, written = hub_form(tmp_path)
    ours = load_librispeech(tmp_path, cache_dir=cache)["train-clean-100"]
    mapped = from_hub(datasets.DatasetDict({"train.clean.100": split}))["train.clean.100"]
    assert mapped.features == ours.features
    assert held({"": mapped}) == as_lists({"": written})
    for column in ("id", "text", "speaker", "duration"):
        assert mapped[column][:] == ours[column][:]
    split.to_parquet(tmp_path / "hub.parquet")
    stream = datasets.load_dataset("parquet", data_files=str(tmp_path / "hub.parquet"), split="train", streaming=True)
    assert held({"": from_hub(stream)}) == as_lists({"": written})
    assert set(from_hub(stream).column_names) == set(ours.column_names)
    with pytest.raises(ValueError, match="no column speaker_id; this is not the Hub's LibriSpeech"):
        from_hub(split.remove_columns("speaker_id"))


MEASURE = """
import json, resource, sys, threading, time
import datasets
from hf_entmax_asr.corpora import load_librispeech

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

datasets.disable_progress_bars()
before = peak = resident()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, resident())
watcher = threading.Thread(target=watch)
watcher.start()
started = time.perf_counter()
rows = load_librispeech(sys.argv[1], cache_dir=sys.argv[2])["train-clean-5"]
total = sum(1 for _ in rows)
seconds = time.perf_counter() - started
done.set()
watcher.join()
print(json.dumps({"rows": total, "growth": peak - before, "seconds": seconds}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from Linux's /proc")
def test_thousands_of_files_in_bounded_memory(tmp_path):
    """6,000 files of 1.2 s that are links to ten, 230 MB of audio in all: far more than the loader may take."""
    sources = []
    for number in range(10):
        sources.append(tmp_path / f"{number}.flac")
        soundfile.write(sources[-1], voice(number, 1.2), 16_000)
    for chapter in range(60):
        folder = tmp_path / "LibriSpeech/train-clean-5/7" / str(chapter)
        folder.mkdir(parents=True)
        names = [f"7-{chapter}-{number:04d}" for number in range(100)]
        for number, name in enumerate(names):
            os.link(sources[number % 10], folder / f"{name}.flac")
        (folder / f"7-{chapter}.trans.txt").write_text("".join(f"{name} SOME WORDS OF TEXT\n" for name in names))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    print(f"6,000 files: {found['seconds']:.1f} s, {found['growth'] / 1e6:.0f} MB")
    assert found["rows"] == 6_000
    assert found["growth"] < 100e6, found


@pytest.mark.filterwarnings("ignore")  # of lhotse's own imports
def test_against_lhotse(tmp_path, cache):
    pytest.importorskip("lhotse")
    from lhotse.recipes import prepare_librispeech

    write_librispeech(tmp_path)
    theirs = prepare_librispeech(tmp_path / "LibriSpeech")
    ours = load_librispeech(tmp_path, cache_dir=cache)
    assert set(ours) == set(theirs)
    for split, rows in ours.items():
        paths = {recording.id: recording.sources[0].source for recording in theirs[split]["recordings"]}
        expected = {s.id: (s.text, s.speaker, s.duration, paths[s.id]) for s in theirs[split]["supervisions"]}
        found = {row["id"]: (row["text"], row["speaker"], row["duration"], row["audio"]["path"]) for row in rows}
        assert found == expected


def test_converted_recordings_are_read_and_told_of(tmp_path, cache):
    written = write_librispeech(tmp_path, ("dev-clean-2",))
    for path in (tmp_path / "LibriSpeech" / "dev-clean-2").rglob("*.flac"):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(path.with_suffix(".WAV"), samples, rate, format="WAV")
        path.unlink()
    splits, report = read_corpus("librispeech", tmp_path, cache_dir=cache)
    assert held(splits) == as_lists(written)
    assert "audio in another form than it was published in, read as it is" in str(report)
    assert "(.WAV)" in str(report)

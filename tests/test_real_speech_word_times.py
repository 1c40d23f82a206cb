"""Word times by forced alignment, on recordings of the sample corpus."""

import csv
import importlib.util
import itertools
import json
import shutil
from pathlib import Path

import pytest
from experiments.real_speech import word_times

from hf_entmax_asr.analysis.phonemes import read_ctm

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pocketsphinx") is None, reason="PocketSphinx is not installed (extra phonemes)"
)
SAMPLES = Path(__file__).parent.parent / "sample_corpus"


@pytest.fixture
def corpus(tmp_path):
    """Two recordings of several words, one with a text that nobody can pronounce."""
    with (SAMPLES / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["words"] == "4"][:2]
    folder = tmp_path / "corpus" / "test"
    folder.mkdir(parents=True)
    lines = []
    for name, row in zip(("one", "two"), rows, strict=True):
        shutil.copy(SAMPLES / row["file_name"], folder / (name + Path(row["file_name"]).suffix))
        lines.append((name + Path(row["file_name"]).suffix, row["text"].upper()))
    suffix = Path(rows[0]["file_name"]).suffix
    shutil.copy(SAMPLES / rows[0]["file_name"], folder / f"three{suffix}")
    lines.append((f"three{suffix}", "XYZZYQ"))
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *lines])
    return folder.parent, dict(zip(("one", "two"), (text for _, text in lines), strict=False))


def test_each_word_of_the_transcript_has_its_time(corpus, tmp_path, capsys):
    folder, texts = corpus
    call = ["--data", str(folder), "--splits", "test", "--output", str(tmp_path / "words")]
    assert word_times.main(call) == 0
    printed = capsys.readouterr().out
    found = read_ctm(tmp_path / "words" / "test.ctm")
    assert found.keys() == texts.keys()
    for name, text in texts.items():
        assert [interval.label for interval in found[name]] == text.split()
        assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(found[name]))
        assert all(interval.end - interval.start >= 0.03 for interval in found[name])
    assert "test: 2 of 3 utterances" in printed
    assert "1 not aligned: not in the pronouncing dictionary" in printed
    summary = json.loads((tmp_path / "words" / "test.json").read_text())
    assert summary["not_aligned"] == {"three": "not in the pronouncing dictionary: xyzzyq"}
    before = (tmp_path / "words" / "test.ctm").stat().st_mtime_ns
    assert word_times.main(call) == 0
    assert (tmp_path / "words" / "test.ctm").stat().st_mtime_ns == before
    assert "test: 2 of 3 utterances" in capsys.readouterr().out


def test_a_split_that_is_not_there_is_named(corpus, tmp_path, capsys):
    assert word_times.main(["--data", str(corpus[0]), "--splits", "dev", "--output", str(tmp_path / "words")]) == 1
    assert "has no split dev; it has test" in capsys.readouterr().err
    assert not (tmp_path / "words").exists()

"""The study from a Whisper: cells run once and go on; the table compares what belongs together."""

import json
import signal
from pathlib import Path

import pytest
from experiments.from_whisper import study
from experiments.from_whisper.cell import Cell
from experiments.from_whisper.joined_corpus import join_corpora
from experiments.from_whisper.peers import spoken
from experiments.from_whisper.table import is_runaway
from experiments.real_speech import grid_cell

from hf_entmax_asr.corpora.folder import load_folder
from support.programs import HERE
from support.small_whisper import make_whisper
from support.tones import write_splits

TINY = ["--set", "model.head_regularizer_layers=[0,1]", "schedule.warmup_steps=2", "evaluation.every_steps=null"]
TINY += ["batching.frames_per_batch=700", "evaluation.tensorboard=false"]


@pytest.fixture(autouse=True)
def same_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("study")
    words = root / "test.ctm"
    tones = write_splits(root / "tones", train=12, validation=3, test=3)
    rows = load_folder(tones)["test"]
    lines = []
    for row in rows:
        first, second = row["text"].split()
        lines += [f"{row['id']} 1 0.1 0.3 {first}\n", f"{row['id']} 1 0.5 0.2 {second}\n"]
    words.write_text("".join(lines))
    return make_whisper(root / "whisper"), tones, words


def test_cells_run_once_and_stand_in_the_table(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid_cell, "subprocess", HERE)
    whisper, tones, words = places
    command = [str(whisper), "--data", str(tones), "--words", str(words), "--output", str(tmp_path), "--steps", "2"]
    command += ["--readings", "full", "single", "--transforms", "softmax", *TINY]
    assert study.main(command) == 0
    report = capsys.readouterr().out
    for row in ("softmax-full-seed0 | full", "softmax-single-seed0 | hard", "softmax-single-seed0 | soft"):
        assert row in report
    assert "softmax-single-seed0 hard | softmax-full-seed0 full" in report
    result = json.loads((tmp_path / "softmax-single-seed0" / "cell.json").read_text())
    assert result["stops"]["tokens"] > 3
    assert 0 <= result["stops"]["share_at_last_position"] <= 1
    assert result["steps"] == 2
    assert "stops" not in json.loads((tmp_path / "softmax-full-seed0" / "cell.json").read_text())
    before = (tmp_path / "softmax-single-seed0" / "cell.json").stat().st_mtime_ns
    assert study.main([*command, "--seeds", "0"]) == 0
    assert (tmp_path / "softmax-single-seed0" / "cell.json").stat().st_mtime_ns == before
    assert study.main([*command[:7], "--steps", "3", *command[9:]]) == 1  # begun with other settings
    assert "begun with other settings" in capsys.readouterr().out


def test_two_corpora_are_joined_by_links(tmp_path):
    folders = [write_splits(tmp_path / name, train=3, test=2) for name in ("first", "second")]
    joined = load_folder(join_corpora(folders, tmp_path / "both"))
    assert len(joined["train"]) == 6
    assert len(set(joined["train"]["id"])) == 6
    assert joined["test"]["text"] == [text for folder in folders for text in load_folder(folder)["test"]["text"]]
    with pytest.raises(ValueError, match="has no split"):
        join_corpora([tmp_path / "nowhere"], tmp_path / "none")


def test_names_and_rules():
    assert Cell("entmax", "mocha", 1).name == "entmax-mocha-seed1"
    assert Cell("entmax", "full", 0, "both").name == "entmax-full-both-seed0"
    assert spoken(" It's 7 o'clock, Mr. Bond-") == "it's seven o'clock mr bond"
    assert is_runaway("one two", "a a a a a a a a a")
    assert not is_runaway("one two", "a a a a a a a a")


def test_training_on_two_corpora_needs_two(capsys):
    with pytest.raises(SystemExit):
        study.main(["whisper", "--output", "nowhere", "--both"])
    assert "--both needs --second-data" in capsys.readouterr().err

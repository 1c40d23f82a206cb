"""scripts/analyze.py --compare, with checkpoints that differ in all that may differ."""

import json
import re
from pathlib import Path

import pytest

from hf_entmax_asr.analysis import load_analysis
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.inspection import analyze
from hf_entmax_asr.training import train
from support.tones import tiny_recipe, write_splits

SCHEDULE = {"max_steps": 2, "warmup_steps": 1}


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=12, test=6)


@pytest.fixture(scope="module")
def checkpoints(tones, tmp_path_factory) -> dict[str, Path]:
    """α-entmax with monotonic heads, and a softmax model with another front end, subsampling and depth."""
    root = tmp_path_factory.mktemp("runs")
    data = {"path": str(tones), "validation_split": None}
    softmax = {
        "encoder_transform": "softmax",
        "decoder_transform": "softmax",
        "cross_attention": "full",
        "head_regularizer": "none",
        "head_regularizer_layers": [],
        "energy_bias_init": -3.0,
        "subsampling_layers": 1,
        "encoder_layers": 2,
    }
    recipes = {
        "sparse": tiny_recipe(tones, data=data, schedule=SCHEDULE),
        "dense": tiny_recipe(tones, data=data, schedule=SCHEDULE, model=softmax, features={"feature_size": 12}),
    }
    return {name: train(recipe, root / name).last for name, recipe in recipes.items()}


def test_checkpoints_with_other_front_ends_stand_side_by_side(call, checkpoints, tones, tmp_path):
    status, out, err = call(
        "analyze",
        checkpoints["sparse"],
        tones,
        "--out",
        tmp_path / "report",
        "--compare",
        checkpoints["dense"],
        "--device",
        "cpu",
    )
    assert status == 0, err
    report = tmp_path / "report"
    assert (report / "maps_by_checkpoint.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((report / "comparison.json").read_text(encoding="utf-8"))["checkpoints"]
    assert [(row["name"], row["encoder_transform"], row["seconds_per_position"]) for row in rows] == [
        ("sparse", "entmax", 0.04),
        ("dense", "softmax", 0.02),
    ]
    for row, name in zip(rows, ("sparse", "dense"), strict=True):
        model, processor = load_recogniser(str(checkpoints[name]), "cpu")
        alone = analyze(model, processor, load_folder(tones)["test"])
        zeros = [z for module in alone.encoder for z in module.zero_share]
        assert row["zero_share"] == pytest.approx(sum(zeros) / len(zeros), abs=1e-5)
        assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert row["checkpoint"] == str(checkpoints[name])
    assert rows[1]["alpha"] == [1.0, 1.0]
    assert load_analysis(report / "analysis.json").checkpoint == str(
        checkpoints["sparse"]
    )  # the analysis is of the first
    assert [line.split()[:2] for line in out.splitlines()[-3:-1]] == [["sparse", "entmax"], ["dense", "softmax"]]
    page = (report / "index.html").read_text(encoding="utf-8")
    assert re.search(r"<td>dense</td><td>softmax</td><td>1\.00</td>", page)
    assert page.count("<audio") == 2  # of the first alone


def test_numbers_alone(call, checkpoints, tones, tmp_path):
    arguments = ["--compare", checkpoints["dense"], "--json-only", "--max-utterances", 2]
    status, _, err = call("analyze", checkpoints["sparse"], tones, "--out", tmp_path, *arguments)
    assert status == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analysis.json", "comparison.json"]


def test_what_cannot_be_compared_is_named_before_any_work(call, checkpoints, tones, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_entmax_asr.recognition.inspection.analyze", lambda *_, **__: pytest.fail("work was done"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    start = (checkpoints["sparse"], tones, "--out", tmp_path / "report", "--compare", checkpoints["dense"])
    for other, message in (
        (broken, f"{broken} is not a checkpoint of hf_entmax_asr"),
        (tmp_path / "nowhere", f"there is no folder {tmp_path / 'nowhere'}"),
        (checkpoints["sparse"].resolve(), "is the same checkpoint as"),
    ):
        status, _, err = call("analyze", *start, other)
        assert status == 1
        assert message in err
    assert not (tmp_path / "report").exists()

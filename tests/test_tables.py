"""The paper's tables: every row a system that can be trained, cells run once, figures beside the paper's."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from experiments.real_speech import grid
from experiments.tables import __main__ as tables
from experiments.tables import cell as cell_module
from experiments.tables.paper import SIZES, TABLES
from experiments.tables.systems import SYSTEMS

from hf_entmax_asr.model.modeling_entmax_asr_baselines import recogniser_class
from hf_entmax_asr.training import load_recipe, train
from hf_entmax_asr.training.recipe import config_class, recipe_to_dict
from support.tones import tiny_recipe, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=12, validation=2, dev=2, test=3)


@pytest.fixture(scope="module")
def recipe(tones, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    tree = recipe_to_dict(tiny_recipe(tones, data={"path": str(tones), "validation_split": None}))
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.fixture
def here(monkeypatch):
    """Training in this process."""

    def train_run(folder, recipe, overrides, threads):
        train(load_recipe(recipe, overrides), folder / "run")
        return 0.1

    monkeypatch.setattr(cell_module, "train_run", train_run)


def test_every_row_is_a_system_and_every_system_has_a_row():
    rows = [row for table in TABLES.values() for row in table.rows]
    assert {row.system for row in rows} == set(SYSTEMS)
    assert all(len(row.paper) == len(table.columns) for table in TABLES.values() for row in table.rows)


@pytest.mark.parametrize("name", SYSTEMS)
def test_small_systems_are_of_one_order(name):
    """And the recipes of both sizes make models."""
    counts = {}
    for size in SIZES:
        model = {key: value for key, value in SYSTEMS[name].model(size).items() if value != "auto"}
        config = config_class(model)(**model, vocab_size=256)
        with torch.device("meta"):
            counts[size] = recogniser_class(config)(config).num_parameters()
    assert 1e6 < counts["small"] < 4e6
    assert counts["published"] > counts["small"]


def test_a_table_is_run_once_and_says_what_is_missing(tones, recipe, here, tmp_path, monkeypatch, capsys):
    tiny = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "subsampling_channels": 2}
    tiny |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    own = {"rnn_t": {"encoder_lstm_size": 6, "joint_size": 8}, "proposed": {"head_regularizer_layers": [0]}}
    for name, sizes in own.items():
        monkeypatch.setitem(SYSTEMS, name, replace(SYSTEMS[name], small=tiny | sizes))
    words = ["--data", str(tones), "--recipe", str(recipe), "--output", str(tmp_path), "--steps", "2", "--threads", "1"]
    words += ["--test-splits", "dev", "test", "--systems", "rnn_t", "proposed", "--table", "III"]
    assert tables.main(words) == 0
    report = (tmp_path / "table_III.md").read_text()
    assert capsys.readouterr().out.endswith(report)
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in report.split("\n") if " | " in line
    }
    result = json.loads((tmp_path / "rnn_t-seed0" / "cell.json").read_text())
    assert rows["RNN-T"][:5] == [f"{result['parameters']:,}", "2", f"{result['minutes']:.1f}", "0.1", rows["RNN-T"][4]]
    assert rows["LAS"] == ["not run"] * 5 + ["not run |"]
    cer = report.split("| CER in %")[1].split("\n\n")[0]
    (ours,) = [line for line in cer.split("\n") if line.startswith("| RNN-T")]
    assert re.fullmatch(r"\| RNN-T \| \d+\.\d \[.*?\] \| - \| \d+\.\d \[.*?\] \| - \| 10.13 \| 11.82 \|", ours), (
        ours
    )  # monotonic heads of another row read hard and soft
    assert f"{result['scores']['test']['full']['cer']:.1f} [" in ours
    assert "| LAS | not run | not run | not run | not run | - | 10.56 |" in cer
    assert "not like for like" in report

    monkeypatch.setattr(cell_module, "train_run", None)  # nothing is trained again, whatever table asks
    assert tables.main(words) == 0
    assert tables.main([*words[: words.index("--systems")], "--table", "V", "--table-only"]) == 0
    assert "| α-entmax, without | not run |" in (tmp_path / "table_V.md").read_text()
    assert tables.main([*words, "--set", "seed=1", "optimizer.eps=1e-8"]) == 1
    assert "was begun with other settings" in capsys.readouterr().out


def test_table_one_is_the_grids(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(grid, "main", lambda words: given.update(vars(grid.parse(words))) or 0)
    words = ["--table", "I", "--output", str(tmp_path), "--data", "D", "--corpus", "aishell1", "--minutes", "3"]
    assert tables.main([*words, "--seeds", "1", "2", "--test-splits", "dev"]) == 0
    assert given["output"] == tmp_path / "table_I"
    assert (given["data"], given["minutes"], given["seeds"], given["test_split"]) == ("D", 3.0, [1, 2], "dev")
    assert "data.corpus=aishell1" in given["set"]


def test_a_row_of_another_table_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tables.main(["--table", "II", "--systems", "rnn_t", "--output", str(tmp_path)])
    assert "rnn_t is no row of table II; it has transformer, wav2letter" in capsys.readouterr().err

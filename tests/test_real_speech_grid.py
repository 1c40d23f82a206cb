"""The grid of transforms and cross-attentions: cells run once, go on, are scored; the table says what is missing."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from experiments.real_speech import grid, grid_cell
from experiments.real_speech.grid_cell import Cell, CellError, finished_cells
from experiments.real_speech.grid_options import CROSS_ATTENTIONS, TRANSFORMS
from experiments.real_speech.grid_table import PAPER, Grid, render

from hf_entmax_asr.training import load_recipe, read_history
from hf_entmax_asr.training.recipe import recipe_to_dict
from hf_entmax_asr.training.training_state import read_training_state
from support.corpus_trees import AISHELL_READ, write_aishell1
from support.programs import HERE
from support.tones import tiny_recipe, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=6, test=6)


@pytest.fixture(scope="module")
def recipe(tones, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    tree = recipe_to_dict(tiny_recipe(tones, evaluation={"compare_decodings": False}))
    file.write_text(yaml.safe_dump(tree))
    return file


def arguments(tones: Path, recipe: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(tones), "--recipe", str(recipe), "--output", str(output), "--threads", "1", *more]


SMALL = ("--transforms", "softmax-T0.5", "entmax", "--cross-attentions", "monotonic", "--steps", "3")


@pytest.fixture(scope="module")
def two_cells(tones, recipe, tmp_path_factory) -> Path:
    """A grid with two of its cells run."""
    output = tmp_path_factory.mktemp("grid")
    assert grid.main(arguments(tones, recipe, output, *SMALL)) == 0
    return output


@pytest.fixture
def in_this_process(monkeypatch):
    """Cells whose training is no process of its own; in `two_cells` and in the background it is one."""
    monkeypatch.setattr(grid_cell, "subprocess", HERE)


@pytest.fixture(autouse=True)
def same_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("cross", CROSS_ATTENTIONS)
def test_a_cell_is_the_recipe_but_for_its_place(transform, cross, recipe):
    plain, cell = recipe_to_dict(load_recipe(recipe)), load_recipe(recipe, Cell(transform, cross, 7).overrides())
    assert cell.model["cross_attention"] == cross
    assert cell.model["encoder_transform"] == cell.model["decoder_transform"] == transform.removesuffix("-T0.5")
    assert cell.model["softmax_temperature"] == (0.5 if transform == "softmax-T0.5" else 1.0)
    assert cell.seed == 7
    own = ["cross_attention", "encoder_transform", "decoder_transform", "softmax_temperature"]
    if cross == "full":  # a regularizer of monotonic heads cannot be set where there are none
        assert cell.model["head_regularizer"] == "none"
        own.append("head_regularizer")
    tree = recipe_to_dict(cell)
    assert {k: v for k, v in tree["model"].items() if k not in own} == {
        k: v for k, v in plain["model"].items() if k not in own
    }
    assert {k: v for k, v in tree.items() if k not in ("model", "seed")} == {
        k: v for k, v in plain.items() if k not in ("model", "seed")
    }


@pytest.mark.slow
def test_a_cell_leaves_its_figures(two_cells):
    results = finished_cells(two_cells)
    assert list(results) == [Cell("softmax-T0.5", "monotonic", 0), Cell("entmax", "monotonic", 0)]
    for cell, result in results.items():
        folder = two_cells / cell.name
        assert result["steps"] == 3
        assert result["cpu_minutes"] > 0
        assert result["scores"].keys() == {"hard", "soft"}
        for way, scores in result["scores"].items():
            records = [json.loads(line) for line in (folder / f"{way}.jsonl").read_text().splitlines()]
            assert len(records) == 6
            assert scores["reference_words"] == sum(len(record["reference"].split()) for record in records) == 12
        assert "finished after 3 steps" in (folder / "log.txt").read_text()
    heads = {cell.transform: result["heads"] for cell, result in results.items()}
    assert heads["entmax"].keys() == {"encoder.layers.0.self_attn", "decoder.layers.0.self_attn"}
    assert all(1 < alpha < 2 for values in heads["entmax"].values() for alpha in values["alpha"])
    assert all(len(values["zero_share"]) == 2 for values in heads["entmax"].values())
    # Softmax has no α and no zeros; 1.5-entmax, where α begins, has many over a short text.
    assert all(values == {"alpha": [], "zero_share": [0, 0]} for values in heads["softmax-T0.5"].values())
    assert sum(heads["entmax"]["encoder.layers.0.self_attn"]["zero_share"]) > 0


@pytest.mark.slow
def test_the_table_has_our_figures_the_papers_and_what_is_missing(two_cells):
    table = (two_cells / "table.md").read_text()
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in table.split("\n\n")[1].splitlines()
    }
    assert rows["softmax"] == ["not run", "not run", "not run", "8.60 / 9.33", "9.58", "8.23 / 9.00", "9.36 |"]
    assert rows["α-entmax"][0] == "not run"
    hard = finished_cells(two_cells)[Cell("entmax", "monotonic", 0)]["scores"]["hard"]["wer"]
    assert rows["α-entmax"][1].startswith(f"{hard:.1f} [")
    assert rows["α-entmax"][3:] == ["7.65 / 8.53", "8.38", "7.64 / 8.45", "8.37 |"]
    assert "entmax-monotonic-seed0" in table


@pytest.mark.slow
def test_a_finished_cell_is_not_run_again(tones, recipe, two_cells, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a finished cell was trained again")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(grid_cell, "measure", refuse)
    before = (two_cells / "table.md").read_text()
    assert grid.main(arguments(tones, recipe, two_cells, *SMALL)) == 0
    assert (two_cells / "table.md").read_text() == before
    assert grid.main(["--output", str(two_cells), "--data", str(tones), "--recipe", str(recipe), "--table-only"]) == 0
    assert (two_cells / "table.md").read_text() == before


@pytest.mark.slow
def test_a_cell_of_other_settings_is_refused(tones, recipe, two_cells, tmp_path, capsys):
    assert grid.main(arguments(tones, recipe, two_cells, *SMALL[:-1], "4")) == 1
    printed = capsys.readouterr().out
    assert "entmax-monotonic-seed0 was begun with other settings" in printed
    assert "name another --output" in printed


@pytest.mark.slow
def test_a_failed_cell_is_told_and_the_others_go_on(tones, recipe, tmp_path, capfd, in_this_process):
    # A file in the place of the first cell's run; what makes training diverge would fail the others too.
    blocked = tmp_path / "grid" / "softmax-full-seed0"
    blocked.mkdir(parents=True)
    (blocked / "run").touch()
    words = ("--transforms", "softmax", "--seeds", "0", "1", "--cross-attentions", "full", "--steps", "1")
    assert grid.main(arguments(tones, recipe, tmp_path / "grid", *words)) == 1
    printed = capfd.readouterr().out
    assert "training of softmax-full-seed0 ended with status 1: " in printed
    assert list(finished_cells(tmp_path / "grid")) == [Cell("softmax", "full", 1)]
    report = (tmp_path / "grid" / "table.md").read_text()
    assert "- softmax-full-seed0: training of" in report


@pytest.mark.slow
def test_any_corpus_that_training_reads_will_do(recipe, tmp_path, in_this_process):
    write_aishell1(tmp_path / "data")
    words = ["--transforms", "sparsemax", "--cross-attentions", "full", "--steps", "1"]
    words += ["--set", "data.corpus=aishell1", "data.validation_split=dev", "data.max_unknown_share=1"]
    words += ["model.ctc_loss_weight=0"]  # the recordings are too short for their texts
    assert grid.main(arguments(tmp_path / "data", recipe, tmp_path / "grid", *words)) == 0
    records = (tmp_path / "grid" / "sparsemax-full-seed0" / "full.jsonl").read_text().splitlines()
    assert {json.loads(record)["reference"] for record in records} == set(AISHELL_READ)


@pytest.mark.slow
def test_it_runs_in_the_background_stops_with_a_checkpoint_and_goes_on(tones, recipe, tmp_path, monkeypatch):
    output = tmp_path / "grid"
    words = ["--transforms", "softmax", "--cross-attentions", "full", "--seeds", "3", "--steps", "200"]
    words = arguments(tones, recipe, output, *words)
    with grid.start_in_background([*words, "--background"], output) as process:
        history = output / "softmax-full-seed3" / "run" / "history.jsonl"
        while not (history.is_file() and history.stat().st_size):
            assert process.poll() is None, (output / "grid.log").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130, (output / "grid.log").read_text()
    assert "the same command goes on from here" in (output / "grid.log").read_text()
    stopped_at = read_training_state(output / "softmax-full-seed3" / "run" / "last").step
    assert 0 < stopped_at < 200
    assert not finished_cells(output)
    monkeypatch.setattr(grid_cell, "subprocess", HERE)
    assert grid.main(words) == 0
    (result,) = finished_cells(output).values()
    assert (result["steps"], result["cpu_minutes"]) == (200, None)
    assert result["scores"].keys() == {"full"}
    steps = [record["step"] for record in read_history(output / "softmax-full-seed3" / "run" / "history.jsonl")]
    assert steps == sorted(steps)  # went on, and did not begin again


def made_up(folder: Path, cell: Cell, ways: dict[str, list[str]], references: list[str]) -> None:
    """A finished cell with these hypotheses."""
    target = folder / cell.name
    target.mkdir(parents=True)
    place = {"transform": cell.transform, "cross_attention": cell.cross_attention, "seed": cell.seed}
    heads = {"encoder.layers.0.self_attn": {"alpha": [1.2, 1.6], "zero_share": [0.5, 0.9]}}
    heads["decoder.layers.0.self_attn"] = {"alpha": [], "zero_share": [0.0, 0.0]}
    numbers = {"parameters": 1000, "steps": 5, "minutes": 2.0, "cpu_minutes": 3.9, "heads": heads}
    (target / "cell.json").write_text(json.dumps(place | numbers))
    for way, texts in ways.items():
        rows = zip(references, texts, strict=True)
        records = [{"id": str(i), "reference": r, "hypothesis": t} for i, (r, t) in enumerate(rows)]
        (target / f"{way}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


REFERENCES = [f"word number {n} of many" for n in range(60)]


def test_several_seeds_are_one_system(tmp_path):
    right, wrong = list(REFERENCES), [text.replace("many", "few") for text in REFERENCES]
    made_up(tmp_path, Cell("softmax", "full", 0), {"full": wrong}, REFERENCES)  # 20 %
    made_up(tmp_path, Cell("softmax", "full", 1), {"full": right}, REFERENCES)
    made_up(tmp_path, Cell("entmax", "full", 0), {"full": wrong[:30] + right[30:]}, REFERENCES)  # 10 %
    made_up(tmp_path, Cell("entmax", "full", 1), {"full": right}, REFERENCES)
    table = Grid(tmp_path)
    # Every utterance has one error in two answers, whichever utterances are drawn: no width, but two seeds far apart.
    assert table.rate("softmax", "full", "full", "word") == "10.0 [10.0, 10.0], seeds 0.0 to 20.0"
    rate = table.rate("entmax", "full", "full", "word")
    assert rate.startswith("5.0 [3.")
    assert rate.endswith("seeds 0.0 to 10.0")
    words, _, tests = table.comparison(("entmax", "full", "full"), ("softmax", "full", "full"))
    assert words.startswith("-5.0 [-6.")
    first, second = tests.split(", ")
    assert float(first) < 1e-6  # 60 segments, half of them better by one error
    assert second == "1*"  # no errors, no segments
    assert table.comparison(("entmax", "full", "full"), ("sparsemax", "full", "full")) is None


def test_the_report_compares_what_was_run(tmp_path):
    made_up(tmp_path, Cell("softmax", "full", 0), {"full": REFERENCES}, REFERENCES)
    made_up(tmp_path, Cell("entmax", "monotonic", 0), {"hard": [*REFERENCES[:-1], ""], "soft": REFERENCES}, REFERENCES)
    report = render(Grid(tmp_path), "A title", {"sparsemax-full-seed0": "it diverged"})
    assert report.startswith("# A title\n")
    compared = [line for line in report.splitlines() if line.startswith("| α-entmax, ")]
    assert [line.split(" | ")[:2] for line in compared] == [
        ["| α-entmax, monotonic, soft", "α-entmax, monotonic, hard"]
    ]
    assert "| entmax-monotonic-seed0 | 1,000 | 5 | 2.0 | 3.9 | 1.20 to 1.60 | 70 % | - | 0 % |" in report
    assert "- sparsemax-full-seed0: it diverged" in report


def test_an_empty_grid_says_that_nothing_was_run(tmp_path):
    report = render(Grid(tmp_path), "Nothing yet", {})
    assert report.count("not run") == 2 * 3 * len(PAPER)
    assert "No cell is finished." in report
    assert "No two cells to compare." in report


def test_cells_of_different_utterances_are_not_compared(tmp_path):
    made_up(tmp_path, Cell("softmax", "full", 0), {"full": REFERENCES}, REFERENCES)
    made_up(tmp_path, Cell("entmax", "full", 0), {"full": ["other"]}, ["other"])
    with pytest.raises(CellError, match="recognised different utterances"):
        render(Grid(tmp_path), "Mixed", {})


def test_what_cannot_run_is_refused_before_any_cell(tones, tmp_path, capsys):
    status = grid.main(arguments(tones, tmp_path / "none.yaml", tmp_path / "grid"))
    assert status == 1
    assert "there is no recipe at" in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()

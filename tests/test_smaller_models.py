"""The tables of smaller models: each variant is cut, scored, trained further and scored again, once; or refused."""

import json
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from experiments.real_speech import grid_cell
from experiments.real_speech.grid_cell import CellError
from experiments.smaller_models import study, table, variant
from experiments.smaller_models.table import Row, read_rows, render
from experiments.smaller_models.variant import RATE_SHARE, Study, Variant, check_same, further_training

from hf_entmax_asr import EntmaxAsrForConditionalGeneration, EntmaxAsrProcessor
from hf_entmax_asr.recognition import gated_off
from hf_entmax_asr.training import load_recipe, train
from hf_entmax_asr.training.recipe import recipe_to_dict
from hf_entmax_asr.training.training_state import read_training_state
from support.programs import HERE
from support.tones import tiny_recipe, weights, write_splits

STEPS = 3
CHANGES = ("--gates", "--prune", "1", "--waited-for", "1", "--reuse", "2")


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=6, test=6)


@pytest.fixture(scope="module")
def recipe(tones, tmp_path_factory) -> Path:
    """Of a model that the checkpoint is not, so that its own configuration is seen to hold."""
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    schedule = {"straight_through_fraction": 0.4, "max_steps": 50}
    file.write_text(yaml.safe_dump(recipe_to_dict(tiny_recipe(tones, schedule=schedule))))
    return file


@pytest.fixture(scope="module")
def checkpoint(tones, tmp_path_factory) -> Path:
    """Three encoder layers of two heads, a decoder layer of four monotonic heads, of which one has a gate of 0."""
    model = {"encoder_layers": 3, "decoder_attention_heads": 4}
    recipe = tiny_recipe(tones, model=model, schedule={"max_steps": 2}, evaluation={"compare_decodings": False})
    trained = train(recipe, tmp_path_factory.mktemp("run") / "run").last
    loaded = EntmaxAsrForConditionalGeneration.from_pretrained(trained)
    torch.nn.init.ones_(loaded.model.decoder.layers[0].encoder_attn.gate)
    with torch.no_grad():
        loaded.model.decoder.layers[0].encoder_attn.gate[2] = 0
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    loaded.save_pretrained(folder)
    EntmaxAsrProcessor.from_pretrained(trained).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def trained_in_this_process():
    with mock.patch.object(grid_cell, "subprocess", HERE):
        yield


@pytest.fixture(autouse=True)
def same_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def command(checkpoint: Path, tones: Path, recipe: Path, output: Path, *more: str) -> list[str]:
    words = [checkpoint, "--data", tones, "--recipe", recipe, "--output", output, "--steps", STEPS, *more]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def finished(checkpoint, tones, recipe, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("smaller")
    assert study.main(command(checkpoint, tones, recipe, output, *CHANGES)) == 0
    return output


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(report: str) -> dict[str, dict[str, dict[str, str]]]:
    """Of each section: rows by the name of the variant, as column -> cell."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for section in report.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        if lines:
            header = cells(lines[0])
            rows = [dict(zip(header, cells(line), strict=True)) for line in lines[2:]]
            found[section.splitlines()[0]] = {row["variant"]: row for row in rows}
    return found


@pytest.mark.slow
def test_each_variant_is_cut_scored_trained_and_scored(finished, checkpoint):
    rows = {row.folder.name: row for row in read_rows(finished)}
    assert list(rows) == ["unpruned", "gates", "redundant-1", "waited-for-1", "reuse-2"]
    full = rows["unpruned"].result["parameters"]
    for name, row in rows.items():
        start = EntmaxAsrForConditionalGeneration.from_pretrained(row.folder / "start")
        assert row.result["parameters"] == start.num_parameters()
        assert row.result["heads"] == 14
        size = (row.folder / "start" / "model.safetensors").stat().st_size
        assert row.result["megabytes"] == pytest.approx(size / 1e6, abs=1e-3)
        assert (start.num_parameters() < full) == (name != "unpruned")
        states = ["as_cut"] if name == "gates" else ["as_cut", "trained_further"]
        assert list(dict.fromkeys(state for state, _ in row.heard)) == states
        for state in states:
            assert row.result[state]["scores"].keys() == {"hard", "soft"}
            assert row.result[state]["last_stop_seconds"] > 0
        assert all(len(heard.ids) == 6 for heard in row.heard.values())
    assert rows["gates"].result["removed"] == {"decoder.layers.0.encoder_attn": [2]}
    assert rows["gates"].result["as_cut"] == rows["unpruned"].result["as_cut"]  # the outputs are the same
    (gone,) = rows["waited-for-1"].result["removed"]["decoder.layers.0.encoder_attn"]
    monotonic = json.loads((finished / "analysis.json").read_text())["monotonic"]
    assert monotonic["last_share"][gone] == max(monotonic["last_share"])
    assert (
        rows["waited-for-1"].result["as_cut"]["last_stop_seconds"] < rows["gates"].result["as_cut"]["last_stop_seconds"]
    )
    assert sum(map(len, rows["redundant-1"].result["removed"].values())) == 1
    assert (len(rows["reuse-2"].result["maps"]), sum(rows["reuse-2"].result["maps"])) == (2, 3)


@pytest.mark.slow
def test_further_training_begins_with_the_cut_checkpoint(finished, tones, recipe):
    for row in read_rows(finished):
        if row.kind == "gates":
            assert not (row.folder / "run").exists()
            continue
        before, after = weights(row.folder / "start"), weights(row.folder / "run" / "last")
        assert before.keys() == after.keys()
        moved = max((after[name] - before[name]).abs().max().item() for name in before)
        assert 0 < moved < 0.01  # three small steps away
        assert read_training_state(row.folder / "run" / "last").step == STEPS
        used = load_recipe(row.folder / "run" / "recipe.yaml")
        assert used.start_from == str(row.folder / "start")
        config = json.loads((row.folder / "run" / "last" / "config.json").read_text())
        assert (config["encoder_layers"], config["decoder_attention_heads"]) == (3, 4)  # not those of the recipe


@pytest.mark.slow
def test_the_tables(finished):
    report = (finished / "table.md").read_text()
    found = tables(report)
    pruned, shared = found["Heads removed"], found["Maps shared"]
    names = ["unpruned", "heads whose gate is 0", "most redundant encoder heads: 1", "most waited-for heads: 1"]
    assert list(pruned) == names
    assert list(shared) == ["unpruned", "maps in the encoder: 2"]
    assert [pruned[name]["heads removed"] for name in names] == ["0 of 14", "1 of 14", "1 of 14", "1 of 14"]
    assert [pruned[name]["p"] == "-" for name in names] == [True, True, False, False]
    assert pruned[names[1]]["WER after 3 steps, hard / soft [95 %]"] == "-"
    assert {row[task] for row in pruned.values() for task in ("encoder", "generate", "training step")} == {"-"}
    assert len(found["Every score"]) == 5
    assert "peak learning rate 0.00025, warm-up over 1, cool-down over the last 50 %" in report


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_times_are_added(finished, checkpoint, tones, recipe, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("a finished variant was run again")

    monkeypatch.setattr(variant, "train_run", refuse)
    monkeypatch.setattr(variant, "recognise_ways", refuse)
    monkeypatch.setattr(study, "analyze", refuse)
    before = (finished / "table.md").read_text()
    words = command(checkpoint, tones, recipe, finished, *CHANGES)
    assert study.main(words) == 0
    assert study.main([*words, "--table-only"]) == 0
    assert (finished / "table.md").read_text() == before
    for name, value in (("BATCH", 2), ("FRAMES", 60), ("TOKENS", 3)):
        monkeypatch.setattr(variant, name, value)
    assert study.main([*words, "--timing", "--timing-rounds", "1"]) == 0
    timed = {row.folder.name: row.timing["seconds"] for row in read_rows(finished)}
    assert len(timed) == 5
    assert all(list(tasks) == list(timed["gates"]) and len(tasks) == 3 for tasks in timed.values())
    assert [task.split(",")[0] for task in timed["gates"]] == ["training step", "encoder", "generate 3 tokens"]
    shown = tables((finished / "table.md").read_text())["Heads removed"]["heads whose gate is 0"]
    for task, column in zip(timed["gates"], ("training step", "encoder", "generate"), strict=True):
        both = timed["gates"][task]
        assert shown[column] == f"{both['after'] / both['before']:.2f}"
    # Once measured, times are kept too.
    monkeypatch.setattr(variant, "compare", refuse)
    assert study.main([*words, "--timing"]) == 0


@pytest.mark.slow
def test_other_settings_are_refused(finished, checkpoint, tones, recipe, capsys):
    words = command(checkpoint, tones, recipe, finished, *CHANGES)
    words[words.index("--steps") + 1] = "4"
    assert study.main(words) == 1
    assert "was begun with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_variant_is_told_and_the_others_go_on(checkpoint, tones, recipe, tmp_path, capsys):
    (tmp_path / "redundant-1").mkdir()
    (tmp_path / "redundant-1" / "run").touch()  # a file in the place of its training
    words = command(checkpoint, tones, recipe, tmp_path, "--gates", "--prune", "1", "--set", "schedule.max_steps=1")
    assert study.main(words) == 1
    assert "training of redundant-1 ended with status 1: " in capsys.readouterr().out
    assert [row.folder.name for row in read_rows(tmp_path)] == ["unpruned", "gates"]
    report = (tmp_path / "table.md").read_text()
    assert "- redundant-1: training of" in report
    assert "WER after 1 steps" in report
    # It goes on where it was: without the obstacle, with the checkpoint and the scores that are there.
    (tmp_path / "redundant-1" / "run").unlink()
    assert study.main(words) == 0
    assert [row.folder.name for row in read_rows(tmp_path)] == ["unpruned", "gates", "redundant-1"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--prune", "1", "4"), "--prune 4 must lie between 1 and 3 for this checkpoint: each layer keeps a head"),
        (("--waited-for", "3"), "--waited-for 3 must lie between 1 and 2 for this checkpoint"),  # 4, one of them silent
        (("--reuse", "3"), "--reuse 3 must lie between 1 and 2 for this checkpoint: its encoder computes 3 maps now"),
        (("--prune", "0"), "--prune 0 must lie between 1 and 3"),
        ((), "nothing to do: give --prune, --waited-for, --reuse or --gates"),
        (("--prune", "1", "--test-split", "dev"), "no split 'dev'"),
        (("--prune", "1", "--set", "schedule.warmup=1"), "unknown recipe key 'schedule.warmup'"),
        (("--table-only",), "there is nothing in"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(more, message, checkpoint, tones, recipe, tmp_path, capsys):
    assert study.main(command(checkpoint, tones, recipe, tmp_path / "out", *more)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named(checkpoint, tones, recipe, tmp_path, capsys):
    for words, message in (
        (command(tmp_path / "none", tones, recipe, tmp_path / "out", "--gates"), "there is no folder"),
        (command(checkpoint, tmp_path / "none", recipe, tmp_path / "out", "--gates"), str(tmp_path / "none")),
        (command(checkpoint, tones, tmp_path / "none.yaml", tmp_path / "out", "--gates"), "there is no recipe at"),
    ):
        assert study.main(words) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_not_silent_does_not_go_unseen(checkpoint, tones, recipe, tmp_path, capsys):
    begun = Study.begin(study.parse(command(checkpoint, tones, recipe, tmp_path, "--gates")))
    check_same(
        begun,
        Variant("gates", 1, {name: set(heads) for name, heads in gated_off(begun.model).items()}).cut(begun.model),
    )
    assert "logits differ by at most" in capsys.readouterr().out
    with pytest.raises(CellError, match="logits differ by"):
        check_same(begun, Variant("gates", 1, {"decoder.layers.0.encoder_attn": {1}}).cut(begun.model))


def test_further_training_is_gentle_and_can_be_set(recipe, checkpoint, tones, tmp_path):
    first = load_recipe(recipe)
    further = load_recipe(recipe, further_training(first, 40))
    assert further.optimizer.peak_learning_rate == pytest.approx(RATE_SHARE * first.optimizer.peak_learning_rate)
    assert (further.schedule.warmup_steps, further.schedule.max_steps) == (4, 40)
    assert further.schedule.straight_through_fraction == 1
    assert (further.model, further.features) == ({}, {})
    first.schedule.straight_through_fraction = 0
    assert load_recipe(recipe, further_training(first, 40)).schedule.straight_through_fraction == 0
    words = ("--gates", "--set", "optimizer.peak_learning_rate=1e-5", "model.dropout=0.3")
    begun = Study.begin(study.parse(command(checkpoint, tones, recipe, tmp_path, *words)))
    assert begun.recipe.optimizer.peak_learning_rate == 1e-5
    assert begun.recipe.model == {"dropout": 0.3}
    assert (begun.validation_split, begun.recipe.data.validation_split) == ("validation", None)


# The tables of made-up results.

REFERENCES = [f"word number {n} of many" for n in range(60)]


def made_up(
    output: Path, kind: str, count: int, wrong: int, seconds: dict[str, float] | None = None, **changes
) -> None:
    """A variant that has one error in the first `wrong` utterances after training, and in all before."""
    folder = output / (f"{kind}-{count}" if count else kind)
    scores = {"scores": {"full": {}}, "last_stop_seconds": None}
    result = {"kind": kind, "count": count, "removed": {}, "maps": [], "heads": 20, "parameters": 1000 - count}
    result |= {"megabytes": 1.5, "as_cut": scores, "trained_further": scores, **changes}
    for state, errors in (("as_cut", 60), ("trained_further", wrong)):
        (folder / state).mkdir(parents=True)
        texts = [text.replace("many", "few") if i < errors else text for i, text in enumerate(REFERENCES)]
        rows = enumerate(zip(REFERENCES, texts, strict=True))
        records = [{"id": str(i), "reference": reference, "hypothesis": text} for i, (reference, text) in rows]
        (folder / state / "full.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "variant.json").write_text(json.dumps(result))
    if seconds is not None:
        tasks = {task: {"before": 2.0, "after": 2 * ratio} for task, ratio in seconds.items()}
        (folder / "timing.json").write_text(
            json.dumps({"machine": "a machine, load 1\nkernels", "rounds": 7, "seconds": tasks})
        )


@pytest.fixture
def made_up_study(tmp_path, recipe) -> Path:
    tree = recipe_to_dict(load_recipe(recipe, ["schedule.max_steps=300"]))
    (tmp_path / "settings.json").write_text(json.dumps({"checkpoint": "best", "recipe": tree, "test_split": "dev"}))
    return tmp_path


def test_tables_of_made_up_results(made_up_study):
    ratios = {"training step, 8 x 9 frames": 0.8, "encoder, 8 x 9 frames": 0.7, "generate 9 tokens, greedy": 0.95}
    made_up(made_up_study, "redundant", 10, 55, removed={"a": [0, 1], "b": [3]})
    made_up(made_up_study, "redundant", 2, 0, ratios, removed={"a": [0]})
    made_up(made_up_study, "unpruned", 0, 0)
    made_up(made_up_study, "reuse", 2, 60, maps=[4, 2])
    made_up(made_up_study, "reuse", 3, 60, maps=[2, 2, 2])
    report = render(made_up_study, {"waited-for-1": "it diverged"})
    found = tables(report)
    pruned, shared = found["Heads removed"], found["Maps shared"]
    assert list(pruned) == ["unpruned", "most redundant encoder heads: 2", "most redundant encoder heads: 10"]
    assert list(shared) == ["unpruned", "maps in the encoder: 3", "maps in the encoder: 2"]
    ten = pruned["most redundant encoder heads: 10"]
    assert (ten["heads removed"], ten["parameters"], ten["MB"]) == ("3 of 20", "990", "1.50")
    assert ten["WER as cut"] == "20.0"  # one of five words
    assert ten["WER after 300 steps [95 %]"].startswith("18.3 [1")
    assert float(ten["p"]) < 1e-6  # 55 segments with an error, against none
    assert (ten["encoder"], ten["generate"], ten["training step"]) == ("-", "-", "-")
    two = pruned["most redundant encoder heads: 2"]
    assert (two["WER after 300 steps [95 %]"], two["p"]) == ("0.0 [0.0, 0.0]", "1*")
    assert (two["encoder"], two["generate"], two["training step"]) == ("0.70", "0.95", "0.80")
    assert shared["maps in the encoder: 2"]["layers to a map"] == "4, 2"
    assert "last stop, s" not in two  # there are no monotonic heads
    assert "- waited-for-1: it diverged" in report
    assert "- most redundant encoder heads: 10 (a 0, 1; b 3)" in report
    assert "- timed: most redundant encoder heads: 2: a machine, load 1\n\nkernels\n" in report


def test_variants_of_other_utterances_are_not_compared(made_up_study):
    made_up(made_up_study, "unpruned", 0, 0)
    made_up(made_up_study, "redundant", 2, 0)
    file = made_up_study / "redundant-2" / "trained_further" / "full.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(CellError, match="hold different utterances"):
        render(made_up_study, {})


def test_a_table_without_the_control_or_anything_says_so(made_up_study):
    assert "No variant is finished." in render(made_up_study, {})
    made_up(made_up_study, "redundant", 2, 0)
    assert Row(made_up_study / "redundant-2").p(None) == table.ABSENT
    assert tables(render(made_up_study, {}))["Heads removed"]["most redundant encoder heads: 2"]["p"] == "-"

"""Whole runs: exact resume, phases, budgets, averages, divergence."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from hf_entmax_asr.metrics import Scores
from hf_entmax_asr.recognition import DataError
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.training import TrainingDiverged, read_history, train
from hf_entmax_asr.training import engine as engine_module
from hf_entmax_asr.training.checkpointing import CheckpointStore
from hf_entmax_asr.training.engine import TrainingRun
from support.tones import tiny_recipe, weights, write_splits, write_tones

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=5)


@pytest.fixture(scope="module")
def whole_run(tones, tmp_path_factory):
    """8 steps of 2 micro-batches over several epochs, in one go, and the recipe."""
    recipe = tiny_recipe(tones, batching={"accumulation_steps": 2}, schedule={"straight_through_fraction": 0.3})
    output = tmp_path_factory.mktemp("whole") / "run"
    return recipe, train(recipe, output, card_template=(ROOT / "model_cards" / "template.md").read_text())


def test_stop_and_resume_equals_one_run_bit_for_bit(whole_run, tmp_path):
    recipe, whole = whole_run
    stopped = train(recipe, tmp_path / "run", stop_after=3)
    assert (stopped.step, stopped.finished) == (3, False)
    torch.manual_seed(99)  # what happened in between must not matter
    resumed = train(recipe, tmp_path / "run", resume=True)
    assert (resumed.step, resumed.finished) == (8, True)
    for name in ("model.safetensors", "training_state/optimizer.safetensors", "training_state/random.safetensors"):
        expected, actual = load_file(whole.last / name), load_file(resumed.last / name)
        assert expected.keys() == actual.keys()
        assert len(expected) > 0
        for key in expected:
            assert torch.equal(expected[key], actual[key]), f"{name}: {key}"
    # The line of step 4 averages steps 3 and 4 in one run and step 4 alone in the other; all others are equal.
    histories = [
        {
            (r["step"], r.get("evaluation")): r.get("loss", r.get("wer"))
            for r in read_history(run.last.parent / "history.jsonl")
            if r["step"] != 4
        }
        for run in (whole, resumed)
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 5


def test_a_finished_run_has_loadable_checkpoints_scores_and_a_card(whole_run):
    recipe, result = whole_run
    assert list(result.scores) == ["hard", "soft"]
    assert result.best.resolve() == result.last.resolve()
    model, processor = load_recogniser(result.best, "cpu")
    assert model.config.vocab_size == len(processor.tokenizer)
    assert not model.config.monotonic_straight_through
    card = (result.best / "README.md").read_text()
    assert f"| hard | {100 * result.scores['hard'].words.rate:.2f} |" in card
    assert "max_steps: 8" in card
    assert recipe.data.path not in card
    state = json.loads((result.best / "training_state" / "state.json").read_text())
    assert state["step"] == 8
    assert state["scores"] == {"8": result.scores["hard"].as_dict()["wer"]}
    assert state["tolerances"] == {"8": result.scores["hard"].tolerance("wer")}
    pickles = [p for p in result.last.rglob("*") if p.suffix in (".pt", ".bin", ".pkl", ".pth")]
    assert pickles == []


def test_history_holds_losses_alphas_and_gates(whole_run):
    _, result = whole_run
    records = read_history(result.last.parent / "history.jsonl")
    training = [r for r in records if "evaluation" not in r]
    assert [r["step"] for r in training] == [2, 4, 6, 8]
    for record in training:
        assert {"loss", "cross_entropy_loss", "ctc_loss", "head_penalty", "gradient_norm"} <= record.keys()
        assert len(record["alpha"]["encoder.layers.0.self_attn"]) == 2
        assert len(record["gate"]["decoder.layers.0.encoder_attn"]) == 2
        parts = 0.7 * record["cross_entropy_loss"] + 0.3 * record["ctc_loss"] + 0.01 * record["head_penalty"]
        assert record["loss"] == pytest.approx(parts, abs=1e-4)
    assert [r["evaluation"] for r in records if "evaluation" in r] == ["validation/hard", "validation/soft"]


def test_another_data_set_or_model_cannot_be_resumed(whole_run, tones, tmp_path):
    recipe, result = whole_run
    with pytest.raises(CheckpointError, match="holds a run"):
        train(recipe, result.last.parent)
    with pytest.raises(CheckpointError, match=r"model.d_model was 16 and is now 32"):
        train(replace(recipe, model=recipe.model | {"d_model": 32}), result.last.parent, resume=True)
    write_tones(tmp_path / "data" / "train", 24, seed=7)
    write_tones(tmp_path / "data" / "validation", 5, seed=1)
    moved = replace(recipe, data=replace(recipe.data, path=str(tmp_path / "data")))
    with pytest.raises(CheckpointError, match="training data is not that of"):
        train(moved, result.last.parent, resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        train(recipe, tmp_path / "nothing", resume=True)


def damage_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda step: (step / "training_state" / "recipe.yaml").write_text("model: ["), "recipe.yaml"),
        (lambda step: (step / "training_state" / "recipe.yaml").unlink(), "recipe.yaml"),
        (lambda step: damage_json(step / "training_state" / "state.json", step=7), "put together of two"),
        (lambda step: (step / "training_state" / "random.safetensors").write_bytes(b"x"), "random.safetensors"),
        (lambda step: (step / "training_state" / "optimizer.safetensors").unlink(), "optimizer.safetensors"),
        (lambda step: (step / "model.safetensors").write_bytes(b"x"), "model.safetensors"),
        (lambda step: (step.parent.parent / "history.jsonl").write_text("{}\n{}\n"), "history.jsonl, line 1"),
    ],
)
def test_a_damaged_run_is_refused_and_left_as_it_is(whole_run, tmp_path, damage, said):
    recipe, result = whole_run
    shutil.copytree(result.last.parent, tmp_path / "run", symlinks=True)
    damage(tmp_path / "run" / "checkpoints" / "step-00000008")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(CheckpointError, match=said):
        train(recipe, tmp_path / "run", resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_checkpoint_set_aside_by_a_killed_save_is_found(whole_run, tmp_path):
    recipe, result = whole_run
    shutil.copytree(result.last.parent, tmp_path / "run", symlinks=True)
    folder = tmp_path / "run" / "checkpoints"
    (folder / "step-00000008").rename(folder / ".step-00000008.abcdef.old")
    (folder / ".step-00000008.ghijkl.partial").mkdir()
    resumed = train(recipe, tmp_path / "run", resume=True)
    assert (resumed.step, resumed.finished) == (8, True)
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000008"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_recording_that_vanishes_is_named_and_checkpoints_stay(tones, tmp_path, monkeypatch, workers):
    shutil.copytree(tones, tmp_path / "data")
    recipe = tiny_recipe(
        tmp_path / "data",
        data={"feature_cache_megabytes": 0},
        batching={"num_workers": workers},
        evaluation={"save_every_steps": 1},
    )
    train(recipe, tmp_path / "run", stop_after=1)
    batches = engine_module.training_batches

    def without_recordings(*arguments):
        for file in (tmp_path / "data" / "train").glob("*.flac"):
            file.unlink()
        return batches(*arguments)

    monkeypatch.setattr(engine_module, "training_batches", without_recordings)
    with pytest.raises(DataError, match=r"a batch cannot be read: .*\.flac does not exist"):
        train(recipe, tmp_path / "run", resume=True)
    assert CheckpointStore(tmp_path / "run").steps() == [1]


def test_a_checkpoint_that_cannot_be_written_is_one_error(tones, tmp_path, monkeypatch):
    save, full = engine_module.save_training_state, OSError(errno.ENOSPC, "No space left on device", "optimizer")

    def save_until_the_disk_is_full(folder, state, *rest):
        if state.step > 1:
            raise full
        save(folder, state, *rest)

    monkeypatch.setattr(engine_module, "save_training_state", save_until_the_disk_is_full)
    recipe = tiny_recipe(tones, evaluation={"save_every_steps": 1})
    with pytest.raises(CheckpointError, match=r"of step 2 could not be written: .*No space left.*whole one is .*1\."):
        train(recipe, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_file_system_without_links_gets_copies(tones, tmp_path, monkeypatch):
    def no_links(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    result = train(tiny_recipe(tones, schedule={"max_steps": 2}), tmp_path / "run")
    assert not result.last.is_symlink()
    load_recogniser(result.last, "cpu")
    assert not (result.last / "training_state").exists()
    monkeypatch.undo()
    CheckpointStore(tmp_path / "run").link("last", tmp_path / "run" / "checkpoints" / "step-00000002")
    assert result.last.is_symlink()


def test_the_last_share_of_the_budget_trains_the_hard_path(tones, tmp_path, monkeypatch):
    phases = []
    step = TrainingRun._step

    def noted(self, batches):
        step(self, batches)
        phases.append(self.unwrapped_model.config.monotonic_straight_through)

    monkeypatch.setattr(TrainingRun, "_step", noted)
    schedule = {"max_steps": 10, "straight_through_fraction": 0.3}
    train(tiny_recipe(tones, schedule=schedule, data={"validation_split": None}), tmp_path / "run")
    assert phases == [False] * 7 + [True] * 3


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_a_budget_of_minutes_ends_the_run(tones, tmp_path, monkeypatch, clock):
    seconds = iter(range(10**6))
    monkeypatch.setitem(engine_module.CLOCKS, clock, lambda: float(next(seconds)))
    schedule = {"max_steps": None, "max_minutes": 1.0, "clock": clock}
    recipe = tiny_recipe(tones, schedule=schedule, data={"validation_split": None})
    result = train(recipe, tmp_path / "run")
    assert result.finished
    assert 5 < result.step < 60


def test_averaging_at_the_end_gives_a_candidate_for_the_best(tones, tmp_path):
    evaluation = {"every_steps": 2, "average": "last", "average_count": 3, "keep_best": 1}
    result = train(tiny_recipe(tones, evaluation=evaluation), tmp_path / "run")
    steps = [weights(tmp_path / "run" / "checkpoints" / f"step-{step:08d}") for step in (4, 6, 8)]
    mean = weights(tmp_path / "run" / "average")
    for name in mean:
        expected = torch.stack([s[name].double() for s in steps]).mean(0).float()
        torch.testing.assert_close(mean[name], expected, rtol=0, atol=0)
    names = [r.get("evaluation") for r in read_history(tmp_path / "run" / "history.jsonl")]
    assert names[-2:] == ["mean of steps [4, 6, 8]/hard", "mean of steps [4, 6, 8]/soft"]
    load_recogniser(result.best, "cpu")


@pytest.mark.parametrize(
    ("average", "wrong", "best"),
    [
        ("none", [5, 2, 3, 4], "step-00000006"),
        ("none", [5, 2, 3, 3], "step-00000008"),
        ("none", [5, 1, 3, 3], "step-00000004"),
        ("last", [5, 2, 4, 3, 3], "average"),
        ("last", [5, 2, 4, 3, 4], "step-00000008"),
    ],
)
def test_best_is_the_latest_within_one_standard_error_of_the_lowest_score(
    average, wrong, best, tones, tmp_path, monkeypatch
):
    """Of ten utterances of one word so many are wrong at steps 2, 4, 6 and 8, and then in the average. The standard
    error of 2 in 10 is sqrt(0.2 * 0.8 / 9) = 13 %, of 1 in 10 it is 10 %."""
    found = [{"hard": Scores.of(["a"] * 10, ["b"] * count + ["a"] * (10 - count))} for count in reversed(wrong)]
    monkeypatch.setattr(engine_module, "score_decodings", lambda *_, **__: found.pop())
    evaluation = {"every_steps": 2, "keep_last": 1, "average": average, "average_count": 2}
    result = train(tiny_recipe(tones, evaluation=evaluation), tmp_path / "run")
    assert result.best.resolve().name == best


def test_a_diverged_run_stops_and_keeps_its_checkpoints_clean(tones, tmp_path, monkeypatch):
    step = TrainingRun._step

    def poisoned(self, batches):
        if self.state.step == 5:
            next(self.unwrapped_model.parameters()).data.fill_(float("nan"))
        step(self, batches)

    monkeypatch.setattr(TrainingRun, "_step", poisoned)
    for log_every in (2, 100):  # noticed by the log line, or before a checkpoint is written
        evaluation = {"save_every_steps": 1, "log_every_steps": log_every}
        recipe = tiny_recipe(tones, evaluation=evaluation, data={"validation_split": None})
        with pytest.raises(TrainingDiverged, match=r"between steps [04] and 6.*last checkpoint"):
            train(recipe, tmp_path / f"run{log_every}")
        last = CheckpointStore(tmp_path / f"run{log_every}").last()
        assert last.name == "step-00000005"
        assert all(bool(torch.isfinite(t).all()) for t in weights(last).values())


def test_mixed_precision_is_accelerates_setting_and_saves_float32(tones, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # one process has one setting; other tests have made it
    try:
        accelerator = Accelerator(mixed_precision="bf16")
        result = train(tiny_recipe(tones, schedule={"max_steps": 3}), tmp_path / "bf16", accelerator=accelerator)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    exact = train(tiny_recipe(tones, schedule={"max_steps": 3}), tmp_path / "fp32")
    half, full = weights(result.last), weights(exact.last)
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert any(not torch.equal(half[name], full[name]) for name in full)
    losses = [read_history(run.last.parent / "history.jsonl")[0]["loss"] for run in (result, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_gates_close_exactly(tones, tmp_path):
    model, optimizer = {"head_regularizer_weight": 100.0}, {"peak_learning_rate": 0.1}
    recipe = tiny_recipe(tones, model=model, optimizer=optimizer, data={"validation_split": None})
    result = train(recipe, tmp_path / "run", stop_after=3)
    gates = load_recogniser(result.last, "cpu")[0].gates()
    assert all(bool((gate == 0).all()) for gate in gates.values())
    assert len(gates) == 1


def test_a_bad_card_template_fails_before_training(tones, tmp_path):
    with pytest.raises(ValueError, match="placeholder"):
        train(tiny_recipe(tones), tmp_path / "run", card_template="$nobody_knows")
    assert CheckpointStore(tmp_path / "run").last() is None


def test_training_learns(tones, tmp_path):
    """A small deterministic model in a few steps: the loss must fall well below that of guessing letters."""
    recipe = tiny_recipe(
        tones,
        model={"d_model": 32, "encoder_ffn_dim": 64, "dropout": 0.0, "head_drop": 0.0, "label_smoothing": 0.0}
        | {"head_regularizer": "none", "head_regularizer_layers": []},
        schedule={"max_steps": 60, "warmup_steps": 20},
        optimizer={"peak_learning_rate": 4e-3},
        augmentation={"frequency_masks": 0, "time_masks": 0},
        data={"validation_split": None},
        evaluation={"log_every_steps": 20, "tensorboard": True},
    )
    train(recipe, tmp_path / "run")
    losses = [record["loss"] for record in read_history(tmp_path / "run" / "history.jsonl")]
    assert losses[-1] < 0.75 * losses[0]
    assert losses[-1] < 2.2  # log(9) letters
    assert list((tmp_path / "run" / "tensorboard").iterdir())

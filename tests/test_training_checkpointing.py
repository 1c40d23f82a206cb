"""Checkpoints: the best and the last, averages."""

import json
from random import Random

import pytest
import torch
from safetensors.torch import save_file

from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training import average_checkpoints
from hf_entmax_asr.training.checkpointing import CheckpointStore
from hf_entmax_asr.training.training_state import TrainingState, read_training_state
from support.tones import weights


def test_the_store_keeps_the_last_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=1)
    scores: dict[int, float] = {}
    for step, score in ((10, 5.0), (20, 3.0), (30, 4.0), (40, None), (50, 6.0)):
        if score is not None:
            scores[step] = score
        store.save(step, lambda folder, step=step: (folder / "step").write_text(str(step)), scores)
    assert store.steps() == [20, 40, 50]
    assert (tmp_path / "best" / "step").read_text() == "20"
    assert (tmp_path / "last" / "step").read_text() == "50"
    assert store.ranked(scores) == [20, 50]


def saved(store, step, scores, tolerances):
    """The step that `best` names after the one at `step` was saved."""
    store.save(step, lambda folder: (folder / "step").write_text(str(step)), scores, tolerances)
    return int((store.output / "best" / "step").read_text())


def test_the_latest_within_the_tolerance_of_the_best_is_chosen(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=1)
    scores: dict[int, float] = {}
    tolerances: dict[int, float] = {}
    best = []
    # 20 is the lowest score of all until 70. Of those after it, 30 and 50 lie within 1.5 of it, 40 and 60 do not; the
    # tolerance of another step than the best one (9.0 at step 60) counts for nothing.
    for step, score, tolerance in (
        (10, 5.0, 1.0),
        (20, 3.0, 1.5),
        (30, 4.5, 1.0),
        (40, 4.6, 9.0),
        (50, 3.5, 1.0),
        (60, 8.0, 9.0),
        (70, 2.0, 0.5),
        (80, 2.6, 1.0),
    ):
        scores[step], tolerances[step] = score, tolerance
        best.append(saved(store, step, scores, tolerances))
    assert best == [10, 20, 30, 30, 50, 50, 70, 70]
    assert store.steps() == [70, 80]


def test_the_choice_does_not_depend_on_how_many_checkpoints_are_kept(tmp_path):
    random = Random(0)
    rows = [(step, random.uniform(3, 9), random.uniform(0, 2)) for step in range(1, 40)]
    for keep_last, keep_best in ((1, 0), (1, 1), (3, 2), (50, 50)):
        store = CheckpointStore(tmp_path / f"{keep_last}-{keep_best}", keep_last, keep_best)
        scores: dict[int, float] = {}
        tolerances: dict[int, float] = {}
        for step, score, tolerance in rows:
            scores[step], tolerances[step] = score, tolerance
            lowest = min(scores, key=lambda s: scores[s])
            expected = max(s for s in scores if scores[s] <= scores[lowest] + tolerances[lowest])
            assert saved(store, step, scores, tolerances) == expected


def test_a_state_without_tolerances_is_read(tmp_path):
    folder = tmp_path / "training_state"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"step": 7, "scores": {"4": 3.5}}))
    assert read_training_state(tmp_path) == TrainingState(step=7, scores={4: 3.5})
    (folder / "state.json").write_text(json.dumps({"step": 7, "scores": {"4": 3.5}, "tolerances": {"4": 0.5}}))
    assert read_training_state(tmp_path).tolerances == {4: 0.5}


def test_the_average_is_the_mean(tmp_path):
    for index, value in enumerate((1.0, 2.0, 6.0)):
        folder = tmp_path / str(index)
        (folder / "training_state").mkdir(parents=True)
        (folder / "config.json").write_text(str(index))
        save_file({"w": torch.full((2,), value), "half": torch.full((1,), value).half()}, folder / "model.safetensors")
    average_checkpoints([tmp_path / str(i) for i in range(3)], tmp_path / "mean")
    mean = weights(tmp_path / "mean")
    torch.testing.assert_close(mean["w"], torch.full((2,), 3.0))
    assert mean["half"].dtype == torch.float16
    assert sorted(p.name for p in (tmp_path / "mean").iterdir()) == ["config.json", "model.safetensors"]
    save_file({"other": torch.zeros(1)}, tmp_path / "1" / "model.safetensors")
    with pytest.raises(CheckpointError, match="another model"):
        average_checkpoints([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")

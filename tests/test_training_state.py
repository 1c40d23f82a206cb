"""The state of a run: kept exactly, checked before it is used. And one training at a time in a folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training.run_lock import LOCK, locked
from hf_entmax_asr.training.training_state import (
    TrainingState,
    load_optimizer,
    load_trained_weights,
    optimizer_tensors,
    random_state,
    read_random_state,
    read_training_state,
    restore_random_state,
    save_training_state,
    without_state,
)

ALONE = SimpleNamespace(is_main_process=True, num_processes=1)


def trained():
    """A model of which one part never gets a gradient, and its optimizer after two steps."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(3, 2), "unused": torch.nn.Linear(2, 2)})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        model["used"](torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    model, optimizer = trained()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    stateless = without_state(model, optimizer)
    assert stateless == ["unused.weight", "unused.bias"]
    states = [random_state()]
    save_training_state(
        tmp_path,
        TrainingState(step=7, scores={4: 3.5}),
        optimizer_tensors(model, optimizer),
        states,
        weights,
        stateless,
    )
    return tmp_path


def test_a_state_is_read_as_it_was_written(saved):
    model, optimizer = trained()
    expected = optimizer_tensors(model, optimizer)
    drawn = torch.rand(3)
    restore_random_state(read_random_state(saved, 0))
    fresh = torch.optim.AdamW(model.parameters(), fused=True)
    load_optimizer(saved, model, fresh)
    found = optimizer_tensors(model, fresh)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(torch.rand(3), drawn)
    assert read_random_state(saved, 1) == {}
    assert read_training_state(saved) == TrainingState(step=7, scores={4: 3.5})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({"used.weight/exp_avg": torch.zeros(1, 3)}), "used.weight/exp_avg is of shape (1, 3)"),
        (lambda t: t.update({"used.weight/exp_avg_sq": torch.zeros(6)}), "must be fractions of shape (2, 3)"),
        (lambda t: t.update({"used.bias/step": torch.zeros(2)}), "used.bias/step is of shape (2,)"),
        (lambda t: t.update({"used.bias/exp_avg": torch.zeros(2, dtype=torch.int64)}), "type torch.int64"),
        (lambda t: t.update({"used.bias/exp_avg": torch.zeros(2, dtype=torch.float64)}), "must be torch.float32"),
        (lambda t: t.update({"used.bias/exp_avg": torch.full((2,), float("nan"))}), "holds NaN or infinite"),
        (lambda t: t.update({"used.bias/exp_avg_sq": torch.full((2,), -1.0)}), "holds numbers below 0"),
        (lambda t: t.update({"used.bias/other": torch.zeros(2)}), "it must have step, exp_avg, exp_avg_sq"),
        (lambda t: t.pop("used.bias/step"), "it must have step, exp_avg, exp_avg_sq"),
        (lambda t: [t.pop(f"used.bias/{part}") for part in ("step", "exp_avg", "exp_avg_sq")], "lacks ['unused"),
        (lambda t: t.update({"more.bias/step": torch.zeros(())}), "it has ['more.bias']"),
        (lambda t: t.clear(), "belongs to another model"),
    ],
)
def test_optimizer_state_that_does_not_fit_is_refused_and_nothing_of_it_used(saved, change, said):
    file = saved / "training_state" / "optimizer.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    change(tensors)
    save_file(tensors, file, metadata=metadata)
    model, _ = trained()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        load_optimizer(saved, model, optimizer)
    assert str(file) in str(caught.value)
    assert not any(optimizer.state.values())


def test_damaged_files_are_named(saved):
    folder = saved / "training_state"
    model, optimizer = trained()
    for name, read in (
        ("optimizer.safetensors", lambda: load_optimizer(saved, model, optimizer)),
        ("random.safetensors", lambda: read_random_state(saved, 0)),
        ("weights.safetensors", lambda: load_trained_weights(saved, model)),
    ):
        whole = (folder / name).read_bytes()
        for damaged in (b"", whole[:-3], b"\xff" * 8 + whole[8:]):
            (folder / name).write_bytes(damaged)
            with pytest.raises(CheckpointError, match=name):
                read()
        (folder / name).unlink()
        os.mkfifo(folder / name)  # which a reader would wait for
        with pytest.raises(CheckpointError, match=f"{name} is a pipe"):
            read()
        (folder / name).unlink()
        (folder / name).write_bytes(whole)
    tensors = load_file(folder / "optimizer.safetensors")
    save_file(tensors, folder / "optimizer.safetensors", metadata={"parameters without state": "["})
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: .* is not JSON"):
        load_optimizer(saved, model, optimizer)
    save_file({"0/cpu": torch.zeros(5, dtype=torch.uint8)}, folder / "random.safetensors")
    with pytest.raises(CheckpointError, match="holds no random state of torch"):
        read_random_state(saved, 0)
    save_file({"0/cuda": torch.zeros(5, dtype=torch.uint8)}, folder / "random.safetensors")
    with pytest.raises(CheckpointError, match="lacks the random state"):
        read_random_state(saved, 0)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    for change in (
        {"used.bias": torch.zeros(3)},
        {"used.bias": torch.zeros(2).half()},
        {"used.bias": torch.full((2,), float("inf"))},
    ):
        save_file(weights | change, folder / "weights.safetensors")
        with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
            load_trained_weights(saved, model)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "x"},
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"elapsed_seconds": float("nan")},
        {"elapsed_seconds": -1.0},
        {"next_index": None},
        {"data_fingerprint": 3},
        {"scores": [1]},
        {"scores": {"x": 1.0}},
        {"scores": {"4": float("nan")}},
        {"scores": {"4": "3"}},
        {"scaler": 1},
        {"unknown": 1},
    ],
)
def test_counters_that_no_run_leaves_are_refused(saved, change):
    file = saved / "training_state" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        read_training_state(saved)


def test_no_two_trainings_work_in_one_folder(tmp_path):
    holder = (
        "import sys\nfrom pathlib import Path\nfrom types import SimpleNamespace\n"
        "from hf_entmax_asr.training.run_lock import locked\n"
        "with locked(Path(sys.argv[1]), SimpleNamespace(is_main_process=True, num_processes=1)):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        said = f"another training is at work in .*: process {other.pid} on"
        with pytest.raises(CheckpointError, match=said), locked(tmp_path, ALONE):
            pass
    finally:
        other.kill()  # as a power cut would: it frees nothing itself
        other.communicate()
    with locked(tmp_path, ALONE):
        assert f"process {os.getpid()} " in (tmp_path / LOCK).read_text()
        with pytest.raises(CheckpointError, match="this process trains in"), locked(tmp_path, ALONE):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file; name a folder"), locked(tmp_path / "file", ALONE):
        pass


def test_the_folder_of_a_run_is_made(tmp_path):
    with locked(tmp_path / "a" / "run", ALONE):
        assert (tmp_path / "a" / "run").is_dir()
    assert Path(tmp_path / "a" / "run" / LOCK).read_text() == ""

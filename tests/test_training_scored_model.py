"""What is scored and saved: the running mean of the weights, and whole weights where processes share them (FSDP)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

from hf_entmax_asr.corpora import load_folder
from hf_entmax_asr.recognition import analyze, load_analysis
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.training import RecipeError, train
from hf_entmax_asr.training.recipe import recipe_to_dict
from support.tones import tiny_recipe, weights, write_splits

ROOT = Path(__file__).parent.parent
TRAINED = "training_state/weights.safetensors"


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=4)


def recipe(tones: Path, ema_decay: float | None, **sections):
    evaluation = {"save_every_steps": 1, "keep_last": 9}
    optimizer = {"ema_decay": ema_decay}
    return tiny_recipe(tones, optimizer=optimizer, evaluation=evaluation, schedule={"max_steps": 6}, **sections)


@pytest.fixture(scope="module")
def averaged(tones, tmp_path_factory):
    """A run of 6 steps whose mean forgets: the decay of early steps, (1 + n) / (10 + n), passes 0.3 at the third."""
    return train(recipe(tones, 0.3), tmp_path_factory.mktemp("ema") / "run")


def test_the_mean_is_the_recursion_and_is_what_the_checkpoints_hold(averaged):
    folders = [averaged.last.parent / "checkpoints" / f"step-{step:08d}" for step in range(1, 7)]
    mean = {name: tensor.double() for name, tensor in weights(folders[0]).items()}
    for step, folder in enumerate(folders[1:], 2):
        decay = min(0.3, (1 + step) / (10 + step))
        trained, shown = load_file(folder / TRAINED), weights(folder)
        for name, tensor in trained.items():
            mean[name] = decay * mean[name] + (1 - decay) * tensor.double()
            torch.testing.assert_close(shown[name].double(), mean[name], rtol=1e-5, atol=1e-7)
        assert any(not torch.equal(shown[name], tensor) for name, tensor in trained.items())


def test_the_mean_changes_nothing_in_training_and_no_mean_leaves_no_file(averaged, tones, tmp_path):
    plain = train(recipe(tones, None), tmp_path / "plain")
    trained, expected = load_file(averaged.last / TRAINED), weights(plain.last)
    assert all(torch.equal(trained[name], expected[name]) for name in trained)
    assert not (plain.last / TRAINED).exists()


def test_a_run_with_a_mean_resumes_bit_for_bit(averaged, tones, tmp_path):
    train(recipe(tones, 0.3), tmp_path / "run", stop_after=3)
    resumed = train(recipe(tones, 0.3), tmp_path / "run", resume=True)
    for name in ("model.safetensors", TRAINED, "training_state/optimizer.safetensors"):
        expected, actual = load_file(averaged.last / name), load_file(resumed.last / name)
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert resumed.scores == averaged.scores


def test_trained_weights_of_another_model_are_refused(tones, tmp_path):
    stopped = train(recipe(tones, 0.3), tmp_path / "run", stop_after=1)
    save_file({"other": torch.zeros(1)}, stopped.last / TRAINED)
    with pytest.raises(CheckpointError, match="weights of another model"):
        train(recipe(tones, 0.3), tmp_path / "run", resume=True)


def test_the_first_fsdp_is_refused_before_anything_is_written(tones, tmp_path):
    first = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(RecipeError, match="fsdp_version: 2"):
        train(recipe(tones, None), tmp_path / "run", accelerator=first)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sharded_processes_train_as_one_with_a_mean_and_a_stop_in_between(tones, tmp_path):
    """FSDP by scripts/launch/fsdp.yaml, on CPUs (support/train_sharded.py), against one process with as many
    batches a step."""
    still = {"dropout": 0.0, "head_drop": 0.0, "energy_noise_std": 0.0}
    masks = {"frequency_masks": 0, "time_masks": 0}
    alone = train(
        recipe(tones, 0.9, model=still, augmentation=masks, batching={"accumulation_steps": 4}), tmp_path / "alone"
    )
    shared = recipe(tones, 0.9, model=still, augmentation=masks, batching={"accumulation_steps": 2})
    shared.evaluation.analyze_every_steps, shared.evaluation.analyze_utterances = 4, 2
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_to_dict(shared)))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "scripts/launch/fsdp.yaml"]
    command += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    command += [ROOT / "tests/support/train_sharded.py", tmp_path / "r.yaml", tmp_path / "shared", "no"]
    done = subprocess.run(
        [*command, "2"],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for said in ("finished False after 2 steps", "finished True after 6 steps"):
        assert f"{said}, 0.5" in done.stdout  # each process holds half of the weights, rounded up row by row
    last = tmp_path / "shared" / "last"
    for file in ("model.safetensors", TRAINED, "training_state/optimizer.safetensors"):
        expected, actual = load_file(alone.last / file), load_file(last / file)
        assert expected.keys() == actual.keys()
        for name, tensor in expected.items():
            if "self_attn.k_proj.bias" in name:
                continue  # it shifts all scores of a row alike: its gradient is 0 but for rounding
            torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert json.loads((last / "config.json").read_text())["architectures"] == ["EntmaxAsrForConditionalGeneration"]
    assert "| hard |" in (last / "README.md").read_text()
    # The main process alone analyses, with whole weights: what one process finds in the checkpoint.
    files = sorted(path.name for path in (tmp_path / "shared" / "analysis").glob("step-*"))
    assert files == ["step-00000004.json", "step-00000006.json"]
    found = load_analysis(tmp_path / "shared" / "analysis" / files[-1])
    model, processor = load_recogniser(str(last), "cpu")
    assert found.modules == analyze(model, processor, load_folder(tones)["validation"].select([0, 3])).modules
    assert (tmp_path / "shared" / "analysis" / "index.html").is_file()

"""Batches as the loop gets them: read by workers, perturbed, and resumed."""

from pathlib import Path

import pytest
import torch

from hf_entmax_asr.training import RecipeError, train
from hf_entmax_asr.training.batch_loader import training_batches
from support.tones import tiny_recipe, weights, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=5)


def test_features_read_by_workers_train_as_features_read_here(tones, tmp_path):
    data = {"validation_split": None, "feature_cache_megabytes": 0}
    runs = [
        train(tiny_recipe(tones, data=data, batching={"num_workers": workers}), tmp_path / str(workers), stop_after=5)
        for workers in (0, 1)
    ]
    here, there = (weights(run.last) for run in runs)
    assert all(torch.equal(here[name], there[name]) for name in here)


AUGMENTATION = {"speeds": [0.9, 1.0, 1.1], "noise_share": 0.5, "volume_db": 3.0}


def perturbed(root: Path, **sections):
    features = {"feature_size": 20, "cmvn": "global"}
    data = {"validation_split": None}
    return tiny_recipe(root, augmentation=AUGMENTATION, features=features, data=data, **sections)


def test_a_run_with_all_of_it_resumes_bit_for_bit_in_workers_too(tmp_path):
    tones = write_splits(tmp_path / "tones", train=20)
    # A worker computes on one thread, this process on several, and sums then differ in their last digits.
    recipe = perturbed(tones, schedule={"max_steps": 6}, batching={"num_workers": 1})
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_after=4)
    resumed = train(recipe, tmp_path / "parts", resume=True)
    here, there = weights(whole.last), weights(resumed.last)
    assert all(torch.equal(here[name], there[name]) for name in here)
    plain = train(
        tiny_recipe(tones, features={"cmvn": "global"}, data={"validation_split": None}, schedule={"max_steps": 6}),
        tmp_path / "plain",
    )
    assert any(not torch.equal(here[name], tensor) for name, tensor in weights(plain.last).items())


def test_features_are_not_cached_where_waveforms_change(tmp_path, monkeypatch):
    tones = write_splits(tmp_path / "tones", train=8, validation=2)
    seen = []
    monkeypatch.setattr(
        "hf_entmax_asr.training.engine.training_batches", lambda *a: seen.append(a[2]) or training_batches(*a)
    )
    recipe = tiny_recipe(tones, augmentation={"speeds": [0.9, 1.1]}, schedule={"max_steps": 1})
    train(recipe, tmp_path / "run")
    assert seen[0].features is None
    with pytest.raises(RecipeError, match=r"has \d+ frames and batching.frames_per_batch is 130: raise it"):
        train(
            tiny_recipe(tones, augmentation={"speeds": [0.5]}, batching={"frames_per_batch": 130}), tmp_path / "tight"
        )
    noise = {"noise_share": 0.5, "noise_path": str(tmp_path / "none")}
    with pytest.raises(
        RecipeError, match=r"^augmentation.noise_path: .*none holds no audio files; null takes white noise"
    ):
        train(tiny_recipe(tones, augmentation=noise), tmp_path / "noise")

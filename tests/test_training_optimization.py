"""The optimizer's groups, the schedule and the budget."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_entmax_asr.recognition.utterances import prepare_split
from hf_entmax_asr.training.optimization import budget_used, learning_rate, parameter_groups, set_learning_rate
from hf_entmax_asr.training.preparation import build_config, build_model, build_processor, load_rows
from hf_entmax_asr.training.recipe import ScheduleSection
from support.tones import tiny_recipe, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=5)


def test_schedule_warms_up_falls_by_the_root_and_cools_down():
    schedule = ScheduleSection(warmup_steps=100, max_steps=1000, cooldown_fraction=0.2, cooldown_floor=0.1)
    rate = lambda step: learning_rate(schedule, 2.0, step, budget_used(schedule, step, 0.0))  # noqa: E731
    assert rate(49) == pytest.approx(1.0)
    assert rate(99) == pytest.approx(2.0)
    assert rate(399) == pytest.approx(1.0)
    assert rate(800) == pytest.approx(2 * math.sqrt(100 / 801))
    assert rate(900) == pytest.approx(2 * math.sqrt(100 / 901) * 0.55)
    assert learning_rate(schedule, 2.0, 999, 1.0) == pytest.approx(2 * math.sqrt(0.1) * 0.1)


def test_a_budget_of_minutes_drives_the_same_cooldown():
    schedule = ScheduleSection(warmup_steps=1, max_minutes=10, cooldown_fraction=0.5, cooldown_floor=0.0)
    assert budget_used(schedule, 10**6, 150.0) == pytest.approx(0.25)
    assert learning_rate(schedule, 1.0, 0, 0.75) == pytest.approx(0.5)
    assert budget_used(replace(schedule, max_steps=100), 90, 150.0) == pytest.approx(0.9)


def test_weight_decay_spares_every_vector(tones):
    recipe = tiny_recipe(tones, model={"encoder_transform": "entmax"})
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    model = build_model(recipe, build_config(recipe, processor), prepare_split(rows["train"], processor))
    decayed, spared, alphas = parameter_groups(model, 0.1, alpha_rate_factor=5.0)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == alphas["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in (decayed, spared, alphas)) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    assert {"gate", "energy_bias", "bias"} <= {names[id(p)].rpartition(".")[2] for p in spared["params"]}
    assert {names[id(p)].rpartition(".")[2] for p in alphas["params"]} == {"alpha_logit"}
    assert all(p.ndim > 1 for p in decayed["params"])
    optimizer = torch.optim.AdamW([decayed, spared, alphas])
    set_learning_rate(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01, 0.05]

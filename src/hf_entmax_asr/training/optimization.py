"""The optimizer and its schedule: Adam, warm-up, inverse square root, and a cool-down in a budget of steps or time."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_entmax_asr.training.recipe import OptimizerSection, RecipeError, ScheduleSection

OF_TRANSFORMS = ("alpha_logit", "log_scale")


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    alpha_rate_factor: float = 1.0,
    rate_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Three groups: matrices and convolutions with decay, everything of at most one dimension without, α logits and
    logit scales apart.

    1-D parameters are these, gates, energy biases, norms and biases; decay would pull α to 1.5 and gates to 0.
    Parameters whose name holds a key of `rate_factors` form groups of their own, with that factor of the rate.

    Raises:
        RecipeError: a key that no trained parameter's name holds.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in rate_factors or {}}
    for name, parameter in trained:
        if part := next((part for part in parts if part in name), None):
            parts[part].append(parameter)
    if absent := [part for part, found in parts.items() if not found]:
        raise RecipeError(f"optimizer.rate_factors: no trained parameter's name holds {absent[0]!r}")
    apart = {id(parameter) for found in parts.values() for parameter in found}
    trained = [(name, p) for name, p in trained if id(p) not in apart]
    alphas = [p for name, p in trained if name.endswith(OF_TRANSFORMS)]
    scalars = [p for name, p in trained if p.ndim <= 1 and not name.endswith(OF_TRANSFORMS)]
    groups = [
        {"params": [p for _, p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": scalars, "weight_decay": 0.0},
        {"params": alphas, "weight_decay": 0.0, "rate_factor": alpha_rate_factor},
    ]
    for part, factor in (rate_factors or {}).items():
        for matrices in (True, False):
            found = [p for p in parts[part] if (p.ndim > 1) == matrices]
            groups.append({"params": found, "weight_decay": weight_decay * matrices, "rate_factor": factor})
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, section: OptimizerSection) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; without weight decay it is Adam. One fused pass over all parameters.

    Parameters that the section freezes no longer ask for gradients.

    Raises:
        RecipeError: no parameter has a name that the section speaks of.
    """
    for part in section.frozen:
        found = [parameter for name, parameter in model.named_parameters() if part in name]
        if not found:
            raise RecipeError(f"optimizer.frozen: no parameter's name holds {part!r}")
        for parameter in found:
            parameter.requires_grad_(False)
    return torch.optim.AdamW(
        parameter_groups(model, section.weight_decay, section.alpha_rate_factor, section.rate_factors),
        lr=section.peak_learning_rate,
        betas=section.betas,
        eps=section.eps,
        fused=True,
    )


def budget_used(schedule: ScheduleSection, step: int, elapsed_seconds: float) -> float:
    """The share of the budget that is used after `step` optimizer steps, at most 1; the larger of steps and time."""
    by_steps = step / schedule.max_steps if schedule.max_steps else 0.0
    by_time = elapsed_seconds / (60 * schedule.max_minutes) if schedule.max_minutes else 0.0
    return min(1.0, max(by_steps, by_time))


def learning_rate(schedule: ScheduleSection, peak: float, step: int, used: float) -> float:
    """Learning rate of the update after `step` finished ones, `used` being the share of the budget used before it.

    Linear warm-up to `peak` over `warmup_steps`, then peak·√(warmup_steps/n) (Vaswani et al. 2017), and over the last
    `cooldown_fraction` of the budget a linear fall of that to `cooldown_floor` of it.
    """
    update = step + 1
    rate = peak * min(update / schedule.warmup_steps, math.sqrt(schedule.warmup_steps / update))
    start = 1 - schedule.cooldown_fraction
    if schedule.cooldown_fraction > 0 and used > start:
        rate *= 1 - (1 - schedule.cooldown_floor) * (used - start) / schedule.cooldown_fraction
    return rate


def ramp(shares: tuple[float, float], used: float) -> float:
    """0 until the first of two shares of the budget, 1 from the second on, linear between them."""
    begin, end = shares
    if used >= end:
        return 1.0
    return 0.0 if used <= begin else (used - begin) / (end - begin)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every parameter group its learning rate: `rate`, times the group's own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)

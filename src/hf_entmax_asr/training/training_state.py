"""What a run must know beside its weights to go on as if it had never stopped, in `training_state/` of a checkpoint.

Everything is checked before it is used: an optimizer that trusts tensors of other shapes reads and writes beyond them.
"""

import dataclasses
import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.input_files import check_regular, read_json
from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training.scored_model import sharded_like, unsharded

STATE_FOLDER = "training_state"
_OPTIMIZER, _RANDOM, _TRAINED_WEIGHTS = "optimizer.safetensors", "random.safetensors", "weights.safetensors"
# The types that JSON gives to what is annotated so.
_KINDS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}
_PARTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps of each parameter
_STATELESS = "parameters without state"  # that never had a gradient; in the metadata of the optimizer's file


@dataclass
class TrainingState:
    """What a run must know, besides weights, optimizer and random states, to go on as if it had never stopped.

    Attributes:
        step: finished optimizer steps.
        elapsed_seconds: used, by the clock of the recipe's schedule, all sessions together.
        epoch, next_index: position in the batch stream.
        data_fingerprint: of the training utterances; another fingerprint means other batches.
        scores: validation score (lower is better) by the step of its checkpoint.
        tolerances: by the same steps, how much another score may differ and count as equal; absent counts as 0.
        scaler: state of the fp16 gradient scaler, empty where there is none.
    """

    step: int = 0
    elapsed_seconds: float = 0.0
    epoch: int = 0
    next_index: int = 0
    data_fingerprint: str = ""
    scores: dict[int, float] = field(default_factory=dict)
    tolerances: dict[int, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


def save_training_state(
    folder: Path,
    state: TrainingState,
    optimizer: dict[str, torch.Tensor],
    random_states: Sequence[dict[str, torch.Tensor]],
    weights: dict[str, torch.Tensor],
    stateless: Sequence[str] = (),
) -> None:
    """Write `training_state/` into a checkpoint folder.

    Args:
        optimizer: from `optimizer_tensors`.
        random_states: one entry per process.
        weights: the trained ones where the checkpoint's model has others (a mean over steps), else none.
        stateless: names of parameters that never had a gradient, from `without_state`.
    """
    target = folder / STATE_FOLDER
    target.mkdir()
    save_file(optimizer, target / _OPTIMIZER, metadata={_STATELESS: json.dumps(sorted(stateless))})
    if weights:
        save_file(weights, target / _TRAINED_WEIGHTS)
    random = {f"{rank}/{name}": tensor for rank, states in enumerate(random_states) for name, tensor in states.items()}
    save_file(random, target / _RANDOM)
    write_text_atomically(target / "state.json", json.dumps(asdict(state), indent=2) + "\n")


def read_training_state(checkpoint: Path) -> TrainingState:
    """Read the counters of a checkpoint.

    Raises:
        CheckpointError: the folder has no training state, or one that no run can have left.
    """
    file = checkpoint / STATE_FOLDER / "state.json"
    try:
        fields = read_json(file)
        for name in ("scores", "tolerances"):  # JSON has no numbers as keys
            fields[name] = {int(step): value for step, value in fields.get(name, {}).items()}
        state = TrainingState(**fields)
        _check_counters(state)
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} has no {STATE_FOLDER}/state.json: it can be evaluated or fine-tuned, not resumed"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a training state of this package: {error}") from error
    return state


def _check_counters(state: TrainingState) -> None:
    """ValueError for a counter of another type, or one that counts nothing."""
    for each in dataclasses.fields(state):
        value = getattr(state, each.name)
        kinds = _KINDS.get(each.type, (dict,))
        if type(value) not in kinds or (int in kinds and not 0 <= value < math.inf):
            raise ValueError(f"{each.name} is {reprlib.repr(value)}")
    for name in ("scores", "tolerances"):
        for step, value in getattr(state, name).items():
            if type(value) not in (int, float) or not value >= 0:
                raise ValueError(f"{name} of step {step} is {reprlib.repr(value)}, and must be a number of at least 0")


def _read_tensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file and its metadata.

    Raises:
        CheckpointError: it is missing or damaged, or holds fractions that are not finite.
    """
    try:
        check_regular(file)
        tensors = load_file(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {name} holds NaN or infinite numbers")
    return tensors, metadata


@torch.no_grad()
def load_trained_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Put back the weights that were trained, where the checkpoint's model holds others; `model` is not prepared yet.

    Raises:
        CheckpointError: they are another model's, or damaged.
    """
    file = checkpoint / STATE_FOLDER / _TRAINED_WEIGHTS
    if not os.path.lexists(file):
        return
    tensors, parameters = _read_tensors(file)[0], dict(model.named_parameters())
    if {n: (t.shape, t.dtype) for n, t in tensors.items()} != {n: (p.shape, p.dtype) for n, p in parameters.items()}:
        raise CheckpointError(f"{file} holds the weights of another model")
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def load_optimizer(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved optimizer tensors back, by parameter name; all of them, or none where one is wrong.

    Raises:
        CheckpointError: the saved parameters and the model's are not the same, or a tensor is not what Adam keeps.
    """
    file = checkpoint / STATE_FOLDER / _OPTIMIZER
    tensors, metadata = _read_tensors(file)
    saved: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        saved.setdefault(name, {})[part] = tensor
    parameters = dict(_optimized(model, optimizer))
    unknown, missing = sorted(saved.keys() - parameters.keys()), sorted(parameters.keys() - saved.keys())
    # A parameter that never had a gradient has no state; files of before this was written down do not say which.
    try:
        expected = json.loads(metadata[_STATELESS]) if _STATELESS in metadata else missing
    except ValueError as error:
        raise CheckpointError(f"{file}: {_STATELESS!r} of its metadata is not JSON: {error}") from error
    if unknown or missing != expected or (saved and len(missing) == len(parameters)):
        raise CheckpointError(
            f"{file}: the optimizer state belongs to another model: it has {unknown[:5]}, lacks {missing[:5]}"
        )
    for name, parts in saved.items():
        _check_parts(f"{file}: {name}", parts, parameters[name])
    for name, parts in saved.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            part: tensor.to(parameter.device) if part == "step" else sharded_like(tensor, parameter)
            for part, tensor in parts.items()
        }


def _check_parts(where: str, parts: Mapping[str, torch.Tensor], parameter: torch.nn.Parameter) -> None:
    """CheckpointError where the state of one parameter is not what Adam keeps of a parameter of its size."""
    if sorted(parts) != sorted(_PARTS):
        raise CheckpointError(f"{where} has {', '.join(sorted(parts))}; it must have {', '.join(_PARTS)}")
    for part, tensor in parts.items():
        shape = torch.Size() if part == "step" else parameter.shape
        if tensor.shape != shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{where}/{part} is of shape {tuple(tensor.shape)} and type {tensor.dtype}; it must be fractions of "
                f"shape {tuple(shape)}"
            )
        if part != "step" and tensor.dtype != parameter.dtype:
            raise CheckpointError(f"{where}/{part} is of type {tensor.dtype}; it must be {parameter.dtype}")
        if part != "exp_avg" and tensor.numel() and tensor.min() < 0:
            raise CheckpointError(f"{where}/{part} holds numbers below 0")


def random_state() -> dict[str, torch.Tensor]:
    """This process's torch random states: `cpu`, and `cuda` where there is one."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def read_random_state(checkpoint: Path, rank: int) -> dict[str, torch.Tensor]:
    """The random states of process `rank`, to restore; empty where the checkpoint came from fewer processes.

    Raises:
        CheckpointError: they are damaged.
    """
    file = checkpoint / STATE_FOLDER / _RANDOM
    found = _read_tensors(file)[0]
    states = {key.partition("/")[2]: tensor for key, tensor in found.items() if key.startswith(f"{rank}/")}
    if "0/cpu" not in found or (states and "cpu" not in states):
        raise CheckpointError(f"{file} lacks the random state of the processor")
    try:
        for kind, state in states.items():
            if kind == "cpu":
                torch.Generator().set_state(state)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{file} holds no random state of torch: {error}") from error
    return states


def restore_random_state(states: Mapping[str, torch.Tensor]) -> None:
    """Go on with these random numbers."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _optimized(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.nn.Parameter]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of the optimizer by parameter name, unsharded; under FSDP all processes must call this together."""
    return {
        f"{name}/{part}": unsharded(torch.as_tensor(value).detach()).cpu().contiguous()
        for name, parameter in _optimized(model, optimizer)
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def without_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the trained parameters of which the optimizer keeps nothing, for they never had a gradient."""
    return [name for name, parameter in _optimized(model, optimizer) if not optimizer.state.get(parameter)]

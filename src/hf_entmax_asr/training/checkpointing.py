"""Checkpoints that are whole or absent, resume exactly, and hold no pickle.

    OUTPUT/checkpoints/step-00000400/    a save_pretrained folder (model, processor, card), ready for the Hub
        training_state/                  optimizer and random states (safetensors), counters (JSON), recipe (YAML)
    OUTPUT/last, OUTPUT/best             links to the newest of them, and to the one that validation chose

A folder is written under another name and renamed when complete; the links are replaced, never edited.

`best` is the latest checkpoint within one standard error of the lowest score. What a score of few utterances says more
than that is chance, and picking the lowest of several picks the luckiest; the later one has learned longer, at lower
rates. On a large validation split the standard error is small, and the rule gives the lowest score.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_entmax_asr.atomic_files import atomic_folder, write_text_atomically
from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training.scored_model import sharded_like, unsharded

STATE_FOLDER = "training_state"
_TRAINED_WEIGHTS = "weights.safetensors"


@dataclass
class TrainingState:
    """What a run must know, besides weights, optimizer and random states, to go on as if it had never stopped.

    Attributes:
        step: finished optimizer steps.
        elapsed_seconds: wall-clock used, all sessions together.
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
) -> None:
    """Write `training_state/` into a checkpoint folder.

    Args:
        optimizer: from `optimizer_tensors`.
        random_states: one entry per process.
        weights: the trained ones where the checkpoint's model has others (a mean over steps), else none.
    """
    target = folder / STATE_FOLDER
    target.mkdir()
    save_file(optimizer, target / "optimizer.safetensors")
    if weights:
        save_file(weights, target / _TRAINED_WEIGHTS)
    random = {f"{rank}/{name}": tensor for rank, states in enumerate(random_states) for name, tensor in states.items()}
    save_file(random, target / "random.safetensors")
    write_text_atomically(target / "state.json", json.dumps(asdict(state), indent=2) + "\n")


def read_training_state(checkpoint: Path) -> TrainingState:
    """Read the counters of a checkpoint.

    Raises:
        CheckpointError: the folder has no readable training state.
    """
    file = checkpoint / STATE_FOLDER / "state.json"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        for name in ("scores", "tolerances"):  # JSON has no numbers as keys
            fields[name] = {int(step): value for step, value in fields.get(name, {}).items()}
        return TrainingState(**fields)
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} has no {STATE_FOLDER}/state.json: it can be evaluated or fine-tuned, not resumed"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not a training state of this package: {error}") from error


@torch.no_grad()
def load_trained_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Put back the weights that were trained, where the checkpoint's model holds others; `model` is not prepared yet.

    Raises:
        CheckpointError: they are another model's.
    """
    file = checkpoint / STATE_FOLDER / _TRAINED_WEIGHTS
    if not file.is_file():
        return
    tensors, parameters = load_file(file), dict(model.named_parameters())
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: p.shape for name, p in parameters.items()}:
        raise CheckpointError(f"{file} holds the weights of another model")
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def load_optimizer(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved optimizer tensors back, by parameter name.

    Raises:
        CheckpointError: the saved parameters and the model's are not the same.
    """
    saved: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(checkpoint / STATE_FOLDER / "optimizer.safetensors").items():
        name, _, part = key.rpartition("/")
        saved.setdefault(name, {})[part] = tensor
    parameters = dict(_optimized(model, optimizer))
    unknown, missing = sorted(saved.keys() - parameters.keys()), sorted(parameters.keys() - saved.keys())
    # A parameter that never had a gradient has no state; one that the model lacks means another model.
    if unknown or (saved and len(missing) == len(parameters)):
        raise CheckpointError(
            f"the optimizer state in {checkpoint} belongs to another model: it has {unknown[:5]}, lacks {missing[:5]}"
        )
    for name, parts in saved.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            part: sharded_like(tensor, parameter) if tensor.shape == parameter.shape else tensor.to(parameter.device)
            for part, tensor in parts.items()
        }


def random_state() -> dict[str, torch.Tensor]:
    """This process's torch random states: `cpu`, and `cuda` where there is one."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_state(checkpoint: Path, rank: int) -> bool:
    """Restore the random states of process `rank`; False where the checkpoint came from fewer processes."""
    with safe_open(checkpoint / STATE_FOLDER / "random.safetensors", framework="pt") as file:
        states = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{rank}/")}  # noqa: SIM118
    if f"{rank}/cpu" not in states:
        return False
    torch.set_rng_state(states[f"{rank}/cpu"])
    if torch.cuda.is_available() and f"{rank}/cuda" in states:
        torch.cuda.set_rng_state(states[f"{rank}/cuda"])
    return True


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


def average_checkpoints(checkpoints: Sequence[Path], target: Path) -> None:
    """Write to `target` a checkpoint whose weights are the mean of those in `checkpoints`; other files from the last.

    Raises:
        CheckpointError: weights are missing, or differ in names or shapes.
    """
    if not checkpoints:
        raise CheckpointError("no checkpoints to average")
    total: dict[str, torch.Tensor] = {}
    last: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        if not (checkpoint / SAFE_WEIGHTS_NAME).is_file():
            raise CheckpointError(f"{checkpoint} has no {SAFE_WEIGHTS_NAME}")
        last = load_file(checkpoint / SAFE_WEIGHTS_NAME)
        shapes = {name: tensor.shape for name, tensor in last.items()}
        if total and shapes != {name: tensor.shape for name, tensor in total.items()}:
            raise CheckpointError(f"{checkpoint} holds another model than {checkpoints[0]}")
        for name, tensor in last.items():
            # float64: the mean of equal weights is then exactly those weights.
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + tensor.double()
    mean = {name: (total[name] / len(checkpoints)).to(tensor.dtype) for name, tensor in last.items()}
    with atomic_folder(target) as partial:
        ignore = shutil.ignore_patterns(STATE_FOLDER, SAFE_WEIGHTS_NAME)
        shutil.copytree(checkpoints[-1], partial, dirs_exist_ok=True, ignore=ignore)
        save_file(mean, partial / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


class CheckpointStore:
    """The checkpoints of one run: names, links, and which are kept."""

    def __init__(self, output: Path, keep_last: int = 2, keep_best: int = 1) -> None:
        self.output = output
        self.folder = output / "checkpoints"
        self.keep_last, self.keep_best = keep_last, keep_best

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints on disk, oldest first."""
        names = [path.name for path in self.folder.glob("step-*")] if self.folder.is_dir() else []
        return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())

    def path(self, step: int) -> Path:
        """Folder of the checkpoint at `step`."""
        return self.folder / f"step-{step:08d}"

    def last(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def ranked(self, scores: Mapping[int, float]) -> list[int]:
        """Steps on disk that have a score, best first; of equal scores the later step is the better one."""
        return sorted((s for s in self.steps() if s in scores), key=lambda s: (scores[s], -s))

    def chosen(self, scores: Mapping[int, float], tolerances: Mapping[int, float]) -> int | None:
        """The latest step on disk whose score lies within the tolerance of the best one; None where none has a score.

        Saving keeps the best and the chosen step, so what is chosen does not depend on how many others are kept.
        """
        return max((s for s in self.ranked(scores) if self.as_good(scores[s], scores, tolerances)), default=None)

    def as_good(self, score: float, scores: Mapping[int, float], tolerances: Mapping[int, float]) -> bool:
        """Whether `score` lies within the tolerance of the best one on disk; True where none has a score."""
        best = next(iter(self.ranked(scores)), None)
        return best is None or score <= scores[best] + tolerances.get(best, 0.0)

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        scores: Mapping[int, float],
        tolerances: Mapping[int, float] | None = None,
    ) -> Path:
        """Write a checkpoint with `write(folder)`, move the links, and delete what is no longer kept."""
        target = self.path(step)
        with atomic_folder(target) as partial:
            write(partial)
        self.link("last", target)
        kept = set(self.steps()[-self.keep_last :]) | set(self.ranked(scores)[: max(1, self.keep_best)])
        chosen = self.chosen(scores, tolerances or {})
        if chosen is not None:
            self.link("best", self.path(chosen))
            kept.add(chosen)
        for old in set(self.steps()) - kept:
            shutil.rmtree(self.path(old))
        return target

    def link(self, name: str, target: Path) -> None:
        """Make OUTPUT/`name` a relative link to `target`, replacing the link that was there in one move."""
        partial = self.output / f".{name}.partial"
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(target, self.output))
        partial.replace(self.output / name)

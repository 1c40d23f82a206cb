"""Checkpoints that are whole or absent, resume exactly, and hold no pickle.

    OUTPUT/checkpoints/step-00000400/    a save_pretrained folder (model, processor, card), ready for the Hub
        training_state/                  optimizer and random states (safetensors), counters (JSON), recipe (YAML)
    OUTPUT/last, OUTPUT/best             links to the newest of them, and to the one that validation chose

A folder is written under another name and renamed when complete; the links are replaced, never edited.

`best` is the latest checkpoint within one standard error of the lowest score. What a score of few utterances says more
than that is chance, and picking the lowest of several picks the luckiest; the later one has learned longer, at lower
rates. On a large validation split the standard error is small, and the rule gives the lowest score.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_entmax_asr.atomic_files import atomic_folder, recover_folders
from hf_entmax_asr.error_messages import described
from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training.training_state import STATE_FOLDER


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
        try:
            last = load_file(checkpoint / SAFE_WEIGHTS_NAME)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{checkpoint / SAFE_WEIGHTS_NAME} cannot be read: {error}") from error
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

    def recover(self) -> None:
        """Put right what a process that was killed while it saved has left. Only where no other is at work."""
        if self.folder.is_dir():
            recover_folders(self.folder)

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
        """Write a checkpoint with `write(folder)`, move the links, and delete what is no longer kept.

        Raises:
            CheckpointError: it cannot be written; those before it are whole.
        """
        target = self.path(step)
        try:
            with atomic_folder(target) as partial:
                write(partial)
            self.link("last", target)
        except (OSError, SafetensorError) as error:
            last = self.last()
            before = f"the newest whole one is {last}" if last else "there is no other yet"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written: {described(error)}; {before}. Put right what is "
                "wrong there, and go on with --resume"
            ) from error
        kept = set(self.steps()[-self.keep_last :]) | set(self.ranked(scores)[: max(1, self.keep_best)])
        chosen = self.chosen(scores, tolerances or {})
        if chosen is not None:
            self.link("best", self.path(chosen))
            kept.add(chosen)
        for old in set(self.steps()) - kept:
            shutil.rmtree(self.path(old))
        return target

    def link(self, name: str, target: Path) -> None:
        """Make OUTPUT/`name` a relative link to `target`, replacing the link that was there in one move.

        Where the file system has no links it is a copy, without what only resuming needs.
        """
        partial = self.output / f".{name}.partial"  # only one process at a time is at work here
        partial.unlink(missing_ok=True)
        try:
            partial.symlink_to(os.path.relpath(target, self.output))
        except (OSError, NotImplementedError):  # a file system without links
            with atomic_folder(self.output / name) as folder:
                shutil.copytree(target, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STATE_FOLDER))
            return
        if not (self.output / name).is_symlink() and (self.output / name).is_dir():
            shutil.rmtree(self.output / name)  # a copy made where there were no links
        partial.replace(self.output / name)

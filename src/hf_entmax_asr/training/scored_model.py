"""The model that a run scores and saves: the trained one itself, or an unsharded copy of it, or of its running mean.

Two things keep the trained model from being scored as it is. Under FSDP each process holds a shard of every weight
(a DTensor), which can be neither saved nor run on batches that differ between processes. And with an exponential
moving average (EMA) what is scored is the mean of the weights over the last steps, which is often the better model.
"""

import copy
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def unsharded(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that is sharded over the processes, which must call this together; any other unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A copy of `tensor`, which all processes hold alike, on the device of `other` and sharded as it is."""
    tensor = tensor.detach().to(other.device, copy=True)
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor


class ScoredModel:
    """Keeps the copy and the mean, where there are any. Made before Accelerate prepares the model, started after."""

    def __init__(self, model: Any, ema_decay: float | None, sharded: bool) -> None:
        """`model`, which is to be trained, holds the weights that were scored last: the checkpoint's, or the initial
        ones."""
        self.trained = model
        self.copy: Any = copy.deepcopy(model) if sharded or ema_decay is not None else None
        self.ema_decay = ema_decay
        self.mean: list[torch.Tensor] = []  # in the order of the parameters, sharded as they are

    def start(self) -> None:
        """Take the mean to where the trained model is, now that Accelerate has placed it."""
        if self.copy is None:
            return
        if self.ema_decay is not None:
            self.mean = [
                sharded_like(m, p) for m, p in zip(self.copy.parameters(), self.trained.parameters(), strict=True)
            ]
        self.copy.to(next(self.trained.parameters()).device)

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Move the mean towards the weights after so many steps; early steps count for more, for there are few."""
        if self.ema_decay is not None:
            decay = min(self.ema_decay, (1 + steps) / (10 + steps))
            for mean, parameter in zip(self.mean, self.trained.parameters(), strict=True):
                mean.lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def current(self) -> Any:
        """The model to score and save, up to date; under FSDP all processes must call this together."""
        if self.copy is None:
            return self.trained
        for target, source in zip(self.copy.parameters(), self.mean or self.trained.parameters(), strict=True):
            target.copy_(unsharded(source))
        for target, source in zip(self.copy.buffers(), self.trained.buffers(), strict=True):  # running statistics
            target.copy_(unsharded(source))
        return self.copy

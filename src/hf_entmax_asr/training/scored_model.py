"""The model that a run scores and saves: the trained one itself, or a whole copy of it, or of its running mean.

Two things keep the trained model from being shown as it is. Under FSDP each process holds a share of every weight
(a DTensor), which can be neither saved nor run on batches that differ between processes. And with an exponential
moving average (EMA) what is shown is the mean of the weights over the last steps, which is often the better model.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that is shared out between processes, which must call this together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A copy of `tensor`, the same in all processes, placed and shared out as `model` is."""
    tensor = tensor.detach().to(model.device, copy=True)
    return distribute_tensor(tensor, model.device_mesh, model.placements) if isinstance(model, DTensor) else tensor


class ShownModel:
    """Keeps the copy and the mean, where there are any. Made before Accelerate prepares the model, started after."""

    def __init__(self, model: Any, ema_decay: float | None, sharded: bool) -> None:
        """`model` holds the weights that were shown last: those of the checkpoint, or the initial ones."""
        self.copy: Any = copy.deepcopy(model) if sharded or ema_decay is not None else None
        self.ema_decay = ema_decay
        self.mean: list[torch.Tensor] = []  # in the order of the parameters, shared out as they are

    def start(self, model: nn.Module) -> None:
        """Take the mean to where the prepared model is."""
        if self.copy is None:
            return
        if self.ema_decay is not None:
            self.mean = [shared_like(m, p) for m, p in zip(self.copy.parameters(), model.parameters(), strict=True)]
        self.copy.to(next(model.parameters()).device)

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Move the mean towards the weights after so many steps; early steps count for more, for there are few."""
        if self.ema_decay is not None:
            decay = min(self.ema_decay, (1 + steps) / (10 + steps))
            for mean, parameter in zip(self.mean, model.parameters(), strict=True):
                mean.lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def of(self, model: Any) -> Any:
        """The model to score and save, up to date; under FSDP all processes must call this together."""
        if self.copy is None:
            return model
        for target, source in zip(self.copy.parameters(), self.mean or model.parameters(), strict=True):
            target.copy_(whole(source))
        return self.copy

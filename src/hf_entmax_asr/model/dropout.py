"""Dropout, with masks that cost little on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """As F.dropout, with `rate` exact to 2⁻¹⁶. On a CPU torch draws a 64-bit number for each entry, which in training
    takes a twentieth of a step or more; here one serves for four entries."""
    if not training or not 0 < rate < 1:
        return F.dropout(x, rate, training)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate, training)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    uniform = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = uniform >= round(rate * 2**16) - 2**15
    return x * kept.to(x.dtype).mul_(1 / (1 - rate))

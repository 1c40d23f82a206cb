"""What the blocks of both sides are made of: positions, feed-forward layers, residual connections."""

import math

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_entmax_asr import EntmaxAsrConfig
from .dropout import dropout


def sinusoidal_positions(positions: Tensor, width: int) -> Tensor:
    """Positions (...,) -> (..., C) float32: sines, then cosines, of wavelengths from 2π to 2π·10000."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10000.0) / max(half - 1, 1)))
    angles = positions.unsqueeze(-1).float() * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


class Positions(nn.Module):
    """Adds to x (B, S, C) its positions, from a formula or from a learned table (`encoder_positions`)."""

    def __init__(self, config: EntmaxAsrConfig, side: str):
        super().__init__()
        self.side = side
        self.rows = config.max_source_positions if side == "encoder" else config.max_target_positions
        if getattr(config, f"{side}_positions") == "learned":
            self.weight = nn.Parameter(torch.empty(self.rows, config.d_model))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """`first` is the position of x[:, 0].

        Raises:
            ValueError: beyond the end of a learned table.
        """
        last = first + x.shape[1]
        if not hasattr(self, "weight"):
            positions = sinusoidal_positions(torch.arange(first, last, device=x.device), x.shape[2])
        elif last > self.rows:
            limit, things = ("source", "positions of audio") if self.side == "encoder" else ("target", "tokens")
            raise ValueError(
                f"{last} {things} are more than max_{limit}_positions = {self.rows}, the length of the learned "
                "table. Cut the audio at pauses, or ask for fewer tokens."
            )
        else:
            positions = self.weight[first:last]
        return x + positions.to(x.dtype)


class FeedForward(nn.Module):
    """Two linear layers with an activation between, in every block."""

    def __init__(self, config: EntmaxAsrConfig, width: int):
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, width)
        self.fc2 = nn.Linear(width, config.d_model)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(dropout(self.activation(self.fc1(x)), self.dropout, self.training))


def residual(hidden_states: Tensor, update: Tensor, rate: float, training: bool) -> Tensor:
    """hidden_states + dropout(update), kept finite in float16."""
    hidden_states = hidden_states + dropout(update, rate, training)
    if hidden_states.dtype == torch.float16:
        limit = torch.finfo(torch.float16).max - 1000
        hidden_states = hidden_states.clamp(-limit, limit)
    return hidden_states

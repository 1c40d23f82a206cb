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

"""What the blocks of both sides are made of: positions, feed-forward layers, residual connections."""

import math

import torch
import torch.nn.functional as F
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


Rotation = tuple[Tensor, Tensor]  # cosines and sines (B or 1, 1, S, D/2), of the angles of positions


def rotation_of(positions: Tensor, width: int) -> Rotation:
    """By what queries and keys of heads of D = `width` are turned at the positions (S,) (Su et al. 2021, arXiv
    2104.09864). Angles are float64, in which those of an endless stream keep their precision."""
    rates = 10000.0 ** -(torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width)
    angles = (positions.unsqueeze(-1).double() * rates)[None, None]
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """(B, H, S, D), each pair of its numbers turned; unchanged without a rotation."""
    if rotation is None:
        return x
    cosines, sines = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)


class Positions(nn.Module):
    """Adds to x (B, S, C) its positions, from a formula or from a learned table (`encoder_positions`), but for rotary
    ones, which attention takes."""

    def __init__(self, config: EntmaxAsrConfig, side: str):
        super().__init__()
        self.side = side
        self.rotary_width = config.head_width("encoder") if getattr(config, f"{side}_positions") == "rotary" else 0
        self.rows = config.max_source_positions if side == "encoder" else config.max_target_positions
        if getattr(config, f"{side}_positions") == "learned":
            self.weight = nn.Parameter(torch.empty(self.rows, config.d_model))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """`first` is the position of x[:, 0].

        Raises:
            ValueError: beyond the end of a learned table.
        """
        last = first + x.shape[1]
        self.check(last)
        if self.rotary_width:
            return x
        if hasattr(self, "weight"):
            positions = self.weight[first:last]
        else:
            positions = sinusoidal_positions(torch.arange(first, last, device=x.device), x.shape[2])
        return x + positions.to(x.dtype)

    def rotation(self, x: Tensor, first: int = 0) -> Rotation | None:
        """For the queries and keys of x (B, S, C), of which x[:, 0] has the position `first`; None for positions of
        other kinds."""
        if not self.rotary_width:
            return None
        return rotation_of(torch.arange(first, first + x.shape[1], device=x.device), self.rotary_width)

    def check(self, count: int) -> None:
        """
        Raises:
            ValueError: so many positions are more than a learned table has.
        """
        if hasattr(self, "weight") and count > self.rows:
            limit, things = ("source", "positions of audio") if self.side == "encoder" else ("target", "tokens")
            raise ValueError(
                f"{count} {things} are more than max_{limit}_positions = {self.rows}, the length of the learned "
                "table. Cut the audio at pauses, or ask for fewer tokens."
            )


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


FEW_ROWS = 8
LARGE_MATRIX = 1 << 22  # numbers: 16 MiB, beyond the caches
PARTS = 8


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, (..., C) -> (..., V): faster for few rows and a large vocabulary in float32 on a CPU.

    For these F.linear reads the matrix several times over (MKL on an AMD EPYC, one row of Whisper tiny's 51,864 tokens:
    9 ms; 5 rows: 14), while the product of its parts reads it once (3 and 8 ms). A layer that is more than a plain one
    (quantised, adapted, sharded, hooked) is left to itself.
    """
    rows = x.shape[:-1].numel()
    if (
        not 0 < rows <= FEW_ROWS
        or type(layer) is not nn.Linear
        or type(layer.weight) is not nn.Parameter
        or layer.weight.numel() < LARGE_MATRIX
        or not layer.weight.is_cpu
        or not x.dtype == layer.weight.dtype == torch.float32
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or "forward" in vars(layer)
    ):
        return layer(x)
    weight, flat = layer.weight, x.reshape(rows, -1)
    even = len(weight) // PARTS * PARTS
    columns = flat.T.expand(PARTS, -1, -1)
    parts = torch.bmm(weight[:even].view(PARTS, -1, weight.shape[1]), columns)  # (PARTS, V/PARTS, rows)
    product = torch.cat([parts.reshape(even, rows).T, F.linear(flat, weight[even:])], -1)
    if layer.bias is not None:
        product += layer.bias
    return product.view(*x.shape[:-1], -1)

"""The encoder: subsampling, sinusoidal positions, pre-norm blocks of sparse self-attention."""

import math

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import MultiHeadAttention
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


class EncoderLayer(GradientCheckpointingLayer):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, config: EntmaxAsrConfig, layer_idx: int):
        super().__init__()
        self.dropout = config.dropout
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = MultiHeadAttention(config, "encoder", layer_idx)
        self.ffn_layer_norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config, config.encoder_ffn_dim)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        shared_map: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, C), mask (B, 1, 1, S) boolean, and the map (B, H, S, S) that the layer before used, for a layer that
        shares it -> (B, S, C), and the map of this layer where a later one shares it."""
        normed = self.self_attn_layer_norm(hidden_states)
        update, weights = self.self_attn(normed, attention_mask, need_weights=need_weights, shared_map=shared_map)
        hidden_states = residual(hidden_states, update, self.dropout, self.training)
        update = self.ffn(self.ffn_layer_norm(hidden_states))
        return residual(hidden_states, update, self.dropout, self.training), weights

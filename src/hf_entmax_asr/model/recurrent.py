"""Encoders of bidirectional LSTMs: flat (RNN-T), and as a pyramid that halves the time at each layer (LAS).

Axes: B batch, T frames, S positions, F mel bins, C width, X input width of a layer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from .dropout import dropout
from .subsampling import computing_dtype, frame_mask, front_end


def reversed_in_time(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, X) with the real steps of each utterance, which come first, in reverse order."""
    if mask is None:
        return x.flip(1)
    steps, lengths = torch.arange(x.shape[1], device=x.device), mask.sum(1, keepdim=True)
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)  # (B, T)
    return x.gather(1, index[..., None].expand_as(x))


def run_lstm(lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:
    """lstm(x, state); on a CPU outside autocast, because torch trains no LSTM in bfloat16 there."""
    if x.device.type != "cpu":
        return lstm(x, state)
    with torch.autocast("cpu", enabled=False):
        return lstm(x.to(computing_dtype(lstm)), state)


class BidirectionalLSTM(GradientCheckpointingLayer):
    """One layer, (B, T, X) -> (B, T, 2 · size); an utterance gives the same with and without padding behind it."""

    def __init__(self, input_size: int, size: int, rate: float):
        super().__init__()
        self.forward_lstm = nn.LSTM(input_size, size, batch_first=True)
        self.backward_lstm = nn.LSTM(input_size, size, batch_first=True)
        self.rate = rate

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        ahead, _ = run_lstm(self.forward_lstm, x)
        behind, _ = run_lstm(self.backward_lstm, reversed_in_time(x, mask))
        return dropout(torch.cat([ahead, reversed_in_time(behind, mask)], 2), self.rate, self.training)


class RecurrentEncoder(nn.Module):
    """The recogniser's front end, then BLSTMs."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        self.subsampling = front_end(config)
        size, rate = config.encoder_lstm_size, config.dropout
        self.layers = nn.ModuleList(
            BidirectionalLSTM(2 * size if layer else config.d_model, size, rate)
            for layer in range(config.encoder_layers)
        )
        self.projection = nn.Linear(2 * size, config.d_model)

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, F), (B, T) -> (B, S, C)."""
        x, mask = self.subsampling(input_features, attention_mask)
        for layer in self.layers:
            x = layer(x, mask)
        return self.projection(x)


class PyramidEncoder(nn.Module):
    """BLSTMs on the frames, each but the first over pairs of steps of the one below: S = T / 2^(layers − 1), rounded
    up.

    Of an odd number of steps the last is paired with zeros.
    """

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        size, rate = config.encoder_lstm_size, config.dropout
        self.layers = nn.ModuleList(
            BidirectionalLSTM(4 * size if layer else config.num_mel_bins, size, rate)
            for layer in range(config.encoder_layers)
        )
        self.projection = nn.Linear(2 * size, config.d_model)

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, F), (B, T) -> (B, S, C)."""
        mask = None if attention_mask is None else frame_mask(attention_mask)
        x = input_features.to(computing_dtype(self))
        for number, layer in enumerate(self.layers):
            if number:
                if mask is not None:
                    x, mask = x.masked_fill(~mask[..., None], 0.0), mask[:, ::2]
                x = F.pad(x, (0, 0, 0, x.shape[1] % 2)).unflatten(1, (-1, 2)).flatten(2)  # (B, T / 2, 2 X)
            x = layer(x, mask)
        return self.projection(x)

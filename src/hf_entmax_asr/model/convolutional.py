"""Encoders of convolutions over time: gated (wav2letter) and in residual blocks (Jasper).

Padding is cleared before every convolution and never counted by a norm, so that an utterance gives the same with and
without it. Axes: B batch, T frames, S positions, F mel bins, C width, X channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from .dropout import dropout
from .subsampling import computing_dtype, frame_mask


def cleared(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, X, T) with zeros where the mask (B, T) is false."""
    return x if mask is None else x.masked_fill(~mask[:, None], 0.0)


class Convolution(nn.Module):
    """A convolution over time that gives T / stride steps, rounded up; perhaps with normed weights g v / ‖v‖."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, normed: bool = False
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        if normed:
            self.gain = nn.Parameter(torch.empty(outputs))
        self.stride, self.dilation = stride, dilation
        reach = dilation * (kernel - 1)
        self.padding = (reach // 2, reach - reach // 2)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, X, T) and its mask (B, T) -> the same, after the convolution."""
        weight = self.weight
        if hasattr(self, "gain"):
            weight = weight * (self.gain / weight.flatten(1).norm(dim=1).clamp(min=1e-12))[:, None, None]
        x = F.pad(cleared(x, mask), self.padding)
        x = F.conv1d(x, weight, self.bias, stride=self.stride, dilation=self.dilation)
        return x, None if mask is None else mask[:, :: self.stride]


class MaskedBatchNorm(nn.Module):
    """Batch norm of (B, X, T) over the real steps alone. With gradient checkpointing, which computes a layer twice, the
    running statistics move twice as fast."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        wide = x.float()
        if self.training:
            real = torch.ones_like(wide[:, :1]) if mask is None else mask[:, None].to(wide.dtype)  # (B, 1, T)
            count = real.sum()
            mean = (wide * real).sum((0, 2)) / count
            variance = ((wide - mean[:, None]).square() * real).sum((0, 2)) / count
            with torch.no_grad():
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        else:
            mean, variance = self.running_mean.float(), self.running_var.float()
        scale = self.weight.float() * (variance + self.eps).rsqrt()
        return (wide * scale[:, None] + (self.bias.float() - mean * scale)[:, None]).to(x.dtype)


class GatedConvolution(GradientCheckpointingLayer):
    """Weight-normed convolution, gated linear unit, dropout."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, rate: float):
        super().__init__()
        self.convolution = Convolution(inputs, outputs, kernel, stride, normed=True)
        self.rate = rate

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, mask = self.convolution(x, mask)
        return dropout(F.glu(x, 1), self.rate, self.training), mask


class GatedConvolutionEncoder(nn.Module):
    """Convolutions with gates, then a gated linear layer."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        self.layers = nn.ModuleList()
        width = config.num_mel_bins
        for number, (channels, kernel) in enumerate(config.convolutions()):
            stride = 1 if number else config.conv_stride
            self.layers.append(GatedConvolution(width, channels, kernel, stride, config.dropout))
            width = channels // 2
        self.projection = nn.Linear(width, 2 * config.d_model)
        self.rate = config.dropout

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, F), (B, T) -> (B, S, C)."""
        mask = None if attention_mask is None else frame_mask(attention_mask)
        x = input_features.to(computing_dtype(self)).transpose(1, 2)  # (B, F, T)
        for layer in self.layers:
            x, mask = layer(x, mask)
        return dropout(F.glu(self.projection(x.transpose(1, 2)), 2), self.rate, self.training)


class NormedConvolution(nn.Module):
    """Convolution and batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.convolution = Convolution(inputs, outputs, kernel, stride, dilation)
        self.norm = MaskedBatchNorm(outputs)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, mask = self.convolution(x, mask)
        return self.norm(x, mask), mask


class JasperBlock(GradientCheckpointingLayer):
    """Sub-blocks of convolution, norm, ReLU and dropout; a projection of the input joins before the last ReLU, but in
    the
    blocks at either end of the network, which are single convolutions without it."""

    def __init__(self, parts: list[NormedConvolution], shortcut: NormedConvolution | None, rate: float):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.shortcut = shortcut
        self.rate = rate

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        beside = None if self.shortcut is None else self.shortcut(x, mask)[0]
        for number, part in enumerate(self.parts):
            x, mask = part(x, mask)
            if number + 1 == len(self.parts) and beside is not None:
                x = x + beside
            x = dropout(x.relu(), self.rate, self.training)
        return x, mask


class JasperEncoder(nn.Module):
    """A convolution with stride, blocks of growing width, a dilated and a pointwise convolution."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        rate, sizes = config.dropout, config.convolutions()
        width, kernel = sizes[0]
        first = NormedConvolution(config.num_mel_bins, width, kernel, config.conv_stride)
        self.layers = nn.ModuleList([JasperBlock([first], None, rate)])
        for channels, kernel in sizes[1:-2]:
            for _ in range(config.conv_blocks_per_size):
                parts = [
                    NormedConvolution(channels if part else width, channels, kernel)
                    for part in range(config.conv_block_repeats)
                ]
                self.layers.append(JasperBlock(parts, NormedConvolution(width, channels, 1), rate))
                width = channels
        for (channels, kernel), dilation in zip(sizes[-2:], (2, 1), strict=True):
            last = NormedConvolution(width, channels, kernel, dilation=dilation)
            self.layers.append(JasperBlock([last], None, rate))
            width = channels
        self.projection = nn.Identity() if width == config.d_model else nn.Linear(width, config.d_model)

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, F), (B, T) -> (B, S, C)."""
        mask = None if attention_mask is None else frame_mask(attention_mask)
        x = input_features.to(computing_dtype(self)).transpose(1, 2)  # (B, F, T)
        for layer in self.layers:
            x, mask = layer(x, mask)
        return self.projection(x.transpose(1, 2))

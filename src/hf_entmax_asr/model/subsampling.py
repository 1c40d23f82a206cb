"""The front end: feature frames to encoder positions."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from .configuration_entmax_asr import EntmaxAsrConfig


def computing_dtype(module: nn.Module) -> torch.dtype:
    """What a module computes in: its inputs are cast to it. Quantised weights, which are integers, do not count."""
    floating = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return next(floating, torch.get_default_dtype())


class FrontEnd(nn.Module):
    """What the encoder asks of a front end, whatever it is made of.

    It turns T frames into `EntmaxAsrConfig.positions_of(T)` positions, position s centred on frame
    s · `frames_per_position`, and an utterance that is padded gives the same positions as the utterance alone.
    """

    reach: (
        int  # position s is made of the frames from s · frames_per_position − reach to s · frames_per_position + reach
    )

    def __init__(self, config: EntmaxAsrConfig):
        super().__init__()
        self.num_mel_bins = config.num_mel_bins

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in: features are cast to it."""
        return computing_dtype(self)

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features (B, T, F) and mask (B, T), true or nonzero where a frame is real -> positions (B, S, C) and their
        boolean mask (B, S).

        Raises:
            ValueError: features of another shape.
        """
        if input_features.dim() != 3 or input_features.shape[-1] != self.num_mel_bins:
            raise ValueError(
                f"input_features has shape {tuple(input_features.shape)}; it must be (batch, frames, "
                f"{self.num_mel_bins}), as EntmaxAsrFeatureExtractor makes it."
            )
        mask = None if attention_mask is None else frame_mask(attention_mask)
        return self.subsample(input_features.to(self.dtype), mask)

    def subsample(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `forward`, of features in the right dtype and a boolean mask."""
        raise NotImplementedError


class Conv2dSubsampling(FrontEnd):
    """One or two convolutions 3x3 of stride 2 over time and mel bins, each with ReLU, then a projection to width C.

    Padding is cleared before every convolution.
    """

    def __init__(self, config: EntmaxAsrConfig):
        super().__init__(config)
        channels = config.subsampling_channels
        self.reach = 2**config.subsampling_layers - 1
        self.convolutions = nn.ModuleList(
            nn.Conv2d(1 if layer == 0 else channels, channels, kernel_size=3, stride=2, padding=1)
            for layer in range(config.subsampling_layers)
        )
        bins = config.num_mel_bins
        for _ in self.convolutions:
            bins = (bins + 1) // 2
        self.projection = nn.Linear(channels * bins, config.d_model)

    def subsample(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = x.unsqueeze(1)  # (B, 1, T, F)
        for convolution in self.convolutions:
            if mask is not None:
                x = x.masked_fill(~mask[:, None, :, None], 0.0)
                mask = mask[:, ::2]
            x = convolution(x).relu()  # (B, channels, T/2, F/2)
        return self.projection(x.transpose(1, 2).flatten(2)), mask


class WhisperFrontEnd(FrontEnd):
    """Whisper's two convolutions over time, of width 3, each with GELU; the second has stride 2.

    Padding is cleared before each of them.
    """

    reach = 2

    def __init__(self, config: EntmaxAsrConfig):
        super().__init__(config)
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)

    def subsample(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = x.transpose(1, 2)  # (B, F, T)
        if mask is None:
            x = gelu(self.conv1(x))  # (B, C, T)
        else:
            padding = ~mask[:, None, :]
            x = gelu(self.conv1(x.masked_fill(padding, 0.0))).masked_fill(padding, 0.0)
            mask = mask[:, ::2]
        return gelu(self.conv2(x)).transpose(1, 2), mask  # (B, T/2, C)


FRONT_ENDS: dict[str, type[FrontEnd]] = {"conv2d": Conv2dSubsampling, "whisper": WhisperFrontEnd}


def front_end(config: EntmaxAsrConfig) -> FrontEnd:
    """The front end that the configuration names."""
    return FRONT_ENDS[config.front_end](config)


def frame_mask(attention_mask: Tensor) -> Tensor:
    """Boolean (B, T) of a mask of frames; generation invents (B, T, F) masks from the shape of the features."""
    return (attention_mask[:, :, -1] if attention_mask.dim() == 3 else attention_mask).bool()


def position_mask(attention_mask: Tensor, frames_per_position: int) -> Tensor:
    """Mask of frames (B, T) -> boolean mask of positions (B, S): one is real where the frame at its centre is."""
    return frame_mask(attention_mask)[:, ::frames_per_position]

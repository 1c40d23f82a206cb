"""The convolutional front: feature frames to encoder positions."""

from torch import Tensor, nn

from .configuration_entmax_asr import EntmaxAsrConfig


class Conv2dSubsampling(nn.Module):
    """One or two convolutions 3x3 of stride 2 over time and mel bins, each with ReLU, then a projection to width C.

    Padding is cleared before every convolution, so a padded utterance gives the same positions as the utterance alone.
    """

    def __init__(self, config: EntmaxAsrConfig):
        super().__init__()
        channels = config.subsampling_channels
        self.convolutions = nn.ModuleList(
            nn.Conv2d(1 if layer == 0 else channels, channels, kernel_size=3, stride=2, padding=1)
            for layer in range(config.subsampling_layers)
        )
        bins = config.num_mel_bins
        for _ in self.convolutions:
            bins = subsampled_length(bins)
        self.projection = nn.Linear(channels * bins, config.d_model)

    def forward(self, input_features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features (B, T, F) and mask (B, T) boolean -> positions (B, S, C) and their mask (B, S)."""
        x = input_features.unsqueeze(1)  # (B, 1, T, F)
        for convolution in self.convolutions:
            if mask is not None:
                x = x.masked_fill(~mask[:, None, :, None], 0.0)
                mask = subsampled_mask(mask)
            x = convolution(x).relu()  # (B, channels, T/2, F/2)
        return self.projection(x.transpose(1, 2).flatten(2)), mask


def frame_mask(attention_mask: Tensor) -> Tensor:
    """Boolean (B, T) of a mask of frames; generation invents (B, T, F) masks from the shape of the features."""
    return (attention_mask[:, :, -1] if attention_mask.dim() == 3 else attention_mask).bool()


def position_mask(attention_mask: Tensor, layers: int) -> Tensor:
    """Mask of frames (B, T) -> boolean mask (B, S) of the positions that `layers` convolutions make of them."""
    mask = frame_mask(attention_mask)
    for _ in range(layers):
        mask = subsampled_mask(mask)
    return mask


def subsampled_length(length):
    """Positions that one convolution makes of `length` frames (a number or a tensor of numbers): half, rounded up."""
    return (length + 1) // 2


def subsampled_mask(mask: Tensor) -> Tensor:
    """(B, T) -> (B, ceil(T/2)): a position is real where the frame at its centre is."""
    return mask[:, ::2]

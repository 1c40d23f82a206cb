"""SpecAugment: masks over frequency and time on a batch of features (Park et al. 2019, arXiv 1904.08779).

The paper's third policy, time warping, is left out: by the paper's own account it helps least and is the first to drop.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SpecAugment:
    """Masks some mel bins and some stretches of time, anew for every utterance and call.

    The parameters carry the paper's names. The defaults are its policy LD (LibriSpeech double), with the p = 0.2 of its
    Switchboard policies, so that short utterances survive.

    Args:
        F: a frequency mask is 0 to F mel bins wide, each width equally likely.
        m_F: number of frequency masks.
        T: a time mask is 0 to T frames long, each length equally likely.
        m_T: number of time masks.
        p: no time mask is longer than this share of the utterance's real frames.
        mask_value: what masked features become; 0 is the mean after mean and variance normalisation.

    Raises:
        ValueError: a number is negative, or p lies outside [0, 1].
    """

    F: int = 27
    m_F: int = 2
    T: int = 100
    m_T: int = 2
    p: float = 0.2
    mask_value: float = 0.0

    def __post_init__(self) -> None:
        for name in ("F", "m_F", "T", "m_T"):
            if getattr(self, name) < 0:
                raise ValueError(f"SpecAugment: {name} is {getattr(self, name)}; it must not be negative.")
        if not 0 <= self.p <= 1:
            raise ValueError(f"SpecAugment: p is {self.p}; it is a share and must lie between 0 and 1.")

    def __call__(
        self, input_features: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """A masked copy of the features.

        Args:
            input_features: (B, T, F).
            lengths: (B,) real frames of each utterance, ``attention_mask.sum(dim=1)``. Time masks stay within them.
            generator: source of the random numbers, on the features' device; the global one if None.

        Raises:
            ValueError: the shapes do not fit, or a length is negative or beyond T.
        """
        if input_features.ndim != 3 or lengths.shape != input_features.shape[:1]:
            raise ValueError(
                f"SpecAugment takes features (B, T, F) and lengths (B,), "
                f"got {tuple(input_features.shape)} and {tuple(lengths.shape)}."
            )
        batch, frames, bins = input_features.shape
        if batch and not 0 <= lengths.min() <= lengths.max() <= frames:
            raise ValueError(f"SpecAugment: lengths {lengths.tolist()} do not all lie between 0 and T = {frames}.")
        lengths = lengths.to(input_features.device)
        all_bins = torch.full_like(lengths, bins)
        bin_masked = _stretches(bins, all_bins, all_bins.clamp(max=self.F), self.m_F, generator)  # (B, F)
        longest = (lengths.double() * self.p).long().clamp(max=self.T)
        frame_masked = _stretches(frames, lengths, longest, self.m_T, generator)  # (B, T)
        return input_features.masked_fill(frame_masked[:, :, None] | bin_masked[:, None, :], self.mask_value)


def _stretches(
    size: int, lengths: torch.Tensor, longest: torch.Tensor, count: int, generator: torch.Generator | None
) -> torch.Tensor:
    """A mask (B, size), true in the union of ``count`` random stretches inside the first ``lengths`` (B,) places.

    The width is uniform over 0..``longest`` (B,), then the start over every place where that width fits.
    """
    draws = torch.rand(2, lengths.shape[0], count, 1, generator=generator, device=lengths.device, dtype=torch.float64)
    width = (draws[0] * (longest[:, None, None] + 1)).long()  # (B, count, 1)
    start = (draws[1] * (lengths[:, None, None] - width + 1)).long()
    place = torch.arange(size, device=lengths.device)
    return ((place >= start) & (place < start + width)).any(dim=1)

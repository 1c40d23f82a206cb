"""Training data made different in every epoch: masks on features (SpecAugment), speed, volume and noise of waveforms.

SpecAugment is Park et al. 2019, arXiv 1904.08779. Its third policy, time warping, is left out: by the paper's own
account it helps least and is the first to drop. The speed of an utterance is drawn with the plan of its epoch
(training/batching.py), because it decides how long the utterance is and so what fits a batch.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from hf_entmax_asr.audio import AUDIO_SUFFIXES, read_audio, resample_by_ratio


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


def change_speed(waveform: np.ndarray, speed: float) -> np.ndarray:
    """Play a waveform (samples,) `speed` times as fast, pitch included: ceil(samples / speed) samples, float32.

    Speed perturbation of Ko et al., "Audio augmentation for speech recognition" (Interspeech 2015). The speed is taken
    to the nearest 1 %. Raises ValueError for one below 1 %.
    """
    ratio = Fraction(round(100 * speed), 100)
    return resample_by_ratio(waveform, ratio.numerator, ratio.denominator)


@dataclass(frozen=True)
class WaveformPerturbation:
    """Changes the volume of a waveform and adds noise to it, anew at every call.

    Attributes:
        volume_db: the gain is uniform between minus and plus so many decibels.
        noise_share: share of the utterances that get noise.
        noise_snr_db: power of the speech over that of the noise, uniform between these two, in decibels.
        noise_files: recordings of noise, of which one is drawn and read from a random place on, over and over if it is
            short; none: white noise.
        sampling_rate: of the waveforms, in Hz.
    """

    volume_db: float = 0.0
    noise_share: float = 0.0
    noise_snr_db: tuple[float, float] = (10.0, 30.0)
    noise_files: tuple[Path, ...] = ()
    sampling_rate: int = 16_000

    def __call__(self, waveform: np.ndarray, generator: torch.Generator | None = None) -> np.ndarray:
        """A changed copy of a waveform (samples,), float32; `generator` as in torch."""
        # Always the same draws: whether one utterance gets noise changes nothing for the next.
        gain, share, snr, place, seed = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        if share < self.noise_share:
            low, high = self.noise_snr_db
            waveform = add_noise(waveform, self._noise(len(waveform), place, seed), low + snr * (high - low))
        return (waveform * 10 ** ((2 * gain - 1) * self.volume_db / 20)).astype(np.float32)

    def _noise(self, samples: int, place: float, seed: float) -> np.ndarray:
        if not self.noise_files:
            return np.random.default_rng(int(seed * 2**53)).standard_normal(samples, dtype=np.float32)
        recording = read_audio(self.noise_files[int(seed * len(self.noise_files))], self.sampling_rate)
        return np.take(recording, int(place * len(recording)) + np.arange(samples), mode="wrap")


def add_noise(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """waveform + noise, both (samples,), the noise scaled to this ratio of powers; silence of either adds nothing."""
    speech_power, noise_power = (float(np.mean(np.square(x, dtype=np.float64))) for x in (waveform, noise))
    if noise_power == 0:
        return waveform
    return waveform + noise * np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10))


def find_noise_files(folder: str | Path) -> tuple[Path, ...]:
    """The audio files below a folder, in order; ValueError where there are none."""
    files = tuple(path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no audio files")
    return files

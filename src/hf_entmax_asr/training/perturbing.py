"""Training waveforms made different in every epoch: speed, volume and added noise, on the fly.

The speed of an utterance is drawn with the plan of its epoch (batching.py), because it decides how long the utterance
is and so what fits a batch; volume and noise are drawn here, from the random numbers of the batch.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from hf_entmax_asr.corpora.folder import AUDIO_SUFFIXES, read_audio, resample
from hf_entmax_asr.training.typed_yaml import RecipeError


def change_speed(waveform: np.ndarray, speed: float) -> np.ndarray:
    """Play a waveform (samples,) `speed` times as fast, pitch included: ceil(samples / speed) samples, float32.

    Speed perturbation of Ko et al., "Audio augmentation for speech recognition" (Interspeech 2015). The speed is taken
    to the nearest 1 %. Raises ValueError for one below 1 %.
    """
    ratio = Fraction(round(100 * speed), 100)
    return resample(waveform, ratio.numerator, ratio.denominator)


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


def find_noise_files(folder: str | None) -> tuple[Path, ...]:
    """The audio files below a folder, in order; RecipeError where there are none."""
    if folder is None:
        return ()
    files = tuple(path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise RecipeError(f"augmentation.noise_path is {folder}, which holds no audio files; null takes white noise")
    return files

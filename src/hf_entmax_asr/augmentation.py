"""Training data made different in every epoch: masks on features (SpecAugment), speed, volume and noise of waveforms.

SpecAugment is Park et al. 2019, arXiv 1904.08779. Its third policy, time warping, is left out: by the paper's own
account it helps least and is the first to drop. The speed of an utterance is drawn with the plan of its epoch
(training/batching.py), because it decides how long the utterance is and so what fits a batch.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

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


class Draw(NamedTuple):
    """What chance says for one utterance, each uniform between 0 and 1; the shares of `WaveformPerturbation` say what
    comes of it."""

    no_speech: float
    kind: float
    level: float
    noise: float
    snr: float
    gain: float
    place: float
    silence: float
    before: float
    within: float
    behind: float
    silence_level: float
    seed: float


@dataclass(frozen=True)
class WaveformPerturbation:
    """Changes the volume of a waveform, adds noise to it and silence around it, or puts audio without speech in its
    place: `draw` says what the next utterance gets, `apply` does it.

    Attributes:
        volume_db: the gain is uniform between minus and plus so many decibels.
        noise_share: share of the utterances that get noise.
        noise_snr_db: power of the speech over that of the noise, uniform between these two, in decibels.
        noise_files: recordings of noise, of which one is drawn and read from a random place on, over and over if it is
            short; none: white noise.
        sampling_rate: of the waveforms, in Hz.
        silence_share: share of the utterances that get silence before them, behind them or in their quietest place:
            digital zeros or faint noise.
        silence_seconds: the longest at one place; each length is uniform up to it.
        no_speech_share: share of the utterances whose audio becomes silence, noise, hum or music; their text is then
            empty.
    """

    volume_db: float = 0.0
    noise_share: float = 0.0
    noise_snr_db: tuple[float, float] = (10.0, 30.0)
    noise_files: tuple[Path, ...] = ()
    sampling_rate: int = 16_000
    silence_share: float = 0.0
    silence_seconds: float = 2.0
    no_speech_share: float = 0.0

    def draw(self, generator: torch.Generator | None = None) -> Draw | None:
        """What the next utterance gets; None: it stays as it is. `generator` as in torch."""
        # Always the same draws: what one utterance gets changes nothing for the next.
        draw = Draw(*torch.rand(len(Draw._fields), generator=generator, dtype=torch.float64).tolist())
        gets = draw.noise < self.noise_share or draw.silence < self.silence_share or self.volume_db > 0
        return draw if gets or self.replaces(draw) else None

    def replaces(self, draw: Draw | None) -> bool:
        """Whether the utterance becomes audio without speech."""
        return draw is not None and draw.no_speech < self.no_speech_share

    def apply(self, waveform: np.ndarray, draw: Draw | None) -> np.ndarray:
        """A changed copy of a waveform (samples,), float32; the waveform itself where nothing is to be done."""
        if draw is None:
            return waveform
        if self.replaces(draw):
            return self._without_speech(len(waveform), draw)
        if draw.noise < self.noise_share:
            low, high = self.noise_snr_db
            waveform = add_noise(waveform, self._noise(len(waveform), draw), low + draw.snr * (high - low))
        waveform = waveform * 10 ** ((2 * draw.gain - 1) * self.volume_db / 20)
        if draw.silence < self.silence_share:
            waveform = self._with_silence(waveform, draw)
        return waveform.astype(np.float32)

    def _with_silence(self, waveform: np.ndarray, draw: Draw) -> np.ndarray:
        """The waveform with silence at one of three places or at several."""
        random = _random(draw)
        # In half of the cases exact zeros; else noise from below one bit of 16 up to 45 dB under full scale.
        level = draw.silence_level
        amplitude = 0.0 if level < 0.5 else 10 ** (-(100 - 55 * (2 * level - 1)) / 20)
        most = round(self.silence_seconds * self.sampling_rate)
        # A length below 0 leaves the place as it is: with 6 of 10 chances.
        counts = [max(0, round((2.5 * share - 1.5) * most)) for share in (draw.before, draw.within, draw.behind)]
        if not any(counts):
            counts[2] = round(draw.behind * most)
        before, within, behind = (amplitude * random.standard_normal(count) for count in counts)
        place = quietest_place(waveform, self.sampling_rate // 20)
        return np.concatenate([before, waveform[:place], within, waveform[place:], behind])

    def _without_speech(self, samples: int, draw: Draw) -> np.ndarray:
        """Zeros, the hum of a power line with its harmonics, music, or noise, from 60 to 10 dB below full scale."""
        if draw.kind < 0.2:
            return np.zeros(samples, np.float32)
        if draw.kind < 0.4:
            time, base = np.arange(samples) / self.sampling_rate, 50 if draw.seed < 0.5 else 60  # Hz
            sound = sum(np.sin(2 * np.pi * base * n * time) / n for n in range(1, 8))
        elif draw.kind < 0.6:
            sound = tune(samples, self.sampling_rate, _random(draw))
        else:
            sound = self._noise(samples, draw)
        power = max(1e-9, float(np.sqrt(np.mean(np.square(sound)))))
        return np.asarray(10 ** (-(60 - 50 * draw.level) / 20) * sound / power, np.float32)

    def _noise(self, samples: int, draw: Draw) -> np.ndarray:
        if not self.noise_files:
            return _random(draw).standard_normal(samples, dtype=np.float32)
        recording = read_audio(self.noise_files[int(draw.seed * len(self.noise_files))], self.sampling_rate)
        return np.take(recording, int(draw.place * len(recording)) + np.arange(samples), mode="wrap")


def _random(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(int(draw.seed * 2**53))


def tune(samples: int, sampling_rate: int, random: np.random.Generator) -> np.ndarray:
    """Music as an instrument that is struck plays it, (samples,): on every beat up to three notes of a major scale,
    which die away."""
    beat = round(sampling_rate * 60 / random.uniform(60, 180))
    brightness, seconds = random.uniform(0.6, 2), random.uniform(0.1, 1)
    scale, lowest = np.array([0, 2, 4, 5, 7, 9, 11, 12]), random.integers(40, 65)  # semitones, of which A is 69
    sound = np.zeros(samples + 2 * beat)
    time = np.arange(2 * beat) / sampling_rate
    for begin in range(0, samples, beat):
        for note in lowest + scale[random.integers(0, len(scale), random.integers(0, 4))]:
            pitch = 440 * 2 ** ((note - 69) / 12)
            waves = sum(np.sin(2 * np.pi * pitch * n * time) / n**brightness for n in range(1, 6))
            sound[begin : begin + 2 * beat] += waves * np.exp(-time / seconds)
    return sound[:samples]


def quietest_place(waveform: np.ndarray, window: int) -> int:
    """The middle of the quietest stretch of `window` samples in the inner half of a waveform (samples,)."""
    inner = waveform[len(waveform) // 4 : len(waveform) - len(waveform) // 4]
    if len(inner) < 2 * window:
        return len(waveform) // 2
    power = np.square(inner[: len(inner) // window * window], dtype=np.float64).reshape(-1, window).sum(axis=1)
    return len(waveform) // 4 + int(power.argmin()) * window + window // 2


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

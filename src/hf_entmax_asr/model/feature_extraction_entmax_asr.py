"""From waveforms to log-mel filterbank features, equal to Kaldi's, with mean and variance normalisation.

Axes: B batch, T frames, N samples in a window, K frequencies of the spectrum, F mel bins.
"""

import functools
import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor
from transformers.utils import logging

from .configuration_entmax_asr import EntmaxAsrConfig
from .log_mel import HOP_SAMPLES, SAMPLING_RATE, WINDOW_SAMPLES, log_mel, log_mel_frames, windows_log_mel
from .normalization import (
    STD_FLOOR,
    GlobalMoments,
    Normalizer,
    RunningMaximum,
    RunningMoments,
    is_steady,
    scaled_log_mel,
    unchanged,
)
from .speech_features import INT16_SCALE, Counts, SpeechFeatureExtractor

logger = logging.get_logger(__name__)

PREEMPHASIS = 0.97
LOWEST_FREQUENCY_HZ = 20
MEL_FLOOR = float(np.finfo(np.float32).eps)  # where Kaldi cuts off before the logarithm
SILENT = math.log(MEL_FLOOR) + 1e-3  # a bin of digital zeros is no higher
SILENT_LOG_MEL = -10.0  # of Whisper's log10
LATEST_VERSION = 2
FAINTER = math.log(1e4)  # 40 dB: in frames so much below the loudest, no speech is heard beside it
CLICK_FRAMES = 5  # louder ones than these may be a click; 50 ms of speech are not
LOWEST = -4.0  # standard deviations from the mean
GLOBAL_STD_FLOOR = 0.1  # a bin that hardly moves in the training data must not be amplified without bound elsewhere
# Of each setting: beyond any use, and far below what takes all memory before it is noticed.
LARGEST = {
    "feature_size": 10_000,
    "sampling_rate": 768_000,
    "hop_ms": 10_000,
    "window_ms": 10_000,
    "min_seconds": 3_600,
    "padding_value": 1_000_000,
}
FRAMES_PER_BLOCK = 512  # bounds the temporary arrays to about 10 MB, however long the recording


@functools.lru_cache(maxsize=8)
def _window_and_filters(
    feature_size: int, sampling_rate: int, window_samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The Povey window (N,) and Kaldi's triangular mel filters (K, F), float64. Derived, so never saved."""
    fft_size = _fft_size(window_samples)
    window = np.hanning(window_samples) ** 0.85
    edges = np.linspace(_mel(LOWEST_FREQUENCY_HZ), _mel(sampling_rate / 2), feature_size + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    frequencies = _mel(np.arange(fft_size // 2 + 1) * sampling_rate / fft_size)[:, None]  # (K, 1)
    filters = np.minimum((frequencies - left) / (centre - left), (right - frequencies) / (right - centre)).clip(min=0)
    empty = np.flatnonzero(filters.max(axis=0) == 0)
    if empty.size:
        raise ValueError(
            f"feature_size is {feature_size}, too many for a spectrum of {fft_size // 2 + 1} frequencies: mel bin "
            f"{empty[0]} would hold none of them. Use fewer bins or a longer window_ms."
        )
    return torch.from_numpy(window), torch.from_numpy(filters)


def _mel(frequency_hz: Any) -> Any:
    return 1127 * np.log1p(np.divide(frequency_hz, 700))


def _fft_size(window_samples: int) -> int:
    """The power of two that holds a window, as in Kaldi."""
    return 1 << (window_samples - 1).bit_length()


class EntmaxAsrFeatureExtractor(SpeechFeatureExtractor):
    """Log-mel features as Kaldi computes them (dither 0, whole windows only), then normalised; or as Whisper does.

    Args:
        feature_size: number of mel bins F, at least 3.
        sampling_rate: samples per second of the audio. Audio at another rate is refused, never resampled here.
        hop_ms: time from one frame to the next.
        window_ms: length of the Povey window; not shorter than ``hop_ms``.
        cmvn: "utterance" subtracts each recording's own mean per bin and divides by its own standard deviation, over
            its real frames; "global" does the same with stored statistics (see `fit_global_cmvn`); "running" with those
            of the frames up to each one, beside one second of the stored ones; "none" leaves the logarithms as they
            are. Streaming takes all but "utterance".
        cmvn_mean, cmvn_std: the stored statistics, F numbers each. They are saved with the extractor.
        padding_value: what padded frames hold, after normalisation; 0 is the mean.
        kind: "kaldi" or "whisper". Whisper's are scaled by each recording's maximum and fixed in all but
            ``feature_size`` (80, or 128 for large-v3): 16 kHz, a hop of 10 ms, windows of 25 ms, ``cmvn`` "none".
        min_seconds: a shorter recording is followed by silence up to that length, which counts as real: 30 is what
            Whisper itself does. 0: every recording has its own length.
        version: 2 takes ``cmvn`` statistics over the frames in which something sounds (at most 40 dB below the loudest
            of the recording), and nothing lies more than 4 standard deviations below the mean: silence before, within
            or behind speech, be it digital zeros or faint noise, changes nothing in the frames of the speech. 1 takes
            them over all frames, without bound; extractors that were saved without a version have it. A recording
            that is one steady sound (see `is_steady`) becomes silence in version 2, where ``cmvn`` or ``maximum`` is
            the utterance's and ``min_seconds`` 0.
        maximum: what Whisper's features are scaled by: the "utterance"'s, as Whisper does, or the "running" one, of
            the frames up to each (see `RunningMaximum`), which is the rule of streaming.

    Raises:
        ValueError: a setting is out of range; the message names it, its value and the limit.

    Audio is floats in [-1, 1], or 16-bit integers, which are divided by 32,768. A recording shorter than one window is
    filled up with silence and gives one frame, because the last piece of a long recording that was cut up may be that
    short. Stereo is refused: mix it down with ``audio.mean(axis=...)``.
    """

    frame_settings = ("kind", "feature_size", "sampling_rate", "hop_ms", "window_ms", "min_seconds", "version")

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        hop_ms: float = 10,
        window_ms: float = 25,
        cmvn: str = "utterance",
        cmvn_mean: Iterable[float] | None = None,
        cmvn_std: Iterable[float] | None = None,
        padding_value: float = 0.0,
        kind: str = "kaldi",
        min_seconds: float = 0.0,
        version: int = LATEST_VERSION,
        maximum: str = "utterance",
        **kwargs: Any,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.kind = kind
        self.min_seconds = min_seconds
        self.version = version
        self.maximum = maximum
        self.hop_ms = hop_ms
        self.window_ms = window_ms
        self.cmvn = cmvn
        self.cmvn_mean = None if cmvn_mean is None else [float(value) for value in cmvn_mean]
        self.cmvn_std = None if cmvn_std is None else [float(value) for value in cmvn_std]
        self._validate()

    def _validate(self) -> None:
        for name in ("feature_size", "sampling_rate"):
            if not isinstance(getattr(self, name), numbers.Integral) or isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a whole number.")
        for name, most in LARGEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise ValueError(f"{name} is {value!r}; it must be a number.")
            if value > most:
                raise ValueError(f"{name} is {value}; it must be at most {most:,}.")
        if self.feature_size < 3:
            raise ValueError(f"feature_size is {self.feature_size}; a mel filterbank needs at least 3 bins.")
        if self.sampling_rate < 1000:
            raise ValueError(f"sampling_rate is {self.sampling_rate} Hz; it must be at least 1000 Hz.")
        if not math.isfinite(self.hop_ms) or self.hop_samples < 1:
            raise ValueError(
                f"hop_ms is {self.hop_ms}; it must be at least one sample, {1000 / self.sampling_rate} ms."
            )
        if not math.isfinite(self.window_ms) or self.window_samples < max(2, self.hop_samples):
            raise ValueError(f"window_ms is {self.window_ms}; it must not be shorter than hop_ms, {self.hop_ms}.")
        if self.version not in range(1, LATEST_VERSION + 1):
            raise ValueError(
                f"version is {self.version!r}; this package knows 1 to {LATEST_VERSION}. Is the checkpoint of a later "
                "package?"
            )
        if self.return_attention_mask not in (True, False):
            raise ValueError(f"return_attention_mask is {self.return_attention_mask!r}; it must be true or false.")
        if self.padding_side != "right":
            raise ValueError(f"padding_side is {self.padding_side!r}; the model reads time from the left: use 'right'.")
        if not math.isfinite(self.padding_value):
            raise ValueError(f"padding_value is {self.padding_value}; it must be a finite number.")
        if not (math.isfinite(self.min_seconds) and self.min_seconds >= 0):
            raise ValueError(f"min_seconds is {self.min_seconds}; it must be a finite number, 0 or more.")
        self._validate_kind()
        if self.cmvn not in ("utterance", "global", "running", "none"):
            raise ValueError(f"cmvn is {self.cmvn!r}; use 'utterance', 'global', 'running' or 'none'.")
        if self.maximum not in ("utterance", "running"):
            raise ValueError(f"maximum is {self.maximum!r}; use 'utterance' or 'running'.")
        if (self.cmvn_mean is None) != (self.cmvn_std is None):
            raise ValueError("cmvn_mean and cmvn_std belong together: give both or neither.")
        for name, values in (("cmvn_mean", self.cmvn_mean), ("cmvn_std", self.cmvn_std)):
            if values is not None and (len(values) != self.feature_size or not all(map(math.isfinite, values))):
                raise ValueError(f"{name} must be {self.feature_size} finite numbers, one a mel bin; got {values}.")
        if self.cmvn_std is not None and min(self.cmvn_std) <= 0:
            raise ValueError(f"cmvn_std must be positive; its smallest value is {min(self.cmvn_std)}.")

    def _validate_kind(self) -> None:
        match self.kind:
            case "kaldi":
                _window_and_filters(self.feature_size, self.sampling_rate, self.window_samples)
            case "whisper":
                given = (self.sampling_rate, self.hop_samples, self.window_samples, self.cmvn)
                if given != (SAMPLING_RATE, HOP_SAMPLES, WINDOW_SAMPLES, "none"):
                    raise ValueError(
                        f"kind 'whisper' needs a sampling_rate of {SAMPLING_RATE} Hz, hop_ms 10, window_ms 25 and cmvn "
                        f"'none'; got {self.sampling_rate} Hz, {self.hop_ms}, {self.window_ms}, {self.cmvn!r}."
                    )
            case _:
                raise ValueError(f"kind is {self.kind!r}; use 'kaldi' or 'whisper'.")

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next, rounded down as in Kaldi."""
        return int(self.sampling_rate * self.hop_ms / 1000)

    @property
    def window_samples(self) -> int:
        """Samples in a window (N), rounded down as in Kaldi."""
        return int(self.sampling_rate * self.window_ms / 1000)

    @property
    def shortest_samples(self) -> int:
        """One window."""
        return self.window_samples

    @property
    def samples_before(self) -> int:
        """How many samples before sample ``hop_samples`` · t the window of frame t begins: before the audio stands its
        own beginning, mirrored."""
        return self.window_samples // 2 if self.kind == "whisper" else 0

    @property
    def needs_statistics(self) -> bool:
        """Whether ``cmvn`` is "global" or "running"."""
        return self.cmvn in ("global", "running")

    def num_frames(self, num_samples: Counts) -> Counts:
        """The number of frames T that a recording of ``num_samples`` gives, at least 1; or an array of them."""
        least = round(self.min_seconds * self.sampling_rate)
        num_samples = num_samples + (least - num_samples) * (num_samples < least)
        if self.kind == "whisper":
            return log_mel_frames(num_samples)
        hops = (num_samples - self.window_samples) // self.hop_samples
        return 1 + hops * (hops > 0)

    def longest_samples(self, frames: Counts) -> Counts:
        """The last window, and all but one sample of the next hop; of Whisper's frames, as many hops."""
        if self.kind == "whisper":
            return frames * self.hop_samples
        return self.window_samples + frames * self.hop_samples - 1

    @torch.no_grad()
    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """The filterbank before normalisation: (samples,) float32 in [-1, 1] on the CPU -> (T, F) float32.

        Kaldi's is computed in float64. Kaldi itself computes in float32, so the two agree within 1e-3 except where a
        bin lies more than about 80 dB below the strongest bin of its frame; there Kaldi's own rounding reaches 3e-2.
        """
        silence = round(self.min_seconds * self.sampling_rate) - waveform.shape[0]
        if silence > 0:
            waveform = torch.nn.functional.pad(waveform, (0, silence))
        if self.kind == "whisper":
            return log_mel(waveform, self.feature_size, mirror_end=self.min_seconds > 0)
        missing = self.window_samples - waveform.shape[0]
        if missing > 0:
            waveform = torch.nn.functional.pad(waveform, (0, missing))
        return self.windows_log_mel(waveform)

    @torch.no_grad()
    def windows_log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Frames of the whole windows of a piece of audio, before normalisation: (samples,) -> (T, F) float32."""
        if self.kind == "whisper":
            return windows_log_mel(waveform, self.feature_size)
        window, filters = _window_and_filters(self.feature_size, self.sampling_rate, self.window_samples)
        frames = waveform.unfold(0, self.window_samples, self.hop_samples)  # (T, N), a view
        features = waveform.new_empty(frames.shape[0], self.feature_size)  # (T, F)
        blocks = zip(frames.split(FRAMES_PER_BLOCK), features.split(FRAMES_PER_BLOCK), strict=True)
        for block, out in blocks:
            block = block.double() * INT16_SCALE  # Kaldi reads 16-bit samples as they are
            block -= block.mean(dim=1, keepdim=True)
            before = torch.cat([block[:, :1], block[:, :-1]], dim=1)  # the first sample counts as its own predecessor
            spectrum = torch.fft.rfft((block - PREEMPHASIS * before) * window, n=_fft_size(self.window_samples))
            power = spectrum.real.square() + spectrum.imag.square()  # (T, K)
            out.copy_((power @ filters).clamp_(min=MEL_FLOOR).log_())
        return features

    @torch.no_grad()
    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Mean and variance normalisation (``cmvn``) of one recording's real frames: (T, F) -> (T, F) float32; of
        Whisper's, scaling by the maximum.

        Raises:
            ValueError: ``cmvn`` needs stored statistics and there are none.
        """
        if self.kind == "whisper" and self.maximum == "utterance":
            if self.version > 1 and not self.min_seconds and is_steady(features):
                features = torch.full_like(features, SILENT_LOG_MEL)
            return scaled_log_mel(features, features.max())
        if self.cmvn != "utterance":
            return self.normalizer()(features)
        heard = features[self._sounds(features)]  # (frames that sound, F)
        if not len(heard) or (self.version > 1 and is_steady(features)):
            return torch.full_like(features, LOWEST)
        # float64, so that a bin which never moves has a variance of exactly 0.
        std, mean = torch.std_mean(heard.double(), dim=0, correction=0)
        if self.version == 1:
            return ((features - mean) / std.clamp(min=STD_FLOOR)).float()
        return ((features - mean) / std.clamp(min=GLOBAL_STD_FLOOR)).float().clamp(min=LOWEST)

    def _sounds(self, features: torch.Tensor) -> torch.Tensor:
        """Which frames of a recording statistics are taken over: (T, F) before normalisation -> (T,)."""
        if self.version == 1:
            return torch.ones(features.shape[0], dtype=torch.bool)
        energy = features.logsumexp(dim=1)  # (T,) log of the power of all bins
        loud = energy.topk(min(CLICK_FRAMES, len(energy))).values[-1]
        return (energy > loud - FAINTER) & (features > SILENT).any(dim=1)

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; what was saved before there were versions is of the first."""
        return super().from_dict({"version": 1, **feature_extractor_dict}, **kwargs)

    def normalizer(self) -> Normalizer:
        """A fresh function that normalises one recording piece by piece, as streaming does. Whisper's features it
        scales by the running maximum, whatever `maximum` says.

        Raises:
            ValueError: ``cmvn`` is "utterance", or needs stored statistics and there are none.
        """
        if self.kind == "whisper":
            return RunningMaximum()
        if self.cmvn == "none":
            return unchanged
        if self.cmvn == "utterance":
            raise ValueError(
                "cmvn is 'utterance', which is known only at the end of a recording, so audio cannot be normalised as "
                "it comes in. Train with features.cmvn=global (or running); or, for a model at hand, set "
                "feature_extractor.cmvn = 'running' after fit_global_cmvn(waveforms), which costs accuracy."
            )
        if self.cmvn_mean is None or self.cmvn_std is None:
            raise ValueError(f"cmvn is {self.cmvn!r} but there are no statistics yet: call fit_global_cmvn(waveforms).")
        lowest = -math.inf if self.version == 1 else LOWEST
        return (GlobalMoments if self.cmvn == "global" else RunningMoments)(self.cmvn_mean, self.cmvn_std, lowest)

    def fit_global_cmvn(self, waveforms: Iterable[Any], sampling_rate: int | None = None) -> int:
        """Measure the mean and standard deviation of every mel bin over all frames, store them, set cmvn to "global"
        unless it is "running".

        Args:
            waveforms: recordings as in `__call__`, read one at a time (a generator will do).
            sampling_rate: of all of them.

        Returns:
            The number of frames measured.

        Raises:
            ValueError: no recordings, or one that `__call__` would refuse; the settings are then left as they were.
        """
        self._check_sampling_rate(sampling_rate)
        if self.kind == "whisper":
            raise ValueError("Whisper's features are scaled by each recording's maximum; they take no statistics.")
        count = 0
        total, total_square = torch.zeros(2, self.feature_size, dtype=torch.float64)  # (F,) each
        for index, item in enumerate(waveforms):
            features = self.log_mel(self._waveform(item, index))
            features = features[self._sounds(features)].double()
            count += features.shape[0]
            total += features.sum(dim=0)
            total_square += features.square().sum(dim=0)
        if count == 0:
            raise ValueError("fit_global_cmvn was given no recordings, or silence alone.")
        mean = total / count
        std = (total_square / count - mean.square()).clamp(min=0).sqrt()
        still = torch.nonzero(std < GLOBAL_STD_FLOOR).flatten().tolist()
        if still:
            logger.warning(
                f"Mel bins {still} hardly move in these {count} frames; their standard deviation is set to "
                f"{GLOBAL_STD_FLOOR}. Is the audio silent, or was it upsampled from a lower rate?"
            )
        self.cmvn = "running" if self.cmvn == "running" else "global"
        self.cmvn_mean, self.cmvn_std = mean.tolist(), std.clamp(min=GLOBAL_STD_FLOOR).tolist()
        return count


EntmaxAsrFeatureExtractor.register_for_auto_class()
# Not in the copy that travels with a checkpoint: the next checkpoint would then be read with the code of this one.
if __name__.startswith("hf_entmax_asr."):
    AutoFeatureExtractor.register(EntmaxAsrConfig, EntmaxAsrFeatureExtractor, exist_ok=True)

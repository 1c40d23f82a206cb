"""From waveforms to log-mel features: Kaldi's filterbank with mean and variance normalisation, or Whisper's.

Axes: B batch, T frames, N samples in a window, K frequencies of the spectrum, F mel bins.
"""

import functools
import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

from .configuration_entmax_asr import EntmaxAsrConfig
from .log_mel import HOP_SAMPLES, SAMPLING_RATE, WINDOW_SAMPLES, log_mel, log_mel_frames, scale_log_mel

logger = logging.get_logger(__name__)

PREEMPHASIS = 0.97
LOWEST_FREQUENCY_HZ = 20
INT16_SCALE = 32768.0  # Kaldi reads 16-bit samples as they are; here they are scaled to [-1, 1]
MEL_FLOOR = float(np.finfo(np.float32).eps)  # where Kaldi cuts off before the logarithm
HIGHEST_AMPLITUDE = 100.0  # resampling overshoots 1 by a little; 16-bit integers kept as floats go far beyond
STD_FLOOR = 1e-5  # a bin that never moves in an utterance becomes 0, not 0 / 0
GLOBAL_STD_FLOOR = 0.1  # a bin that hardly moves in the training data must not be amplified without bound elsewhere
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


class EntmaxAsrFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel features as Kaldi computes them (dither 0, whole windows only), then normalised; or as Whisper does.

    Args:
        kind: "kaldi" or "whisper". Whisper's are scaled by each recording's maximum and fixed in all but
            ``feature_size`` (80, or 128 for large-v3): 16 kHz, a hop of 10 ms, windows of 25 ms, ``cmvn`` "none".
        min_seconds: a shorter recording is followed by silence up to that length, which counts as real: 30 is what
            Whisper itself does. 0: every recording has its own length.
        feature_size: number of mel bins F, at least 3.
        sampling_rate: samples per second of the audio. Audio at another rate is refused, never resampled here.
        hop_ms: time from one frame to the next.
        window_ms: length of the Povey window; not shorter than ``hop_ms``.
        cmvn: "utterance" subtracts each recording's own mean per bin and divides by its own standard deviation, over
            its real frames; "global" does the same with stored statistics (see `fit_global_cmvn`), as streaming needs;
            "none" leaves the logarithms as they are.
        cmvn_mean, cmvn_std: the stored statistics, F numbers each. They are saved with the extractor.
        padding_value: what padded frames hold, after normalisation; 0 is the mean.

    Raises:
        ValueError: a setting is out of range; the message names it, its value and the limit.

    Audio is floats in [-1, 1], or 16-bit integers, which are divided by 32,768. A recording shorter than one window is
    filled up with silence and gives one frame, because the last piece of a long recording that was cut up may be that
    short. Stereo is refused: mix it down with ``audio.mean(axis=...)``.
    """

    model_input_names = ["input_features", "attention_mask"]  # noqa: RUF012 (declared so by transformers)

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
        **kwargs: Any,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.kind = kind
        self.min_seconds = min_seconds
        self.hop_ms = hop_ms
        self.window_ms = window_ms
        self.cmvn = cmvn
        self.cmvn_mean = None if cmvn_mean is None else [float(value) for value in cmvn_mean]
        self.cmvn_std = None if cmvn_std is None else [float(value) for value in cmvn_std]
        self._validate()

    def _validate(self) -> None:
        for name in ("feature_size", "sampling_rate"):
            if not isinstance(getattr(self, name), numbers.Integral):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a whole number.")
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
        if self.padding_side != "right":
            raise ValueError(f"padding_side is {self.padding_side!r}; the model reads time from the left: use 'right'.")
        if not math.isfinite(self.padding_value):
            raise ValueError(f"padding_value is {self.padding_value}; it must be a finite number.")
        if not (math.isfinite(self.min_seconds) and self.min_seconds >= 0):
            raise ValueError(f"min_seconds is {self.min_seconds}; it must be a finite number, 0 or more.")
        match self.kind:
            case "kaldi":
                _window_and_filters(self.feature_size, self.sampling_rate, self.window_samples)
            case "whisper":
                given = (self.sampling_rate, self.hop_samples, self.window_samples, self.cmvn)
                if given != (SAMPLING_RATE, HOP_SAMPLES, WINDOW_SAMPLES, "none"):
                    raise ValueError(
                        f"kind 'whisper' needs a sampling_rate of {SAMPLING_RATE} Hz, a hop_ms of 10, a window_ms of 25 "
                        f"and cmvn 'none'; got {self.sampling_rate} Hz, {self.hop_ms}, {self.window_ms}, {self.cmvn!r}."
                    )
            case _:
                raise ValueError(f"kind is {self.kind!r}; use 'kaldi' or 'whisper'.")
        if self.cmvn not in ("utterance", "global", "none"):
            raise ValueError(f"cmvn is {self.cmvn!r}; use 'utterance', 'global' or 'none'.")
        if (self.cmvn_mean is None) != (self.cmvn_std is None):
            raise ValueError("cmvn_mean and cmvn_std belong together: give both or neither.")
        for name, values in (("cmvn_mean", self.cmvn_mean), ("cmvn_std", self.cmvn_std)):
            if values is not None and (len(values) != self.feature_size or not all(map(math.isfinite, values))):
                raise ValueError(f"{name} must be {self.feature_size} finite numbers, one a mel bin; got {values}.")
        if self.cmvn_std is not None and min(self.cmvn_std) <= 0:
            raise ValueError(f"cmvn_std must be positive; its smallest value is {min(self.cmvn_std)}.")

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next, rounded down as in Kaldi."""
        return int(self.sampling_rate * self.hop_ms / 1000)

    @property
    def window_samples(self) -> int:
        """Samples in a window (N), rounded down as in Kaldi."""
        return int(self.sampling_rate * self.window_ms / 1000)

    def num_frames(self, num_samples: int) -> int:
        """The number of frames T that a recording of ``num_samples`` gives; at least 1."""
        num_samples = max(num_samples, self._least_samples())
        if self.kind == "whisper":
            return log_mel_frames(num_samples)
        return 1 + max(0, num_samples - self.window_samples) // self.hop_samples

    def _least_samples(self) -> int:
        return round(self.min_seconds * self.sampling_rate)

    def __call__(
        self,
        raw_speech: Any,
        padding: Any = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: Any = None,
        sampling_rate: int | None = None,
        return_attention_mask: bool | None = None,
    ) -> BatchFeature:
        """Features of one recording or of a batch.

        Args:
            raw_speech: one recording, or a list of recordings of any lengths, or a 2-D array (B, samples). A recording
                is a 1-D NumPy array, torch tensor or list of numbers (see the class for the scale).
            padding: True or "longest", "max_length" (with ``max_length``), or False.
            max_length: in frames; recordings longer than that are cut only if ``truncation`` is set, and then before
                normalisation, so that what is cut away leaves no trace.
            truncation, pad_to_multiple_of, return_tensors, return_attention_mask: as in SequenceFeatureExtractor.
            sampling_rate: of ``raw_speech``. Give it always: a wrong rate is then an error, not a wrong transcript.

        Returns:
            input_features (B, T, F) float32 and attention_mask (B, T), 1 where a frame is real. A recording gives the
            same frames in a batch as alone, bit for bit.

        Raises:
            ValueError: wrong sampling rate; audio that is empty, not finite, stereo, or not scaled to [-1, 1].
            TypeError: something else than samples, such as a file name.
        """
        self._check_sampling_rate(sampling_rate)
        features = []
        for waveform in self._waveforms(raw_speech):
            raw = BatchFeature({"input_features": self.log_mel(waveform)})
            kept = self._truncate(raw, max_length, pad_to_multiple_of, truncation)["input_features"]
            features.append(self.normalize(kept).numpy())
        return self.pad(
            BatchFeature({"input_features": features}),
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    @torch.no_grad()
    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """The filterbank before normalisation: (samples,) float32 in [-1, 1] on the CPU -> (T, F) float32.

        Kaldi's is computed in float64. Kaldi itself computes in float32, so the two agree within 1e-3 except where a bin lies more than
        about 80 dB below the strongest bin of its frame; there Kaldi's own rounding reaches 3e-2.
        """
        silence = self._least_samples() - waveform.shape[0]
        if silence > 0:
            waveform = torch.nn.functional.pad(waveform, (0, silence))
        if self.kind == "whisper":
            return log_mel(waveform, self.feature_size, mirror_end=self.min_seconds > 0)
        window, filters = _window_and_filters(self.feature_size, self.sampling_rate, self.window_samples)
        missing = self.window_samples - waveform.shape[0]
        if missing > 0:
            waveform = torch.nn.functional.pad(waveform, (0, missing))
        frames = waveform.unfold(0, self.window_samples, self.hop_samples)  # (T, N), a view
        features = waveform.new_empty(frames.shape[0], self.feature_size)  # (T, F)
        blocks = zip(frames.split(FRAMES_PER_BLOCK), features.split(FRAMES_PER_BLOCK), strict=True)
        for block, out in blocks:
            block = block.double() * INT16_SCALE
            block -= block.mean(dim=1, keepdim=True)
            before = torch.cat([block[:, :1], block[:, :-1]], dim=1)  # the first sample counts as its own predecessor
            spectrum = torch.fft.rfft((block - PREEMPHASIS * before) * window, n=_fft_size(self.window_samples))
            power = spectrum.real.square() + spectrum.imag.square()  # (T, K)
            out.copy_((power @ filters).clamp_(min=MEL_FLOOR).log_())
        return features

    @torch.no_grad()
    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Mean and variance normalisation (``cmvn``) of one recording's real frames: (T, F) -> (T, F) float32.

        Raises:
            ValueError: ``cmvn`` is "global" and no statistics are stored.
        """
        if self.kind == "whisper":
            return scale_log_mel(features)
        if self.cmvn == "none":
            return features
        if self.cmvn == "global":
            if self.cmvn_mean is None or self.cmvn_std is None:
                raise ValueError("cmvn is 'global' but there are no statistics yet: call fit_global_cmvn(waveforms).")
            mean, std = torch.tensor(self.cmvn_mean), torch.tensor(self.cmvn_std)
        else:
            # float64, so that a bin which never moves has a variance of exactly 0.
            std, mean = torch.std_mean(features.double(), dim=0, correction=0)
        return ((features - mean) / std.clamp(min=STD_FLOOR)).float()

    def fit_global_cmvn(self, waveforms: Iterable[Any], sampling_rate: int | None = None) -> int:
        """Measure the mean and standard deviation of every mel bin over all frames, store them, set cmvn to "global".

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
            features = self.log_mel(self._waveform(item, index)).double()
            count += features.shape[0]
            total += features.sum(dim=0)
            total_square += features.square().sum(dim=0)
        if count == 0:
            raise ValueError("fit_global_cmvn was given no recordings.")
        mean = total / count
        std = (total_square / count - mean.square()).clamp(min=0).sqrt()
        still = torch.nonzero(std < GLOBAL_STD_FLOOR).flatten().tolist()
        if still:
            logger.warning(
                f"Mel bins {still} hardly move in these {count} frames; their standard deviation is set to "
                f"{GLOBAL_STD_FLOOR}. Is the audio silent, or was it upsampled from a lower rate?"
            )
        self.cmvn, self.cmvn_mean, self.cmvn_std = "global", mean.tolist(), std.clamp(min=GLOBAL_STD_FLOOR).tolist()
        return count

    def _check_sampling_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            logger.warning_once(
                f"{type(self).__name__} was not told the sampling_rate of the audio and takes it to be "
                f"{self.sampling_rate} Hz. At another rate the features are wrong: pass sampling_rate=..."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"The audio has a sampling rate of {sampling_rate} Hz, this extractor needs {self.sampling_rate} Hz. "
                "Resample the audio first."
            )

    def _waveforms(self, raw_speech: Any) -> list[torch.Tensor]:
        """One recording or a batch of them -> a list of checked float32 waveforms (samples,)."""
        if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
            if raw_speech.ndim == 1:
                return [self._waveform(raw_speech, 0)]
            if raw_speech.ndim != 2 or raw_speech.shape[1] < min(raw_speech.shape[0], self.window_samples):
                raise ValueError(
                    f"Audio of shape {tuple(raw_speech.shape)} is neither one recording (samples,) nor a batch "
                    "(recordings, samples). If these are channels, mix them down: audio.mean(axis=-1)."
                )
        elif not isinstance(raw_speech, (list, tuple)):
            raise TypeError(_not_samples(raw_speech))
        if len(raw_speech) == 0:
            raise ValueError("There is no audio: raw_speech is empty.")
        if isinstance(raw_speech[0], numbers.Number):
            return [self._waveform(raw_speech, 0)]
        return [self._waveform(item, index) for index, item in enumerate(raw_speech)]

    def _waveform(self, item: Any, index: int) -> torch.Tensor:
        """One recording, checked: a fresh float32 tensor (samples,) on the CPU, in [-1, 1]."""
        if isinstance(item, torch.Tensor):
            item = item.detach().cpu()
            item = item.float().numpy() if item.is_floating_point() else item.numpy()
        elif not isinstance(item, (np.ndarray, list, tuple)):
            raise TypeError(f"Recording {index}: {_not_samples(item)}")
        samples = np.asarray(item)
        if samples.ndim == 2 and 1 in samples.shape:  # one channel, written out
            samples = samples.reshape(-1)
        if samples.ndim != 1:
            raise ValueError(
                f"Recording {index} has shape {samples.shape}; it must be mono, (samples,). Mix stereo down first: "
                "audio.mean(axis=-1) for (samples, channels), audio.mean(axis=0) for (channels, samples)."
            )
        if samples.size == 0:
            raise ValueError(f"Recording {index} is empty: it holds no samples.")
        if samples.dtype == np.int16:
            return torch.from_numpy(samples.astype(np.float32) / np.float32(INT16_SCALE))
        if samples.dtype.kind != "f":
            raise ValueError(
                f"Recording {index} holds values of type {samples.dtype}; give floats in [-1, 1] or 16-bit integers."
            )
        peak = np.abs(samples).max()
        if not np.isfinite(peak):
            first = np.flatnonzero(~np.isfinite(samples))[0]
            raise ValueError(f"Recording {index} is not finite: sample {first} is {samples[first]}.")
        if peak > HIGHEST_AMPLITUDE:
            raise ValueError(
                f"Recording {index} reaches {peak:g}; samples must be scaled to [-1, 1]. Divide 16-bit audio by 32768."
            )
        return torch.from_numpy(samples.astype(np.float32))  # a copy: the caller's array may be read-only


def _not_samples(item: Any) -> str:
    return (
        f"expected the samples of a recording (a NumPy array, torch tensor or list of numbers), got "
        f"{type(item).__name__}. Decode files first, for example with soundfile.read."
    )


EntmaxAsrFeatureExtractor.register_for_auto_class()
# Not in the copy that travels with a checkpoint: the next checkpoint would then be read with the code of this one.
if __name__.startswith("hf_entmax_asr."):
    AutoFeatureExtractor.register(EntmaxAsrConfig, EntmaxAsrFeatureExtractor, exist_ok=True)

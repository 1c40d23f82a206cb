"""What the package asks of whatever turns waveforms into features, and the checks of waveforms that all of them share.

Axes: B batch, T frames, F mel bins.
"""

import numbers
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

logger = logging.get_logger(__name__)

INT16_SCALE = 32768.0
HIGHEST_AMPLITUDE = 100.0  # resampling overshoots 1 by a little; 16-bit integers kept as floats go far beyond

Counts = TypeVar("Counts", int, np.ndarray)


class SpeechFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms to features: the interface that models, training and recognition rely on, and nothing else of it.

    Attributes:
        sampling_rate: samples per second of the audio. Audio at another rate is refused, never resampled here.
        feature_size: mel bins F.
        hop_samples: samples from one frame to the next.
        shortest_samples: what a recording should have at least; a shorter one is filled up with silence.
        frame_settings: names of the attributes that decide what a frame holds before normalisation.
        needs_statistics: whether it normalises by statistics of the training data.

    A subclass says how many frames so many samples give (`num_frames`), the reverse of it (`longest_samples`), how a
    frame is computed (`log_mel`) and normalised (`normalize`).
    """

    model_input_names = ["input_features", "attention_mask"]  # noqa: RUF012 (declared so by transformers)
    sampling_rate: int
    feature_size: int
    frame_settings: tuple[str, ...] = ("feature_size", "sampling_rate")

    @property
    def needs_statistics(self) -> bool:
        return False

    @property
    def hop_samples(self) -> int:
        raise NotImplementedError

    @property
    def shortest_samples(self) -> int:
        raise NotImplementedError

    def num_frames(self, num_samples: Counts) -> Counts:
        """The frames T that a recording of ``num_samples`` gives, at least 1; of a number, or of an array of them."""
        raise NotImplementedError

    def longest_samples(self, frames: Counts) -> Counts:
        """The most samples that give so many frames; of a number, or of an array of them."""
        raise NotImplementedError

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """The features before normalisation: (samples,) float32 in [-1, 1] on the CPU -> (T, F) float32."""
        raise NotImplementedError

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """What is left to do once a recording's frames are known: (T, F) -> (T, F) float32."""
        raise NotImplementedError

    @property
    def seconds_per_frame(self) -> float:
        """From one frame to the next."""
        return self.hop_samples / self.sampling_rate

    def frames_at(self, frames: np.ndarray, speeds: np.ndarray | float) -> np.ndarray:
        """The most frames that recordings of so many frames have when they are played at these speeds: so
        many frames leave up to a hop of samples over."""
        played = self.num_frames(np.ceil(self.longest_samples(frames) / speeds).astype(int))
        return np.where(np.equal(speeds, 1), frames, played)

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
        device: Any = None,
    ) -> BatchFeature:
        """Features of one recording or of a batch.

        Args:
            raw_speech: one recording, or a list of recordings of any lengths, or a 2-D array (B, samples). A recording
                is a 1-D NumPy array, torch tensor or list of numbers (see the class for the scale), or a mapping with
                it as "array" or "raw" and its "sampling_rate", as datasets and pipelines have it.
            padding: True or "longest", "max_length" (with ``max_length``), or False.
            max_length: in frames; recordings longer than that are cut only if ``truncation`` is set, and then before
                normalisation, so that what is cut away leaves no trace.
            truncation, pad_to_multiple_of, return_tensors, return_attention_mask: as in SequenceFeatureExtractor.
            device: where the tensors go, which are computed on the CPU; with ``return_tensors`` "pt".
            sampling_rate: of ``raw_speech``. Give it always: a wrong rate is then an error, not a wrong transcript.

        Returns:
            input_features (B, T, F) float32 and attention_mask (B, T), 1 where a frame is real. A recording gives the
            same frames in a batch as alone, bit for bit.

        Raises:
            ValueError: wrong sampling rate; audio that is empty, not finite, stereo, or not scaled to [-1, 1].
            TypeError: something else than samples, such as a file name.
        """
        raw_speech, sampling_rate = _unwrapped(raw_speech, sampling_rate)
        self._check_sampling_rate(sampling_rate)
        features = []
        for waveform in self._waveforms(raw_speech):
            raw = BatchFeature({"input_features": self.log_mel(waveform)})
            kept = self._truncate(raw, max_length, pad_to_multiple_of, truncation)["input_features"]
            features.append(self.normalize(kept).numpy())
        padded = self.pad(
            BatchFeature({"input_features": features}),
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )
        return padded if device is None else padded.to(device)

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
            if raw_speech.ndim != 2 or raw_speech.shape[1] < min(raw_speech.shape[0], self.shortest_samples):
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


def _unwrapped(raw_speech: Any, sampling_rate: int | None) -> tuple[Any, int | None]:
    """Samples out of {"array" or "raw", "sampling_rate"}, or a list of such, and the rate that all of them have."""
    items = raw_speech if isinstance(raw_speech, (list, tuple)) else [raw_speech]
    if not items or not all(isinstance(item, dict) and ("array" in item or "raw" in item) for item in items):
        return raw_speech, sampling_rate
    rates = {item.get("sampling_rate", sampling_rate) for item in items} | ({sampling_rate} - {None})
    if len(rates) > 1:
        raise ValueError(f"The audio has sampling rates of {sorted(map(str, rates))} Hz: resample it to one of them.")
    samples = [item["array"] if "array" in item else item["raw"] for item in items]
    return (samples if isinstance(raw_speech, (list, tuple)) else samples[0]), rates.pop()


def _not_samples(item: Any) -> str:
    return (
        f"expected the samples of a recording (a NumPy array, torch tensor or list of numbers), got "
        f"{type(item).__name__}. Decode files first, for example with soundfile.read."
    )

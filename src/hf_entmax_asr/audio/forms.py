"""The forms in which people hand audio over, as one: a mono waveform at a sampling rate."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_entmax_asr.audio.reading import read_audio
from hf_entmax_asr.audio.resampling import resample

INT16_SCALE = np.float32(32768)


def waveform_of(item: Any, sampling_rate: int) -> np.ndarray:
    """A float32 waveform (samples,) at `sampling_rate` (Hz) of

    - a path, the bytes of a file, or a file that is open;
    - `{"path", "bytes"}`, as a datasets `Audio(decode=False)` column has it, or its decoder (`get_all_samples`);
    - `{"array" or "raw", "sampling_rate"}`, as a decoded column and pipelines have it, and is resampled;
    - an array, torch tensor or list of samples, taken to be at `sampling_rate`: floats in [-1, 1] or 16-bit integers,
      of shape (samples,), (channels, samples) or (samples, channels); channels are mixed by their mean.

    Raises:
        ValueError: none of these, or audio that `read_audio` refuses; TypeError: something else altogether.
    """
    if isinstance(item, (str, os.PathLike)):
        return read_audio(Path(item), sampling_rate)
    if isinstance(item, (bytes, bytearray)):
        return read_audio({"path": None, "bytes": bytes(item)}, sampling_rate)
    if hasattr(item, "get_all_samples"):  # of torchcodec, which datasets decodes with
        samples = item.get_all_samples()
        return waveform_of({"array": samples.data, "sampling_rate": samples.sample_rate}, sampling_rate)
    if hasattr(item, "read") and not isinstance(item, Mapping):
        return read_audio({"path": getattr(item, "name", None), "bytes": item.read()}, sampling_rate)
    if not isinstance(item, Mapping):
        return _mono(item)
    samples = next((item[name] for name in ("array", "raw") if item.get(name) is not None), None)
    if samples is None:
        return read_audio(item, sampling_rate)
    if item.get("sampling_rate") is None:
        raise ValueError("audio given as {'array', 'sampling_rate'} lacks its sampling_rate")
    return resample(_mono(samples), int(item["sampling_rate"]), sampling_rate)


def _mono(samples: Any) -> np.ndarray:
    if hasattr(samples, "detach"):
        samples = samples.detach().cpu().float().numpy() if samples.is_floating_point() else samples.cpu().numpy()
    array = np.asarray(samples)
    if array.dtype == np.int16:
        array = array.astype(np.float32) / INT16_SCALE
    if array.dtype.kind != "f" or array.ndim not in (1, 2):
        raise TypeError(
            f"audio of type {type(samples).__name__}, values {array.dtype} and shape {array.shape} is none that is "
            "known: give a path, or floats in [-1, 1] or 16-bit integers of shape (samples,)"
        )
    if array.ndim == 2:
        array = array.mean(axis=int(array.shape[0] > array.shape[1]))  # there are more samples than channels
    return array.astype(np.float32, copy=False)

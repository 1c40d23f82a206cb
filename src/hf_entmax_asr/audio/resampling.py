"""One sampling rate to another, by a windowed sinc."""

import math
from functools import lru_cache

import numpy as np


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample a waveform (samples,) from one rate to another (Hz): ceil(samples * to / from) samples, float32.

    Each new sample is a Kaiser-windowed sinc sum over the old ones (Smith, "Digital audio resampling", CCRMA 2002).
    The pass band ends at 94 % of the lower Nyquist frequency and aliases stay about 90 dB below; samples beyond the
    ends count as 0.
    Raises ValueError for rates that are not positive.
    """
    if from_rate <= 0 or to_rate <= 0:
        raise ValueError(f"sampling rates must be positive, got {from_rate} and {to_rate} Hz")
    waveform = np.asarray(waveform, np.float32)
    if from_rate == to_rate:
        return waveform
    import torch

    common = math.gcd(from_rate, to_rate)
    old, new = from_rate // common, to_rate // common  # every block of `old` samples becomes `new` samples
    kernels = torch.from_numpy(_sinc_kernels(old, new))  # (new, 1, taps)
    reach = (kernels.shape[-1] - old) // 2
    padded = torch.nn.functional.pad(torch.tensor(waveform), (reach, reach + old))
    blocks = torch.nn.functional.conv1d(padded[None, None], kernels, stride=old)  # (1, new, blocks)
    return blocks[0].T.reshape(-1)[: -(-len(waveform) * new // old)].numpy()


@lru_cache(maxsize=8)
def _sinc_kernels(old: int, new: int) -> np.ndarray:
    """One low-pass kernel for each phase of the output: row p weighs the input around time p * old / new."""
    cutoff = 0.97 * min(1.0, new / old)  # of the input's Nyquist frequency; half of the transition band is 3 %
    half_width = 96 / min(1.0, new / old)  # in input samples
    reach = math.ceil(half_width)
    taps = np.arange(-reach, reach + old)
    distance = taps[None, :] - np.arange(new)[:, None] * old / new  # (new, taps), in input samples
    inside = np.clip(1 - (distance / half_width) ** 2, 0, None)
    window = np.i0(9.0 * np.sqrt(inside)) / np.i0(9.0) * (inside > 0)
    return (cutoff * np.sinc(cutoff * distance) * window).astype(np.float32)[:, None, :]

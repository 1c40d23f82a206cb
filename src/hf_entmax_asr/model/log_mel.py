"""Whisper's log-mel features as pure functions (Radford et al. 2022, arXiv 2212.04356, Sec. 2.2).

Axes: B batch, N samples, T frames, K frequencies of the spectrum, F mel bins.
"""

import functools

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from .speech_features import Counts

SAMPLING_RATE = 16_000
WINDOW_SAMPLES = 400  # 25 ms, Hann
HOP_SAMPLES = 160  # 10 ms
POWER_FLOOR = 1e-10  # before the logarithm
SAMPLES_PER_BLOCK = 30 * SAMPLING_RATE  # bounds the temporary spectrum, however long the recording


@functools.lru_cache(maxsize=4)
def mel_filters(num_mel_bins: int) -> Tensor:
    """Slaney's triangular filters (K, F) from 0 to 8,000 Hz, each of unit area."""
    filters = mel_filter_bank(
        num_frequency_bins=1 + WINDOW_SAMPLES // 2,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters.astype(np.float32))


def log_mel_frames(num_samples: Counts) -> Counts:
    """Frames T of so many samples, or of an array of them: one for each 10 ms begun, at least 1."""
    hops = -(-num_samples // HOP_SAMPLES)
    return hops + (hops < 1)


def log_mel(waveform: Tensor, num_mel_bins: int = 80, mirror_end: bool = False) -> Tensor:
    """log10 of the mel spectrum before it is scaled: (N,) float32 in [-1, 1] at 16 kHz -> (T, F) float32.

    Frame t is centred at sample 160 t. Before the recording stands its own beginning, mirrored, behind it silence, as
    where Whisper pads to 30 seconds: so a recording has the same frames alone, in a batch, and followed by silence.
    With `mirror_end` its end stands there mirrored too, as Whisper does behind its window of 30 seconds.
    """
    frames = log_mel_frames(waveform.shape[0])
    half = WINDOW_SAMPLES // 2
    silence = max(frames * HOP_SAMPLES, half + 1) - waveform.shape[0]
    padded = torch.nn.functional.pad(waveform.float(), (0, silence))
    # Mirrored without the sample at the border, as torch.stft does.
    end = padded[-half - 1 : -1].flip(0) if mirror_end else padded.new_zeros(half)
    padded = torch.cat([padded[1 : half + 1].flip(0), padded, end])
    return windows_log_mel(padded[: (frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES], num_mel_bins)


def windows_log_mel(padded: Tensor, num_mel_bins: int = 80) -> Tensor:
    """log10 of the mel spectrum of every whole window of a piece of audio: (N,) float32 -> (T, F) float32."""
    frames = 1 + (padded.shape[0] - WINDOW_SAMPLES) // HOP_SAMPLES
    window, filters = torch.hann_window(WINDOW_SAMPLES), mel_filters(num_mel_bins)
    features = padded.new_empty(frames, num_mel_bins)
    per_block = SAMPLES_PER_BLOCK // HOP_SAMPLES
    for first in range(0, frames, per_block):
        count = min(per_block, frames - first)
        start = first * HOP_SAMPLES
        piece = padded[start : start + (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES]
        spectrum = torch.stft(
            piece, WINDOW_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True
        )  # (K, count)
        power = spectrum.real.square() + spectrum.imag.square()
        features[first : first + count] = (power.T @ filters).clamp(min=POWER_FLOOR).log10()
    return features

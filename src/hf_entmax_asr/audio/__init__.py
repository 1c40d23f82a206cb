"""Audio files: reading, durations, sampling rates."""

from hf_entmax_asr.audio.blocks import announced_seconds, audio_blocks
from hf_entmax_asr.audio.forms import waveform_of
from hf_entmax_asr.audio.reading import AUDIO_SUFFIXES, audio_duration, read_audio
from hf_entmax_asr.audio.resampling import BlockResampler, resample, resample_by_ratio

__all__ = [
    "AUDIO_SUFFIXES",
    "BlockResampler",
    "announced_seconds",
    "audio_blocks",
    "audio_duration",
    "read_audio",
    "resample",
    "resample_by_ratio",
    "waveform_of",
]

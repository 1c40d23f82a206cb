"""Starting from pretrained models: a recogniser out of any Whisper, its attention made sparse by calibration."""

from hf_entmax_asr.pretrained.calibration import CalibratedHead, sparsify
from hf_entmax_asr.pretrained.card import converted_card
from hf_entmax_asr.pretrained.whisper import NotWhisperError, convert_whisper

__all__ = ["CalibratedHead", "NotWhisperError", "convert_whisper", "converted_card", "sparsify"]

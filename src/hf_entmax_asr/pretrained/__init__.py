"""Starting from pretrained models: `convert_whisper` makes a recogniser of any Whisper checkpoint."""

from hf_entmax_asr.pretrained.card import converted_card
from hf_entmax_asr.pretrained.whisper import NotWhisperError, convert_whisper

__all__ = ["NotWhisperError", "convert_whisper", "converted_card"]

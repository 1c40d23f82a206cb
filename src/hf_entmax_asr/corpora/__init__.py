"""Corpora as datasets: folders with a metadata.csv, and sentences composed of recorded words."""

from hf_entmax_asr.corpora.folder import load_folder, read_audio, resample
from hf_entmax_asr.corpora.prompts import Composition, WordTime, compose, read_word_times, write_compositions

__all__ = [
    "Composition",
    "WordTime",
    "compose",
    "load_folder",
    "read_audio",
    "read_word_times",
    "resample",
    "write_compositions",
]

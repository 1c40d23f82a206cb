"""A recogniser out of a folder or a Hub repository."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from hf_entmax_asr.model.modeling_entmax_asr import EntmaxAsrForConditionalGeneration
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, incomplete or of another run."""


def load_recogniser(
    checkpoint: str | Path, device: str | None = None
) -> tuple[EntmaxAsrForConditionalGeneration, EntmaxAsrProcessor]:
    """Model (in evaluation mode, on `device`, or the best there is) and processor of a folder or Hub repository.

    Raises:
        CheckpointError: there is none, or it is not a checkpoint of this package.
    """
    if not Path(checkpoint).is_dir() and str(checkpoint).count("/") != 1:
        raise CheckpointError(f"there is no folder {checkpoint}; a Hub repository would be named owner/name")
    try:
        processor = AutoProcessor.from_pretrained(checkpoint)
        model: Any = EntmaxAsrForConditionalGeneration.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        where = "" if Path(checkpoint).is_dir() else " (there is no such folder; as a Hub repository:)"
        raise CheckpointError(f"{checkpoint} is not a checkpoint of hf_entmax_asr{where} {error}") from error
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor

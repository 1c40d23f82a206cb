"""Speech recognition with adaptively sparse (α-entmax) and monotonic attention, for Hugging Face Transformers.

Importing this package registers its classes with transformers' Auto classes; that is its only side effect.
"""

from typing import TYPE_CHECKING, Any

from .model.alignment import expected_alignment, expected_soft_attention, hard_alignment
from .model.configuration_entmax_asr import EntmaxAsrConfig
from .model.configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from .model.entmax import entmax, entmax15, softmax, sparsemax, topk_softmax
from .model.entmax_attention import entmax_attention
from .model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from .model.modeling_entmax_asr import EntmaxAsrForConditionalGeneration, EntmaxAsrModel
from .model.modeling_entmax_asr_baselines import (
    EntmaxAsrBaselineForConditionalGeneration,
    EntmaxAsrBaselineForCTC,
    EntmaxAsrBaselineForTransducer,
)
from .model.processing_entmax_asr import EntmaxAsrProcessor

if TYPE_CHECKING:
    from .audio import read_audio
    from .model.pipeline_entmax_asr import EntmaxAsrPipeline
    from .recognition import Transcript, load_recogniser, transcribe_files

__version__ = "0.1.0"

__all__ = [
    "EntmaxAsrBaselineConfig",
    "EntmaxAsrBaselineForCTC",
    "EntmaxAsrBaselineForConditionalGeneration",
    "EntmaxAsrBaselineForTransducer",
    "EntmaxAsrConfig",
    "EntmaxAsrFeatureExtractor",
    "EntmaxAsrForConditionalGeneration",
    "EntmaxAsrModel",
    "EntmaxAsrPipeline",
    "EntmaxAsrProcessor",
    "Transcript",
    "entmax",
    "entmax15",
    "entmax_attention",
    "expected_alignment",
    "expected_soft_attention",
    "hard_alignment",
    "load_recogniser",
    "read_audio",
    "softmax",
    "sparsemax",
    "topk_softmax",
    "transcribe_files",
]

_OF_RECOGNITION = ("Transcript", "load_recogniser", "transcribe_files")


def __getattr__(name: str) -> Any:
    # Loaded when asked for: model files import this package for its kernels alone, and need neither audio nor metrics.
    if name in _OF_RECOGNITION:
        from . import recognition

        return getattr(recognition, name)
    if name == "EntmaxAsrPipeline":  # transformers takes a second to import its pipelines
        from .model.pipeline_entmax_asr import EntmaxAsrPipeline

        return EntmaxAsrPipeline
    if name == "read_audio":
        from .audio import read_audio

        return read_audio
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

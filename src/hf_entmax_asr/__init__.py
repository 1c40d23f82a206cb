"""Speech recognition with adaptively sparse (α-entmax) and monotonic attention, for Hugging Face Transformers.

Importing this package registers its classes with transformers' Auto classes; that is its only side effect.
"""

from .model.alignment import expected_alignment, expected_soft_attention, hard_alignment
from .model.configuration_entmax_asr import EntmaxAsrConfig
from .model.entmax import entmax, entmax15, softmax, sparsemax, topk_softmax
from .model.entmax_attention import entmax_attention
from .model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from .model.modeling_entmax_asr import EntmaxAsrForConditionalGeneration, EntmaxAsrModel
from .model.processing_entmax_asr import EntmaxAsrProcessor

__version__ = "0.1.0"

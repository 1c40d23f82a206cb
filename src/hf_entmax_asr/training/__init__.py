"""Training and evaluation by recipe. `train(load_recipe("recipe.yaml"), "output")` is the whole of it.

recipe -> preparation (data, processor, model) -> engine (the loop) -> checkpointing, reporting, evaluation
inspection: what attention does; run_analysis, analysis_callback: the same while a model is trained
surgery: smaller models out of trained ones, to be trained further
"""

from hf_entmax_asr.training.analysis_callback import AnalysisCallback
from hf_entmax_asr.training.checkpointing import CheckpointError, average_checkpoints
from hf_entmax_asr.training.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.training.engine import TrainingDiverged, TrainingResult, train
from hf_entmax_asr.training.evaluation import Scores, decoding_as, recognise, score_decodings
from hf_entmax_asr.training.inspection import analyze, save_analysis
from hf_entmax_asr.training.recipe import Recipe, RecipeError, load_recipe
from hf_entmax_asr.training.reporting import read_history
from hf_entmax_asr.training.seq2seq_trainer import HeadGateCallback, word_error_metrics
from hf_entmax_asr.training.surgery import gated_off, remove_heads, share_maps
from hf_entmax_asr.training.utterances import DataError

__all__ = [
    "AnalysisCallback",
    "CheckpointError",
    "DataError",
    "HeadGateCallback",
    "Recipe",
    "RecipeError",
    "Scores",
    "SpeechSeq2SeqCollator",
    "TrainingDiverged",
    "TrainingResult",
    "analyze",
    "average_checkpoints",
    "decoding_as",
    "gated_off",
    "load_recipe",
    "read_history",
    "recognise",
    "remove_heads",
    "save_analysis",
    "score_decodings",
    "share_maps",
    "train",
    "word_error_metrics",
]

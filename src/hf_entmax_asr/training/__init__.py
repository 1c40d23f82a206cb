"""Training by recipe. `train(load_recipe("recipe.yaml"), "output")` is the whole of it.

recipe -> preparation (data, processor, model) -> engine (the loop) -> checkpointing, reporting, scores
run_analysis, analysis_callback: what attention does, while a model is trained
"""

from hf_entmax_asr.training.analysis_callback import AnalysisCallback
from hf_entmax_asr.training.checkpointing import average_checkpoints
from hf_entmax_asr.training.engine import TrainingDiverged, TrainingResult, train
from hf_entmax_asr.training.recipe import Recipe, RecipeError, load_recipe
from hf_entmax_asr.training.reporting import read_history
from hf_entmax_asr.training.seq2seq_trainer import HeadGateCallback, word_error_metrics

__all__ = [
    "AnalysisCallback",
    "HeadGateCallback",
    "Recipe",
    "RecipeError",
    "TrainingDiverged",
    "TrainingResult",
    "average_checkpoints",
    "load_recipe",
    "read_history",
    "train",
    "word_error_metrics",
]

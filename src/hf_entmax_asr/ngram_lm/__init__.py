"""N-gram language models, to help the recogniser choose.

estimation  text -> ARPA file, by KenLM's lmplz or IRSTLM
scoring     ARPA file -> log probabilities, by KenLM (needs the extra `lm`)
spelling    how tokens spell words or characters, of pieces and of bytes
fusion      log probabilities -> the scores of `generate`
options     --lm and its companions of the programs in scripts/ -> a model with its language model
"""

from hf_entmax_asr.ngram_lm.estimation import train_ngram
from hf_entmax_asr.ngram_lm.fusion import FusedModel, LanguageModelFusion
from hf_entmax_asr.ngram_lm.options import (
    candidates_wanted,
    with_language_model,
)
from hf_entmax_asr.ngram_lm.scoring import LanguageModelError, NgramModel

__all__ = [
    "FusedModel",
    "LanguageModelError",
    "LanguageModelFusion",
    "NgramModel",
    "candidates_wanted",
    "train_ngram",
    "with_language_model",
]

"""N-gram language models, to help the recogniser choose.

estimation  text -> ARPA file, by KenLM's lmplz or IRSTLM
scoring     ARPA file -> log probabilities, by KenLM (needs the extra `lm`)
fusion      log probabilities -> the scores of `generate`
"""

from hf_entmax_asr.ngram_lm.estimation import train_ngram
from hf_entmax_asr.ngram_lm.fusion import FusedModel, LanguageModelFusion
from hf_entmax_asr.ngram_lm.scoring import LanguageModelError, NgramModel

__all__ = ["FusedModel", "LanguageModelError", "LanguageModelFusion", "NgramModel", "train_ngram"]

"""A language model as the options of a program describe it."""

import argparse
from typing import Any

from hf_entmax_asr.ngram_lm.fusion import FusedModel, LanguageModelFusion
from hf_entmax_asr.ngram_lm.scoring import NgramModel


def with_language_model(model: Any, processor: Any, arguments: argparse.Namespace) -> Any:
    """The recogniser, with the language model of the arguments where there is one; they have num_beams too, and where
    CTC can have its say ctc_weight.

    Raises:
        ImportError: KenLM is not installed.
        FileNotFoundError: there is no such file.
        LanguageModelError: it cannot be read or does not fit the recogniser.
    """
    if arguments.lm is None:
        return model
    language_model = NgramModel(arguments.lm, unit=arguments.lm_unit, unknown_words=arguments.unknown_words)
    fusion = LanguageModelFusion(
        language_model,
        processor.tokenizer,
        weight=arguments.lm_weight,
        insertion_bonus=arguments.insertion_bonus,
        candidates=candidates_wanted(model, arguments),
    )
    return FusedModel(model, fusion)


def candidates_wanted(model: Any, arguments: argparse.Namespace) -> int | None:
    """For `LanguageModelFusion`, by the num_beams and the ctc_weight of the arguments: CTC alone wants all tokens."""
    weight = getattr(arguments, "ctc_weight", None)
    weight = getattr(model.generation_config, "ctc_weight", None) if weight is None else weight
    return None if weight == 1 else 2 * arguments.num_beams

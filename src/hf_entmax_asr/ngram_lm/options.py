"""The options that every program with a language model takes."""

import argparse
from pathlib import Path
from typing import Any

from hf_entmax_asr.ngram_lm.fusion import FusedModel, LanguageModelFusion
from hf_entmax_asr.ngram_lm.scoring import UNITS, UNKNOWN_WORDS, NgramModel


def add_language_model_options(parser: argparse.ArgumentParser) -> None:
    """--lm, --lm-weight, --insertion-bonus, --lm-unit, --unknown-words."""
    parser.add_argument("--lm", type=Path, help="n-gram language model, an ARPA file (see scripts/train_lm.py)")
    parser.add_argument("--lm-weight", type=float, default=0.3, help="of its log probabilities (default: 0.3)")
    parser.add_argument("--insertion-bonus", type=float, default=0.0, help="for each word or character (default: 0)")
    add_reading_options(parser)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """--lm-unit, --unknown-words."""
    parser.add_argument("--lm-unit", choices=UNITS, help="of the language model (default: as its entries look)")
    parser.add_argument(
        "--unknown-words",
        type=int,
        default=UNKNOWN_WORDS,
        help="how many unknown words share the probability of <unk>; more make them less likely (default: 10 million)",
    )


def with_language_model(model: Any, processor: Any, arguments: argparse.Namespace) -> Any:
    """The recogniser, with the language model of the arguments where there is one; they have num_beams and ctc_weight
    too.

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
    weight = arguments.ctc_weight
    weight = getattr(model.generation_config, "ctc_weight", None) if weight is None else weight
    return None if weight == 1 else 2 * arguments.num_beams

"""What the options of several programs share.

The standard library alone: a program reads its options before it imports the package, and with it torch, which takes
seconds. A test holds these names and numbers against those of the package.
"""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

EXPORT_FORMATS = ("onnx", "torch")
TRANSCRIPT_FORMS = ("txt", "json", "srt", "vtt", "ctm")
LANGUAGE_MODEL_UNITS = ("word", "character")
UNKNOWN_WORDS = 10_000_000
DECODING = ("decoding", "firing_rule", "firing_probability", "ctc_weight")
GENERAL_TEXT_RULES = ("none", "basic", "english")


def corpora() -> tuple[str, ...]:
    """The names of the corpora."""
    registry = sys.modules.get("hf_entmax_asr.corpora.registry")
    return corpora_in_text() if registry is None else tuple(registry.CORPORA)


def corpora_in_text() -> tuple[str, ...]:
    """The names of the corpora by the text of their registry: each is called like its module."""
    package = importlib.util.find_spec("hf_entmax_asr")  # looks for it and imports nothing
    if package is None or package.origin is None:
        raise SystemExit("the package is not installed: pip install -e . in the folder of the repository")
    registry = Path(package.origin).parent / "corpora" / "registry.py"
    return tuple(re.findall(r'^    "hf_entmax_asr\.corpora\.(\w+)",$', registry.read_text(encoding="utf-8"), re.M))


def text_rules() -> tuple[str, ...]:
    """The names of the rules that texts can be scored by; not every corpus has one of its own."""
    return tuple(dict.fromkeys((*GENERAL_TEXT_RULES, *corpora())))


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """What `recognition.decoding_as` takes: `DECODING`."""
    parser.add_argument("--decoding", choices=("hard", "soft"), help="of monotonic heads (default: the checkpoint's)")
    parser.add_argument(
        "--firing-rule", choices=("threshold", "cumulative"), help="when a hard head stops (default: the checkpoint's)"
    )
    parser.add_argument("--firing-probability", type=float, help="at which it does (default: the checkpoint's)")
    parser.add_argument("--ctc-weight", type=float, help="0: decoder alone, 1: CTC alone (default: the checkpoint's)")


def add_language_model_options(parser: argparse.ArgumentParser) -> None:
    """--lm, --lm-weight, --insertion-bonus, --lm-unit, --unknown-words."""
    parser.add_argument("--lm", type=Path, help="n-gram language model, an ARPA file (see scripts/train_lm.py)")
    parser.add_argument("--lm-weight", type=float, default=0.3, help="of its log probabilities (default: 0.3)")
    parser.add_argument("--insertion-bonus", type=float, default=0.0, help="for each word or character (default: 0)")
    add_reading_options(parser)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """--lm-unit, --unknown-words."""
    parser.add_argument(
        "--lm-unit", choices=LANGUAGE_MODEL_UNITS, help="of the language model (default: as its entries look)"
    )
    parser.add_argument(
        "--unknown-words",
        type=int,
        default=UNKNOWN_WORDS,
        help="how many unknown words share the probability of <unk>; more make them less likely (default: 10 million)",
    )

"""Named rules that make two spellings of the same words equal before they are scored.

A score depends on who normalised the texts, so a normalised score is always given with the name of its rule, next to
the score of the texts as they are. References and hypotheses go through the same rule.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

Normalizer = Callable[[str], str]

# Kaldi's scoring filter for WSJ: marks that are not words, two signs, and four slips of the reference transcripts.
WSJ_MARKS = re.compile("<NOISE>|<SPOKEN_NOISE>|<UNK>|[:*]")
WSJ_SLIPS = {
    "-HOLDER": "HOLDER",
    "COMPAIGN": "CAMPAIGN",
    "APPROACHES-": "APPROACHES",
    "RESEACHERS": "RESEARCHERS",
}

# Full-width letters stand 0xFEE0 above their ASCII twins.
FULL_WIDTH = {code: code - 0xFEE0 for a, z in ("ＡＺ", "ａｚ") for code in range(ord(a), ord(z) + 1)}


@dataclass(frozen=True)
class TextRule:
    """What a rule does, in one line for a report, and where it comes from."""

    description: str
    source: str


RULES: Mapping[str, TextRule] = {
    "none": TextRule("the texts as they are", "-"),
    "basic": TextRule(
        "lower case, no punctuation or symbols, nothing in brackets; any language",
        "BasicTextNormalizer of transformers (Radford et al. 2022, arXiv 2212.04356, appendix C)",
    ),
    "english": TextRule(
        "as basic, and contractions, numbers and titles in one form, no fillers; British spellings need a table",
        "EnglishTextNormalizer of transformers (Radford et al. 2022, arXiv 2212.04356, appendix C)",
    ),
    "wsj": TextRule(
        "no <NOISE>, <SPOKEN_NOISE>, <UNK>, colons and asterisks; four slips of the transcripts put right",
        "Kaldi, egs/wsj/s5/local/wer_output_filter",
    ),
    "aishell1": TextRule(
        "full-width letters as ASCII, upper case, no spaces; the score to quote is the CER",
        "WeNet's recipes aishell (spaces) and multi_cn (letters); the same as hf_entmax_asr.corpora.aishell1",
    ),
}


def normalizer(rule: str, spelling_table: str | Path | None = None) -> Normalizer:
    """The function of a rule, text to text, without white space at the ends.

    Args:
        rule: a key of `RULES`.
        spelling_table: for "english" alone, a JSON object from British to American spellings, as Whisper checkpoints
            have it in normalizer.json. transformers does not ship it, so that without it "colour" and "color" differ.

    Raises:
        ValueError: an unknown rule, a table for another rule, or a file that is not such a table.
        FileNotFoundError: there is no such table.
    """
    if rule not in RULES:
        raise ValueError(f"there is no text rule {rule!r}; use one of {', '.join(RULES)}")
    if spelling_table is not None and rule != "english":
        raise ValueError(f"the rule {rule!r} takes no spelling table; only 'english' does")
    if rule == "english":
        normalize: Normalizer = EnglishTextNormalizer(_read_table(spelling_table))
    else:
        plain: dict[str, Normalizer] = {
            "none": str,
            "basic": BasicTextNormalizer(),
            "wsj": _wsj,
            "aishell1": _aishell1,
        }
        normalize = plain[rule]
    return lambda text: normalize(text).strip()


def _read_table(path: str | Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); a spelling table is an object of words to words") from error
    if not isinstance(table, dict) or not all(isinstance(word, str) for word in table.values()):
        raise ValueError(f"{path} is not a JSON object of words to words")
    return table


def _wsj(text: str) -> str:
    text = WSJ_MARKS.sub("", text)
    for slip, right in WSJ_SLIPS.items():
        text = text.replace(slip, right)
    return " ".join(text.split())


def _aishell1(text: str) -> str:
    return "".join(text.translate(FULL_WIDTH).upper().split())

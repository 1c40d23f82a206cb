"""Rules that make two spellings of the same words equal before they are scored.

A score depends on who normalised the texts, so a normalised score is always given with the name of its rule, next to
the score of the texts as they are. References and hypotheses go through the same rule. The rules here are for any
corpus; one that belongs to a corpus stands in its module, and `hf_entmax_asr.corpora.text_rules` knows them all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from hf_entmax_asr.input_files import read_json


@dataclass(frozen=True)
class TextRule:
    """A rule, to be called with a text: its name, what it does in one line for a report, and where it comes from.

    `normalize` may leave white space at the ends of a text; a call does not. `recounts` says what the rule does to the
    number of words, where it changes it.
    """

    name: str
    description: str
    source: str
    normalize: Callable[[str], str]
    recounts: str = ""

    def __call__(self, text: str) -> str:
        return self.normalize(text).strip()

    def recounted(self, before: int, after: int) -> str | None:
        """Why error rates before and after the rule do not compare: one sentence, None for equally many words."""
        if before == after:
            return None
        reason = f": {self.recounts}" if self.recounts else ""
        return f"not to be compared with the rate as they are: {before:,} reference words became {after:,}{reason}"


NONE = TextRule("none", "the texts as they are", "-", str)
BASIC = TextRule(
    "basic",
    "lower case, no punctuation or symbols, nothing in brackets; any language",
    "BasicTextNormalizer of transformers (Radford et al. 2022, arXiv 2212.04356, appendix C)",
    BasicTextNormalizer(),
    recounts="apostrophes and hyphens part words, what stands in brackets goes",
)
ENGLISH = TextRule(
    "english",
    "as basic, and contractions, numbers and titles in one form, no fillers; British spellings need a table",
    "EnglishTextNormalizer of transformers (Radford et al. 2022, arXiv 2212.04356, appendix C)",
    EnglishTextNormalizer({}),
    recounts="a number in words becomes one word of digits, which one wrong word spoils; contractions are parted",
)
GENERAL_RULES = (NONE, BASIC, ENGLISH)


def english_rule(spelling_table: str | Path) -> TextRule:
    """The rule "english" with a table of spellings, without which "colour" and "color" differ.

    The table is a JSON object from British to American spellings, as Whisper checkpoints have it in normalizer.json;
    transformers does not ship it. Raises ValueError for a file that is not such a table, FileNotFoundError for none.
    """
    table = _read_table(Path(spelling_table))
    return replace(ENGLISH, normalize=EnglishTextNormalizer(table))


def _read_table(path: Path) -> dict[str, str]:
    try:
        table = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; a spelling table is a JSON object of words to words") from error
    if not isinstance(table, dict) or not all(isinstance(word, str) for word in table.values()):
        raise ValueError(f"{path} is not a JSON object of words to words")
    return table

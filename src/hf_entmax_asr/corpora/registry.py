"""Every corpus that the package knows, by its name, and what is found by that name."""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_entmax_asr.corpora.building import LoadedCorpus
from hf_entmax_asr.corpora.corpus import Corpus
from hf_entmax_asr.text import GENERAL_RULES, TextRule, english_rule

# One line a corpus: the module whose CORPUS is its record.
MODULES = (
    "hf_entmax_asr.corpora.folder",
    "hf_entmax_asr.corpora.aishell1",
    "hf_entmax_asr.corpora.wsj",
    "hf_entmax_asr.corpora.librispeech",
)


def records(modules: Sequence[str]) -> dict[str, Corpus]:
    """The record of each module by its name; ValueError where two have the same."""
    corpora: dict[str, Corpus] = {}
    for module in modules:
        corpus: Corpus = import_module(module).CORPUS
        if corpus.name in corpora:
            raise ValueError(f"{module} holds a second corpus named {corpus.name!r}; every corpus has its own name")
        corpora[corpus.name] = corpus
    return corpora


CORPORA = records(MODULES)


def find_corpus(name: str) -> Corpus:
    """The record of a corpus; ValueError for a name that is not in `CORPORA`."""
    if name not in CORPORA:
        raise ValueError(f"there is no corpus {name!r}; the corpora are {', '.join(CORPORA)}")
    return CORPORA[name]


def read_corpus(
    corpus: str, root: str | os.PathLike, *, splits: Sequence[str] | str | None = None, **options: Any
) -> LoadedCorpus:
    """A corpus by its name (one of `CORPORA`), with the report of what was found.

    `options` are those of `load_aishell1` and its like; a folder corpus, which keeps its rows in memory, takes none but
    `bad_utterances`, and refuses damage in any case. Raises ValueError for an unknown name or split, and whatever the
    loader raises.
    """
    return find_corpus(corpus).read(root, splits=splits, **options)


def text_rules() -> dict[str, TextRule]:
    """The rules that texts can be scored by, by their names: the general ones, and those of the corpora."""
    rules = (*GENERAL_RULES, *(corpus.scoring_rule for corpus in CORPORA.values()))
    return {rule.name: rule for rule in rules}


def text_rule(name: str, spelling_table: str | Path | None = None) -> TextRule:
    """A rule by its name.

    Args:
        name: a key of `text_rules()`.
        spelling_table: for "english" alone, see `hf_entmax_asr.text.english_rule`.

    Raises:
        ValueError: an unknown rule, a table for another rule, or a file that is not such a table.
        FileNotFoundError: there is no such table.
    """
    rules = text_rules()
    if name not in rules:
        raise ValueError(f"there is no text rule {name!r}; use one of {', '.join(rules)}")
    if spelling_table is None:
        return rules[name]
    if name != "english":
        raise ValueError(f"the rule {name!r} takes no spelling table; only 'english' does")
    return english_rule(spelling_table)

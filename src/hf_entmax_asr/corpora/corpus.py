"""All that is known of a corpus, in one record, which stands as CORPUS in the corpus's own module."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from hf_entmax_asr.corpora.building import BadUtterances, Listing, LoadedCorpus, build
from hf_entmax_asr.text import BASIC, TextRule


@dataclass(frozen=True, kw_only=True)
class Corpus(ABC):
    """A corpus as readers, recipes, preparation and scoring know it.

    Attributes:
        name: for `read_corpus`, `data.corpus` of a recipe and --corpus of the programs.
        splits: their names, each with the number of utterances that was published for it, or None; empty where every
            folder has splits of its own.
        train_splits: names or patterns (`train-*`); the first that any split matches says what to train on.
        validation_split: what to choose checkpoints by.
        tokenizer: the kind that fits the corpus.
        word_boundary: whether words are separated by spaces.
        symbols: strings in the texts that are one token each (characters only).
        scoring_rule: what makes two spellings of the same words equal in the corpus's published scores.
        scoring_unit: of the errors that are quoted for it.
        recipe: the file in scripts/recipes/ to train it by.
    """

    name: str
    splits: Mapping[str, int | None] = field(default_factory=dict)
    train_splits: tuple[str, ...] = ("train",)
    validation_split: str = "validation"
    tokenizer: Literal["character", "bpe"] = "character"
    word_boundary: bool = True
    symbols: tuple[str, ...] = ()
    scoring_rule: TextRule = BASIC
    scoring_unit: Literal["word", "character"] = "word"
    recipe: str | None = None

    @abstractmethod
    def read(
        self,
        root: str | os.PathLike,
        streaming: bool = False,
        *,
        splits: Sequence[str] | str | None = None,
        bad_utterances: BadUtterances = "refuse",
        cache_dir: str | os.PathLike | None = None,
        num_proc: int | None = None,
    ) -> LoadedCorpus:
        """The splits and the report of what was found; see `read_corpus`."""

    def choose_train_splits(self, there: Iterable[str]) -> list[str]:
        """The splits to train on among those that are there; ValueError when there is none."""
        there = list(there)
        for pattern in self.train_splits:
            if chosen := [name for name in there if fnmatchcase(name, pattern)]:
                return chosen
        patterns = " or ".join(self.train_splits)
        raise ValueError(f"no split to train on ({patterns}); name some of {', '.join(there)}")


@dataclass(frozen=True, kw_only=True)
class ShardedCorpus(Corpus):
    """A corpus that is listed first and read shard by shard (see building.py).

    Attributes:
        list_shards: makes the listing from the root and the splits that were named (None: those that are there).
    """

    list_shards: Callable[[Path, Sequence[str] | None], Listing]

    def read(
        self,
        root: str | os.PathLike,
        streaming: bool = False,
        *,
        splits: Sequence[str] | str | None = None,
        bad_utterances: BadUtterances = "refuse",
        cache_dir: str | os.PathLike | None = None,
        num_proc: int | None = None,
    ) -> LoadedCorpus:
        """Raises FileNotFoundError when there is no split at all, or not one that was named; and as `build`."""
        named = self._named_splits([splits] if isinstance(splits, str) else splits)
        listing = self.list_shards(Path(root).absolute(), named)
        if listing.missing and (named is not None or not listing.shards):
            absent = "; ".join(f"{name}: {where}" for name, where in listing.missing.items())
            raise FileNotFoundError(f"{self.name} in {listing.root} lacks splits: {absent}")
        return build(self.name, self.splits, listing, streaming, bad_utterances, cache_dir, num_proc)

    def _named_splits(self, named: Sequence[str] | None) -> list[str] | None:
        """The splits that were named, in the corpus's order; ValueError for a name that it does not have."""
        if not named:
            return None
        if unknown := [name for name in named if name not in self.splits]:
            names = ", ".join(map(repr, unknown))
            raise ValueError(f"no split is named {names}; the splits are {', '.join(self.splits)}")
        return [name for name in self.splits if name in named]

"""Corpora as datasets: AISHELL-1, WSJ, LibriSpeech, folders with a metadata.csv, and composed sentences."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_entmax_asr.audio import read_audio, resample
from hf_entmax_asr.corpora.aishell1 import list_aishell1, load_aishell1
from hf_entmax_asr.corpora.building import LoadedCorpus, build
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.corpora.librispeech import from_hub, list_librispeech, load_librispeech
from hf_entmax_asr.corpora.prompts import Composition, WordTime, compose, read_word_times, write_compositions
from hf_entmax_asr.corpora.report import CorpusError, CorpusReport, SplitReport
from hf_entmax_asr.corpora.wsj import list_wsj, load_wsj

__all__ = [
    "CORPORA",
    "Composition",
    "CorpusError",
    "CorpusReport",
    "LoadedCorpus",
    "WordTime",
    "compose",
    "from_hub",
    "load_aishell1",
    "load_folder",
    "load_librispeech",
    "load_wsj",
    "read_audio",
    "read_corpus",
    "read_word_times",
    "resample",
    "write_compositions",
]

CORPORA = ("folder", "aishell1", "wsj", "librispeech")


def read_corpus(
    corpus: str, root: str | os.PathLike, *, splits: Sequence[str] | str | None = None, **options: Any
) -> LoadedCorpus:
    """A corpus by its name (one of `CORPORA`), with the report of what was found.

    `options` are those of `load_aishell1` and its like; a folder corpus, which refuses damage in any case and keeps its
    rows in memory, has none. Raises ValueError for an unknown name or split, and whatever the loader raises.
    """
    listings = {"aishell1": list_aishell1, "wsj": list_wsj, "librispeech": list_librispeech}
    if corpus in listings:
        return build(listings[corpus](root, splits), **options)
    if corpus != "folder":
        raise ValueError(f"there is no corpus {corpus!r}; the corpora are {', '.join(CORPORA)}")
    if options:
        raise ValueError(f"a folder corpus takes no {', '.join(options)}")
    rows = load_folder(Path(root))
    asked = [splits] if isinstance(splits, str) else splits
    if unknown := [name for name in asked or () if name not in rows]:
        raise ValueError(f"{root} has no split {', '.join(map(repr, unknown))}; it has {', '.join(rows)}")
    for name in rows.keys() - set(asked or rows):
        del rows[name]
    report = CorpusReport("folder", str(root))
    for name, split in rows.items():
        hours = sum(split["duration"]) / 3600
        report.splits[name] = SplitReport(None, len(split), hours, len(set(split["speaker"]) - {None}))
    return LoadedCorpus(rows, report)

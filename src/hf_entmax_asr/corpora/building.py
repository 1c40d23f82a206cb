"""From the files of a corpus to Hugging Face datasets: an Arrow cache, or a stream, with one row an utterance.

A corpus module lists its splits as shards (a speaker, a chapter, a stretch of an index); a shard reads its own
utterances. Shards are what `num_proc` and streaming readers divide among themselves. What is wrong with an utterance
is found while its shard is read, perhaps in another process, and kept as a row of its own in the cache: so it is told
again each time the cache is used.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from hf_entmax_asr.corpora.report import (
    BAD_ENCODING,
    HARMLESS,
    CorpusError,
    CorpusReport,
    Findings,
    SplitReport,
    describe,
)
from hf_entmax_asr.corpora.rows import row_features, with_audio_column

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

logger = logging.getLogger(__name__)

CACHE_VERSION = 1  # raise it when rows change for the same files: reading, normalisation, columns
ROWS_PER_WRITE = 100  # rows from archives hold their audio (0.2 MB): the default 1000 would take 200 MB
BadUtterances = Literal["refuse", "drop"]


class Shard(Protocol):
    """A part of a split that is read in one go, in any process."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its utterances, each made by `utterance` or `finding` of rows.py."""

    def signature(self) -> Iterator[str]:
        """Whatever changes when the rows would: names, sizes and times of its files, and its texts."""


@dataclass
class Listing:
    """A corpus before its audio is read.

    Attributes:
        root: its folder.
        shards: of each split that is there.
        missing: where the splits that are not there were sought.
        findings: that belong to no split in particular.
    """

    root: Path
    shards: dict[str, list[Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    findings: Findings = field(default_factory=dict)


class LoadedCorpus(NamedTuple):
    """The splits and what was found on the way."""

    splits: "DatasetDict | IterableDatasetDict"
    report: CorpusReport


def file_signature(paths: Iterable[str]) -> Iterator[str]:
    """Name, size and time of change of each file; a file that is not there has none."""
    for path in paths:
        try:
            state = os.stat(path)
            yield f"{path}\t{state.st_size}\t{state.st_mtime_ns}"
        except FileNotFoundError:
            yield f"{path}\t-"


def folder_signature(folder: str) -> Iterator[str]:
    """The signature of every file in a folder, in the order of their names."""
    yield from file_signature(sorted(entry.path for entry in os.scandir(folder)))


def utf8_lines(path: Path, findings: Findings) -> Iterator[tuple[int, str]]:
    """The lines of a text file that hold something, with their numbers from 1; lines that are not UTF-8 are found."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                findings.setdefault(BAD_ENCODING, []).append(f"{path}:{number}")
                continue
            if text:
                yield number, text


def build(
    corpus: str,
    expected: Mapping[str, int | None],
    listing: Listing,
    streaming: bool = False,
    bad_utterances: BadUtterances = "refuse",
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> LoadedCorpus:
    """Turn a listing into datasets, report what was found, and refuse damage unless it is to be dropped.

    Args:
        corpus: its name.
        expected: published number of utterances of each split.
        listing: from the corpus's module.
        streaming: make `IterableDatasetDict`; nothing is read ahead, damage is met (refused or dropped) on the way.
        bad_utterances: "refuse" or "drop" damage (see report.py).
        cache_dir: where the Arrow files go; None is the cache of the datasets library.
        num_proc: processes that read headers and archives; None is this one.
    Raises:
        CorpusError: damage.
        OSError: a file cannot be read for a reason that is not its own.
    """
    if bad_utterances not in ("refuse", "drop"):
        raise ValueError(f"bad_utterances is {bad_utterances!r}; it must be 'refuse' or 'drop'")
    report = CorpusReport(corpus, str(listing.root), missing=listing.missing, findings=listing.findings)
    splits: dict[str, Any] = {}
    for name, shards in listing.shards.items():
        report.splits[name] = SplitReport(expected.get(name))
        if streaming:
            splits[name] = _stream(name, shards, bad_utterances)
        else:
            splits[name] = _map_style(corpus, name, shards, report.splits[name], cache_dir, num_proc)
    if report.damage and bad_utterances == "refuse":
        raise CorpusError(
            "\n".join([f"{corpus} in {listing.root} is damaged:", *describe(report.damage)])
            + "\nFetch or extract these again, or leave the damaged utterances out with bad_utterances='drop'."
        )
    for name, split in report.splits.items():
        if split.utterances == 0:
            raise CorpusError(f"{corpus} in {listing.root}: no utterance of {name} can be used\n{report}")
    logger.log(logging.WARNING if report.needs_attention else logging.INFO, "%s", report)
    from datasets import DatasetDict, IterableDatasetDict

    return LoadedCorpus(IterableDatasetDict(splits) if streaming else DatasetDict(splits), report)


def _map_style(
    corpus: str,
    name: str,
    shards: list[Shard],
    report: SplitReport,
    cache_dir: str | os.PathLike | None,
    num_proc: int | None,
) -> "Dataset":
    """One split as an Arrow cache, made where it is not there; counts and findings go into its report."""
    import numpy as np
    from datasets import Dataset, NamedSplit
    from datasets.exceptions import DatasetGenerationError

    digest = hashlib.sha256(f"{CACHE_VERSION}\t{corpus}\t{name}\n".encode())
    for shard in shards:
        for part in shard.signature():
            digest.update(part.encode("utf-8", "surrogateescape") + b"\n")
    try:
        everything = Dataset.from_generator(
            _read,
            features=row_features(with_findings=True),
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            gen_kwargs={"shards": shards},
            num_proc=num_proc and min(num_proc, len(shards)),
            split=NamedSplit(name.replace("-", ".")),  # datasets takes no hyphen here
            fingerprint=digest.hexdigest()[:32],
            writer_batch_size=ROWS_PER_WRITE,
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise
    kinds = everything.data.column("finding")
    faulty = np.flatnonzero(kinds.is_valid().to_numpy())
    for row in everything.select_columns(["finding", "where"]).select(faulty):
        report.findings.setdefault(row["finding"], []).append(row["where"])
    rows = with_audio_column(everything.remove_columns(["finding", "where"]))
    if len(faulty):
        rows = rows.select(np.flatnonzero(kinds.is_null().to_numpy()))
    report.utterances = len(rows)
    report.hours = float(np.sum(rows["duration"][:])) / 3600
    report.speakers = len(set(rows["speaker"][:]) - {None})
    return rows


def _stream(name: str, shards: list[Shard], bad_utterances: BadUtterances) -> "IterableDataset":
    from datasets import IterableDataset, NamedSplit

    # Its audio column stays a plain struct: a stream encodes every row, which an Audio column needs torchcodec for.
    return IterableDataset.from_generator(
        _read_utterances,
        features=row_features(),
        gen_kwargs={"shards": shards, "bad_utterances": bad_utterances},
        split=NamedSplit(name.replace("-", ".")),
    )


def _read(shards: list[Shard]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from shard.rows()


def _read_utterances(shards: list[Shard], bad_utterances: BadUtterances) -> Iterator[dict[str, Any]]:
    """The utterances alone: what else is found is logged, and damage raised where it is to be refused."""
    for row in _read(shards):
        what, where = row.pop("finding"), row.pop("where")
        if what is None:
            yield row
        elif what in HARMLESS or bad_utterances == "drop":
            logger.warning("%s: %s", what, where)
        else:
            raise CorpusError(f"{what}: {where}; leave such out with bad_utterances='drop'")

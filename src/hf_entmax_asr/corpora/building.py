"""From the files of a corpus to Hugging Face datasets: an Arrow cache, or a stream, with one row an utterance.

A corpus module lists its splits as shards (a speaker, a chapter, a stretch of an index); a shard reads its own
utterances. Shards are what `num_proc` and streaming readers divide among themselves. What is wrong with an utterance
is found while its shard is read, perhaps in another process, and kept as a row of its own in the cache: so it is told
again each time the cache is used.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from hf_entmax_asr.audio import audio_duration
from hf_entmax_asr.corpora.report import (
    BAD_AUDIO,
    BAD_ENCODING,
    EMPTY_TEXT,
    HARMLESS,
    CorpusError,
    CorpusReport,
    Findings,
    SplitReport,
    describe,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict

logger = logging.getLogger(__name__)

CACHE_VERSION = 1  # raise it when rows change for the same files: reading, normalisation, columns
ROWS_PER_WRITE = 100  # rows from archives hold their audio (0.2 MB): the default 1000 would take 200 MB
BadUtterances = Literal["refuse", "drop"]


class Shard(Protocol):
    """A part of a split that is read in one go, in any process."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its utterances, each made by `utterance` or `finding`."""

    def signature(self) -> Iterator[str]:
        """Whatever changes when the rows would: names, sizes and times of its files, and its texts."""


@dataclass
class Listing:
    """A corpus before its audio is read.

    Attributes:
        corpus, root: its name and folder.
        named: whether the splits were named by the caller, who then must get them all.
        shards: of each split that is there.
        expected: published number of utterances of a split.
        missing: where the splits that are not there were sought.
        findings: that belong to no split in particular.
    """

    corpus: str
    root: Path
    named: bool = False
    shards: dict[str, list[Any]] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    findings: Findings = field(default_factory=dict)


class LoadedCorpus(NamedTuple):
    """The splits and what was found on the way."""

    splits: "DatasetDict | IterableDatasetDict"
    report: CorpusReport


def utterance(
    name: str, path: str | os.PathLike, text: str, speaker: str | None, content: bytes | None = None
) -> dict[str, Any]:
    """The row of an utterance, or of what is wrong with its text or audio.

    `content` is the file itself where `path` leads into an archive; it is then kept in the row. Otherwise the row has
    the path alone, and the audio is read when it is needed. A file that the system cannot read (OSError) says nothing
    about the corpus: the error ends the reading, and nothing is kept of it.
    """
    if not text:
        return finding(EMPTY_TEXT, f"{name} ({path})")
    try:
        duration = audio_duration(Path(path) if content is None else content)
    except ValueError as error:
        return finding(BAD_AUDIO, f"{path} ({error})")
    audio = {"path": os.fspath(path), "bytes": content}
    found = {"finding": None, "where": None}
    return {"id": name, "audio": audio, "text": text, "speaker": speaker, "duration": duration, **found}


def row_features(with_findings: bool = False) -> "Features":
    """The columns as they are written: those of `load_folder`, and what is the matter where a row is no utterance."""
    # Audio() cannot encode without torchcodec even with decode=False; a plain struct can, and casts to it.
    from datasets import Features, Value

    columns: dict[str, Any] = {
        "id": Value("string"),
        "audio": {"path": Value("string"), "bytes": Value("binary")},
        "text": Value("string"),
        "speaker": Value("string"),
        "duration": Value("float64"),
    }
    return Features(columns | ({"finding": Value("string"), "where": Value("string")} if with_findings else {}))


def finding(what: str, where: str) -> dict[str, Any]:
    """The row of something that is not an utterance; `what` is one of the kinds of report.py."""
    empty = {"id": None, "audio": None, "text": None, "speaker": None, "duration": None}
    return {**empty, "finding": what, "where": where}


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


def choose_splits(known: Sequence[str], asked: Sequence[str] | str | None) -> list[str]:
    """The splits to list, in the corpus's order; ValueError for a name that it does not have."""
    asked = [asked] if isinstance(asked, str) else asked
    if unknown := [name for name in asked or () if name not in known]:
        raise ValueError(f"no split is named {', '.join(map(repr, unknown))}; the splits are {', '.join(known)}")
    return [name for name in known if asked is None or name in asked]


def build(
    listing: Listing,
    streaming: bool = False,
    bad_utterances: BadUtterances = "refuse",
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> LoadedCorpus:
    """Turn a listing into datasets, report what was found, and refuse damage unless it is to be dropped.

    Args:
        listing: from the corpus's module.
        streaming: make `IterableDatasetDict`; nothing is read ahead, damage is met (refused or dropped) on the way.
        bad_utterances: "refuse" or "drop" damage (see report.py).
        cache_dir: where the Arrow files go; None is the cache of the datasets library.
        num_proc: processes that read headers and archives; None is this one.
    Raises:
        FileNotFoundError: there is no split at all, or not one that was named.
        CorpusError: damage.
        OSError: a file cannot be read for a reason that is not its own.
    """
    if bad_utterances not in ("refuse", "drop"):
        raise ValueError(f"bad_utterances is {bad_utterances!r}; it must be 'refuse' or 'drop'")
    if listing.missing and (listing.named or not listing.shards):
        absent = "; ".join(f"{name}: {where}" for name, where in listing.missing.items())
        raise FileNotFoundError(f"{listing.corpus} in {listing.root} lacks splits: {absent}")
    report = CorpusReport(listing.corpus, str(listing.root), missing=listing.missing, findings=listing.findings)
    splits: dict[str, Any] = {}
    for name, shards in listing.shards.items():
        report.splits[name] = SplitReport(listing.expected.get(name))
        if streaming:
            splits[name] = _stream(name, shards, bad_utterances)
        else:
            splits[name] = _map_style(listing, name, shards, report.splits[name], cache_dir, num_proc)
    if report.damage and bad_utterances == "refuse":
        raise CorpusError(
            "\n".join([f"{listing.corpus} in {listing.root} is damaged:", *describe(report.damage)])
            + "\nFetch or extract these again, or leave the damaged utterances out with bad_utterances='drop'."
        )
    for name, split in report.splits.items():
        if split.utterances == 0:
            raise CorpusError(f"{listing.corpus} in {listing.root}: no utterance of {name} can be used\n{report}")
    logger.log(logging.WARNING if report.remarkable else logging.INFO, "%s", report)
    from datasets import DatasetDict, IterableDatasetDict

    return LoadedCorpus(IterableDatasetDict(splits) if streaming else DatasetDict(splits), report)


def _map_style(
    listing: Listing,
    name: str,
    shards: list[Shard],
    report: SplitReport,
    cache_dir: str | os.PathLike | None,
    num_proc: int | None,
) -> "Dataset":
    import numpy as np
    from datasets import Audio, Dataset, NamedSplit
    from datasets.exceptions import DatasetGenerationError

    digest = hashlib.sha256(f"{CACHE_VERSION}\t{listing.corpus}\t{name}\n".encode())
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
    rows = everything.remove_columns(["finding", "where"]).cast_column("audio", Audio(16_000, decode=False))
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
        _read_whole,
        features=row_features(),
        gen_kwargs={"shards": shards, "bad_utterances": bad_utterances},
        split=NamedSplit(name.replace("-", ".")),
    )


def _read(shards: list[Shard]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from shard.rows()


def _read_whole(shards: list[Shard], bad_utterances: BadUtterances) -> Iterator[dict[str, Any]]:
    """The utterances alone: what else is found is logged, and damage raised where it is to be refused."""
    for row in _read(shards):
        what, where = row.pop("finding"), row.pop("where")
        if what is None:
            yield row
        elif what in HARMLESS or bad_utterances == "drop":
            logger.warning("%s: %s", what, where)
        else:
            raise CorpusError(f"{what}: {where}; leave such out with bad_utterances='drop'")

"""A corpus in a folder: audio files beside a `metadata.csv`, as in the audiofolder of datasets, without torchcodec.

    root/metadata.csv                      one split, named "train"
    root/train/metadata.csv, root/test/…   one sub-folder a split, named as the folder

`metadata.csv` has the columns `file_name` (relative to its folder), `text` (or `transcription`, `sentence`)
and, if known, `speaker`; others are ignored. `metadata.jsonl`, an object a line, does as well.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_entmax_asr.audio import AUDIO_SUFFIXES, audio_duration
from hf_entmax_asr.corpora.building import BadUtterances, LoadedCorpus
from hf_entmax_asr.corpora.corpus import Corpus
from hf_entmax_asr.corpora.metadata import MetadataError, find_metadata, read_metadata
from hf_entmax_asr.corpora.report import LISTED_PATHS, CorpusReport, SplitReport
from hf_entmax_asr.corpora.rows import decoded, row_features, with_audio_column

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

REQUIRED_COLUMNS = ("file_name", "text")


def load_folder(
    root: str | Path,
    streaming: bool = False,
    *,
    decode_audio: bool = False,
    text_column: str | None = None,
    empty_texts: bool = False,
) -> "DatasetDict | IterableDatasetDict":
    """Read a corpus folder into a `DatasetDict`: one split a sub-folder, or `train` alone.

    Columns are those of rows.py; `id` is the file name without its suffix, `audio` an undecoded `datasets.Audio(16000)`
    with an absolute path: give it to `hf_entmax_asr.audio.read_audio`. Only headers are read here, so a corpus of
    thousands of files loads in a second or so.

    Args:
        streaming: whether to return iterable data sets; the rows are checked and kept all the same.
        decode_audio: whether a row's `audio` is its samples, `{"path", "array", "sampling_rate"}`, read when the row is
            asked for; transformers' stock pipeline takes these.
        text_column: the column of the text, where it is none of the usual names.
        empty_texts: whether audio in which nothing is said may be there, as for scores; training cannot use it.

    Raises FileNotFoundError when there is no folder or no metadata.csv, ImportError without the datasets library, and
    ValueError that counts and names what is wrong with the whole corpus at once: missing columns, listed audio that is
    missing, audio that is not listed, empty texts, files listed twice, files that cannot be decoded or are cut short.
    """
    root = Path(root).absolute()
    problems: list[str] = []
    lists = _metadata_files(root)
    splits = {name: _read_split(file, problems, text_column, empty_texts) for name, file in lists.items()}
    if problems:
        raise ValueError(f"corpus {root} has problems; fix the files or the metadata:\n" + "\n".join(problems))
    try:
        from datasets import Dataset, DatasetDict, IterableDatasetDict
    except ImportError as error:
        raise ImportError("load_folder needs the datasets library: pip install hf_entmax_asr[train]") from error
    features = row_features()
    tables = {name: with_audio_column(Dataset.from_list(rows, features=features)) for name, rows in splits.items()}
    if streaming:
        streams = IterableDatasetDict({name: table.to_iterable_dataset() for name, table in tables.items()})
        return streams.map(decoded, batched=True, batch_size=1) if decode_audio else streams
    rows_of = DatasetDict(tables)
    return rows_of.with_transform(decoded) if decode_audio else rows_of


def _metadata_files(root: Path) -> dict[str, Path]:
    """The list of every split by its name, or raise FileNotFoundError."""
    if not root.is_dir():
        raise FileNotFoundError(f"corpus folder {root} does not exist")
    nested = [child for child in sorted(root.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    lists = {child.name: file for child in nested if (file := find_metadata(child))}
    if own := find_metadata(root):
        if lists:
            raise ValueError(
                f"metadata stands in {root} and in its folders {', '.join(lists)}: keep one of the layouts"
            )
        return {"train": own}
    bare = [child.name for child in nested if child.name not in lists and any(_audio_files(child))]
    if bare or not lists:
        where = [str(root / name) for name in bare] or [str(root)]
        raise FileNotFoundError(
            f"no metadata.csv (columns {', '.join(REQUIRED_COLUMNS)}, speaker if known) in {', '.join(where)}"
        )
    return lists


def _read_split(file: Path, problems: list[str], text_column: str | None, empty_texts: bool) -> list[dict[str, Any]]:
    """The rows of one list; whatever is wrong is added to `problems`."""
    folder = file.parent
    try:
        entries = read_metadata(file, text_column)
    except MetadataError as error:
        problems.append(str(error))
        return []
    if not entries:
        problems.append(f"{file}: no rows")
    rows: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    faults: dict[str, list[str]] = {}
    for name, text, speaker in entries:
        path, identity = folder / name, str(Path(name).with_suffix("")) if name else ""
        if fault := _fault(folder, name, text or ("" if not empty_texts else "nothing"), seen.get(identity)):
            faults.setdefault(fault, []).append(str(path))
            continue
        seen[identity] = name
        try:
            duration = audio_duration(path)
        except ValueError as error:
            faults.setdefault("cannot be read as audio", []).append(f"{path} ({error})")
            continue
        audio = {"path": str(path), "bytes": None}
        rows.append({"id": identity, "audio": audio, "text": text, "speaker": speaker, "duration": duration})
    listed = {entry.file_name for entry in entries}
    if unlisted := [str(path) for path in _audio_files(folder) if path.relative_to(folder).as_posix() not in listed]:
        faults[f"not listed in {file.name}"] = unlisted
    for fault, paths in faults.items():
        more = f" and {len(paths) - LISTED_PATHS} more" if len(paths) > LISTED_PATHS else ""
        problems.append(f"{folder}: {len(paths)} {fault}: {', '.join(paths[:LISTED_PATHS])}{more}")
    return rows


def _fault(folder: Path, name: str, text: str, twin: str | None) -> str | None:
    """What is wrong with a row, short of opening its file."""
    if not name:
        return "empty file_name"
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return "outside the corpus folder"
    if twin is not None:
        return "listed twice" if twin == name else "with the name of another file but for its suffix (ids must differ)"
    if not (folder / name).is_file():
        return "listed but missing"
    return None if text else "with an empty text"


def _audio_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."):
            yield path


class _FolderCorpus(Corpus):
    def read(
        self,
        root: str | os.PathLike,
        streaming: bool = False,
        *,
        splits: Sequence[str] | str | None = None,
        bad_utterances: BadUtterances = "refuse",
        cache_dir: str | os.PathLike | None = None,
        num_proc: int | None = None,
        text_column: str | None = None,
        empty_texts: bool = False,
    ) -> LoadedCorpus:
        """Whatever `bad_utterances` is, damage is refused; streaming, cache and processes it has none."""
        options = {"streaming": streaming, "cache_dir": cache_dir is not None, "num_proc": num_proc is not None}
        if given := ", ".join(name for name, is_given in options.items() if is_given):
            raise ValueError(
                f"a folder corpus takes no {given}: its rows are kept in memory, and only headers are read"
            )
        rows: Any = load_folder(Path(root), text_column=text_column, empty_texts=empty_texts)
        wanted = [splits] if isinstance(splits, str) else splits
        if unknown := [name for name in wanted or () if name not in rows]:
            raise ValueError(f"{root} has no split {', '.join(map(repr, unknown))}; it has {', '.join(rows)}")
        for name in rows.keys() - set(wanted or rows):
            del rows[name]
        report = CorpusReport(self.name, str(root))
        for name, split in rows.items():
            hours = sum(split["duration"]) / 3600
            report.splits[name] = SplitReport(None, len(split), hours, len(set(split["speaker"]) - {None}))
        return LoadedCorpus(rows, report)


CORPUS = _FolderCorpus(name="folder")

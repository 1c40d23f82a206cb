"""LibriSpeech (Panayotov et al. 2015; openslr.org/12) and Mini LibriSpeech (openslr.org/31): read English, 16 kHz FLAC.

    LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac
    LibriSpeech/train-clean-100/103/1240/103-1240.trans.txt      103-1240-0000 CHAPTER ONE MISSUS RACHEL LYNDE IS ...

The transcripts are upper case with apostrophes and no punctuation; they are taken as they are.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_entmax_asr.audio import AUDIO_SUFFIXES, audio_duration
from hf_entmax_asr.corpora.building import BadUtterances, Listing, folder_signature, utf8_lines
from hf_entmax_asr.corpora.corpus import ShardedCorpus
from hf_entmax_asr.corpora.report import (
    BAD_LINE,
    LISTED_TWICE,
    NO_AUDIO,
    NO_TRANSCRIPT,
    OTHER_SUFFIX,
    TWO_TEXTS,
    Findings,
)
from hf_entmax_asr.corpora.rows import finding, finding_rows, row_features, utterance, with_audio_column

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

# Utterances of each subset as published; the last two are Mini LibriSpeech.
EXPECTED = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
    "train-clean-5": 1_519,
    "dev-clean-2": 1_089,
}
HUB_COLUMNS = ("id", "audio", "text", "speaker_id")


def load_librispeech(
    root: str | os.PathLike,
    streaming: bool = False,
    *,
    splits: Sequence[str] | str | None = None,
    bad_utterances: BadUtterances = "refuse",
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> "DatasetDict | IterableDatasetDict":
    """The subsets of LibriSpeech or Mini LibriSpeech that are there, under their own names (`train-clean-100`, …).

    Columns are those of `load_folder`; rows hold the path of their FLAC file. For the Hub's form see `from_hub`.

    Args:
        root: `LibriSpeech`, the folder that holds it, or one subset's folder.
        streaming: return `IterableDatasetDict`, which reads the files as one goes through it and caches nothing. Its
            audio column is a plain struct of path and bytes, for `read_audio` as well.
        splits: the subsets to read; None takes those that are there.
        bad_utterances: "refuse" a corpus with damage, or "drop" the damaged utterances (rule: corpora/report.py).
        cache_dir: for the Arrow files; None is the cache of the datasets library.
        num_proc: processes that check the audio files when the cache is made.
    Raises:
        FileNotFoundError: no subset, or not one of those that were named.
        CorpusError: damage; the message counts it and names paths.
    """
    return CORPUS.read(
        root, streaming, splits=splits, bad_utterances=bad_utterances, cache_dir=cache_dir, num_proc=num_proc
    ).splits


def list_librispeech(root: Path, splits: Sequence[str] | None) -> Listing:
    """The chapters of each subset, without reading them; raises what `load_librispeech` says."""
    base = _corpus_folder(root)
    listing = Listing(base)
    for split in splits or EXPECTED:
        chapters = sorted(str(path) for path in (base / split).glob("*/*") if path.is_dir())
        if chapters:
            listing.shards[split] = [_Chapter(folder) for folder in chapters]
        elif splits or (base / split).is_dir():  # any selection of the subsets is a whole corpus
            listing.missing[split] = f"no speakers' folders in {base / split}"
    return listing


def from_hub(dataset: Any) -> Any:
    """The Hub's LibriSpeech (openslr/librispeech_asr; columns file, audio, text, speaker_id, chapter_id, id) as ours.

    `dataset` is a `Dataset`, an `IterableDataset` or a dict of either, as `load_dataset("openslr/librispeech_asr",
    "clean")` gives it; the columns become those of `load_folder`. Durations are read from the headers of the audio,
    which is neither decoded nor copied. Raises ValueError when a column is missing.
    """
    from datasets import Dataset, concatenate_datasets

    if isinstance(dataset, dict):
        return type(dataset)({name: from_hub(split) for name, split in dataset.items()})
    if missing := [name for name in HUB_COLUMNS if name not in (dataset.column_names or ())]:
        raise ValueError(f"no column {', '.join(missing)}; this is not the Hub's LibriSpeech: {dataset.column_names}")
    if not isinstance(dataset, Dataset):
        rest = [name for name in dataset.column_names if name not in ("id", "audio", "text")]
        stream = dataset.cast_column("audio", row_features()["audio"])
        return stream.map(_hub_row, remove_columns=rest, features=row_features())
    dataset = with_audio_column(dataset)
    # Only the two new columns are written: mapping all would write every recording to the disk once more.
    new = dataset.select_columns(["audio", "speaker_id"]).map(_hub_row, remove_columns=["audio", "speaker_id"])
    return concatenate_datasets([dataset.select_columns(["id", "audio", "text"]), new], axis=1)


def _hub_row(row: dict[str, Any]) -> dict[str, Any]:
    content, path = row["audio"]["bytes"], row["audio"]["path"]
    return {
        "speaker": str(row["speaker_id"]),
        "duration": audio_duration(content if content is not None else Path(path)),
    }


def _corpus_folder(root: Path) -> Path:
    """The folder that holds the subsets: `root`, one below, or one above."""
    if root.name in EXPECTED and root.is_dir():
        return root.parent
    for base in (root, root / "LibriSpeech"):
        if any((base / split).is_dir() for split in EXPECTED):
            return base
    if not root.is_dir():
        raise FileNotFoundError(f"corpus folder {root} does not exist")
    raise FileNotFoundError(f"{root} holds no LibriSpeech: none of the folders {', '.join(EXPECTED)}")


@dataclass(frozen=True)
class _Chapter:
    """A chapter read by one speaker: SPEAKER/CHAPTER with its FLAC files and their transcript."""

    folder: str

    def signature(self) -> Iterator[str]:
        yield from folder_signature(self.folder)

    def rows(self) -> Iterator[dict[str, Any]]:
        speaker, chapter = Path(self.folder).parts[-2:]
        findings: Findings = {}
        texts = _read_transcript(Path(self.folder) / f"{speaker}-{chapter}.trans.txt", findings)
        # Converted corpora have other suffixes; of two files of one name the one as shipped, .flac, is read.
        files = {
            Path(name).stem: name
            for name in sorted(os.listdir(self.folder), key=lambda n: n.endswith(".flac"))
            if Path(name).suffix.lower() in AUDIO_SUFFIXES
        }
        others = {Path(name).suffix for name in files.values()} - {".flac"}
        if others:
            findings[OTHER_SUFFIX] = [f"{self.folder} ({', '.join(sorted(others))})"]
        for name in sorted(files):
            path = f"{self.folder}/{files[name]}"
            if name in texts:
                yield utterance(name, path, texts[name], speaker)
            else:
                yield finding(NO_TRANSCRIPT, path)
        findings[NO_AUDIO] = [f"{self.folder}/{name}.flac" for name in sorted(texts.keys() - files.keys())]
        yield from finding_rows(findings)


def _read_transcript(path: Path, findings: Findings) -> dict[str, str]:
    """Id -> text; none when there is no file, which leaves the chapter's audio without a transcript."""
    texts: dict[str, str] = {}
    if not path.is_file():
        return texts
    prefix = path.name.removesuffix(".trans.txt")
    for number, line in utf8_lines(path, findings):
        name, *words = line.split(None, 1)
        text = "".join(words)
        if not name.startswith(f"{prefix}-"):
            findings.setdefault(BAD_LINE, []).append(f"{path}:{number} ({line[:40]})")
        elif name in texts:
            what = LISTED_TWICE if texts[name] == text else TWO_TEXTS
            findings.setdefault(what, []).append(f"{path}:{number} ({name})")
        else:
            texts[name] = text
    return texts


CORPUS = ShardedCorpus(
    name="librispeech",
    splits=EXPECTED,
    list_shards=list_librispeech,
    train_splits=("train-*",),
    validation_split="dev-clean",
    tokenizer="bpe",
    recipe="librispeech_strong.yaml",
)

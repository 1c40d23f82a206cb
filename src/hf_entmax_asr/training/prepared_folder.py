"""A folder with what training needs of a corpus, made once: its tokenizer and the statistics for global CMVN.

It is a processor folder with `prepared.json` beside it, which says what it was made of; a recipe names it by
`data.prepared`. scripts/prepare.py makes it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hf_entmax_asr.atomic_files import atomic_folder
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora import Corpus, CorpusReport
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.tokenization import train_tokenizer

SUMMARY = "prepared.json"


@dataclass(frozen=True)
class PreparedSettings:
    """All that decides what is made: a folder made with equal ones is up to date.

    Attributes:
        corpus, root: its name and folder.
        train_splits: the splits that the rest is made of.
        tokenizer, word_boundary, symbols: as in `Corpus`.
        vocab_size: tokens of a bpe tokenizer, None for characters.
        feature_size: mel bins.
        cmvn_utterances: evenly spaced training utterances whose mean and deviation are taken.
        data: a hash over the rows of the training splits.
    """

    corpus: str
    root: str
    train_splits: list[str]
    tokenizer: Literal["character", "bpe"]
    vocab_size: int | None
    word_boundary: bool
    symbols: list[str]
    feature_size: int
    cmvn_utterances: int
    data: str


def prepared_settings(
    corpus: Corpus,
    root: Path,
    train_splits: list[str],
    rows: Any,
    *,
    tokenizer: Literal["character", "bpe"] | None = None,
    vocab_size: int = 5000,
    feature_size: int = 80,
    cmvn_utterances: int | None = None,
) -> PreparedSettings:
    """The settings for `rows`, the training splits of a corpus put together.

    `tokenizer` is the corpus's own kind by default; `cmvn_utterances` all there are.
    """
    kind = tokenizer or corpus.tokenizer
    return PreparedSettings(
        corpus=corpus.name,
        root=str(root.absolute()),
        train_splits=train_splits,
        tokenizer=kind,
        vocab_size=vocab_size if kind == "bpe" else None,
        word_boundary=corpus.word_boundary,
        symbols=[] if kind == "bpe" else list(corpus.symbols),
        feature_size=feature_size,
        cmvn_utterances=min(cmvn_utterances or len(rows), len(rows)),
        data=_fingerprint(rows),
    )


def check_replaceable(folder: Path) -> None:
    """Raise ValueError when there is a folder that was not made here."""
    if folder.exists() and any(folder.iterdir()) and not (folder / SUMMARY).is_file():
        raise ValueError(f"{folder} holds something else than prepare.py's output: name another folder by --output")


def is_up_to_date(folder: Path, settings: PreparedSettings) -> bool:
    """Whether the folder was made with these settings."""
    summary = folder / SUMMARY
    return summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["settings"] == asdict(settings)


def make_processor(
    settings: PreparedSettings, rows: Any, track: Callable[[list[int]], Iterable[int]] = iter
) -> EntmaxAsrProcessor:
    """The tokenizer of the texts of `rows`, and the feature extractor with their mean and deviation.

    `track` may wrap the indices of the utterances that are measured, as tqdm does.
    """
    tokenizer = train_tokenizer(
        settings.tokenizer,
        rows["text"][:],
        vocab_size=settings.vocab_size or 0,
        word_boundary=settings.word_boundary,
        symbols=settings.symbols,
    )
    extractor = EntmaxAsrFeatureExtractor(feature_size=settings.feature_size)

    def waveforms() -> Iterator[np.ndarray]:
        for index in track(evenly_spaced(len(rows), settings.cmvn_utterances)):
            yield read_audio(rows[index]["audio"], extractor.sampling_rate)

    extractor.fit_global_cmvn(waveforms(), sampling_rate=extractor.sampling_rate)
    return EntmaxAsrProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def write_prepared_folder(
    folder: Path, processor: EntmaxAsrProcessor, settings: PreparedSettings, report: CorpusReport
) -> None:
    """Write the folder whole, in the place of one made before."""
    counts = {name: {"utterances": split.utterances, "hours": split.hours} for name, split in report.splits.items()}
    summary = {"settings": asdict(settings), "splits": counts, "tokens": len(processor.tokenizer)}
    with atomic_folder(folder) as partial:
        processor.save_pretrained(partial)
        (partial / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _fingerprint(rows: Any) -> str:
    """A hash over ids, texts and durations."""
    digest = hashlib.sha256()
    for batch in rows.select_columns(["id", "text", "duration"]).iter(batch_size=1000):
        for row in zip(batch["id"], batch["text"], batch["duration"], strict=True):
            digest.update("\t".join(map(str, row)).encode() + b"\n")
    return digest.hexdigest()[:16]

"""A split as recognition and training take it: tokenised once, its frames counted, features cached where they fit."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora import read_corpus
from hf_entmax_asr.error_messages import described
from hf_entmax_asr.model.speech_features import SpeechFeatureExtractor
from hf_entmax_asr.recognition.batches import cut_batches

logger = logging.getLogger(__name__)

_FRAMES_PER_EXTRACTION = 6000  # a minute of audio at a time


class DataError(ValueError):
    """Data that cannot be used; the message counts and names the utterances."""


def read_split(
    data: str,
    split: str,
    corpus: str = "folder",
    most: int | None = None,
    lower_case: bool = False,
    *,
    empty_texts: bool = False,
) -> Any:
    """Rows of one split of a corpus (one of `hf_entmax_asr.corpora.CORPORA`), or its first `most`; with texts in lower
    case if asked, as data.lower_case of a recipe.

    With `empty_texts` a folder may hold audio in which nothing is said; what is heard there counts as inserted.

    Raises:
        DataError: there is no such split, nothing in it, or damage.
    """
    if most is not None and most < 1:
        raise DataError(f"{most} utterances are asked for; it must be at least 1")
    try:
        options = {"empty_texts": empty_texts} if corpus == "folder" else {}
        rows = read_corpus(corpus, data, splits=[split], **options).splits[split]
    except (OSError, ValueError) as error:
        raise DataError(described(error)) from error
    if len(rows) == 0:
        raise DataError(f"the split {split!r} of {data} has no utterances")
    if lower_case:
        rows = rows.add_column("lower", [text.lower() for text in rows["text"]])
        rows = rows.remove_columns("text").rename_column("lower", "text")
    return rows if most is None else rows.select(range(min(most, len(rows))))


@dataclass
class Utterances:
    """One split, in memory but for the audio.

    Attributes:
        rows: the data set (its `audio` column is read when features are needed).
        ids, texts: of each utterance.
        labels: token ids with the final `</s>`.
        frames: (utterances,) feature frames.
        features: (T, F) float16 per utterance once `cache_features` has run, else None.
        ends: seconds at which each label ends in the audio, NaN where unknown; None without such times.
    """

    rows: Any
    ids: list[str]
    texts: list[str]
    labels: list[list[int]]
    frames: np.ndarray
    features: list[torch.Tensor] | None = None
    ends: list[list[float]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> np.ndarray:
        """(utterances,) target tokens, `</s>` included."""
        return np.array([len(label) for label in self.labels])

    def example(self, index: int, speed: float = 1.0, with_audio: bool = False) -> dict[str, Any]:
        """What the collator takes: cached features, or audio and the speed to play it at (or both); and labels."""
        example: dict[str, Any] = {"labels": self.labels[index]}
        if self.ends is not None:
            example["label_ends"] = [end / speed for end in self.ends[index]]
        if self.features is not None:
            example["input_features"] = self.features[index]
        if self.features is None or with_audio:
            example |= {"audio": self.rows[index]["audio"], "speed": speed}
        return example

    def select(self, indices: Sequence[int]) -> "Utterances":
        """These utterances only, in this order."""
        return Utterances(
            rows=self.rows.select(indices),
            ids=[self.ids[i] for i in indices],
            texts=[self.texts[i] for i in indices],
            labels=[self.labels[i] for i in indices],
            frames=self.frames[list(indices)],
            features=None if self.features is None else [self.features[i] for i in indices],
            ends=None if self.ends is None else [self.ends[i] for i in indices],
        )

    def fingerprint(self) -> str:
        """A hash over ids, lengths and labels: equal where the batches of a resumed run would be equal."""
        digest = hashlib.sha256()
        for name, frames, label in zip(self.ids, self.frames, self.labels, strict=True):
            digest.update(f"{name}\t{frames}\t{label}\n".encode())
        return digest.hexdigest()[:16]


def seconds_per_position(model: Any, processor: Any) -> float:
    """From one encoder position to the next."""
    return model.config.frames_per_position * processor.feature_extractor.seconds_per_frame


def prepare_split(rows: Any, processor: Any, lower_case: bool = False) -> Utterances:
    """Tokenise a split and count its frames; `rows` has the columns id, audio, text and duration (seconds)."""
    texts = [text.lower() for text in rows["text"]] if lower_case else list(rows["text"])
    extractor: SpeechFeatureExtractor = processor.feature_extractor
    samples = np.round(np.array(rows["duration"], dtype=float) * extractor.sampling_rate).astype(int)
    return Utterances(
        rows=rows,
        ids=list(rows["id"]),
        texts=texts,
        labels=list(processor.tokenizer(texts).input_ids) if texts else [],
        frames=extractor.num_frames(samples),
    )


def cache_features(utterances: Utterances, feature_extractor: SpeechFeatureExtractor, megabytes: float) -> bool:
    """Compute the features of a split once and keep them as float16, if they fit; returns whether they do.

    The exact frame counts replace those derived from the durations.
    """
    needed = int(utterances.frames.sum()) * feature_extractor.feature_size * 2 / 2**20
    if needed > megabytes:
        return False
    features: list[torch.Tensor] = [torch.empty(0)] * len(utterances)
    for indices, batch, lengths in extract_in_batches(utterances, feature_extractor):
        for row, index in enumerate(indices):
            features[index] = batch[row, : lengths[row]].to(torch.float16)  # a copy: the padded batch is freed
    utterances.features = features
    utterances.frames = np.array([len(f) for f in features], dtype=int)
    return True


def extract_in_batches(
    utterances: Utterances, feature_extractor: SpeechFeatureExtractor
) -> Iterator[tuple[tuple[int, ...], torch.Tensor, list[int]]]:
    """(indices, features (B, T, F), real frames of each), shortest utterances first."""
    most_frames = max(_FRAMES_PER_EXTRACTION, int(utterances.frames.max()))
    rate = feature_extractor.sampling_rate
    for indices in cut_batches(np.argsort(utterances.frames, kind="stable").tolist(), utterances.frames, most_frames):
        audio = [read_audio(item, sampling_rate=rate) for item in utterances.rows[list(indices)]["audio"]]
        batch = feature_extractor(audio, sampling_rate=rate, padding=True, return_tensors="pt")
        yield indices, batch["input_features"], batch["attention_mask"].sum(dim=1).tolist()

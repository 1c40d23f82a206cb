"""Which times of words are right: chosen and measured against true ones, over the words that were recognised right.

The settings chosen go into the generation configuration of a checkpoint (see `hf_entmax_asr.model.times`). Choose on
other utterances than you report.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_entmax_asr.analysis.phonemes import Interval, read_ctm
from hf_entmax_asr.analysis.word_ends import align_words
from hf_entmax_asr.corpora.prompts import read_word_times
from hf_entmax_asr.model.times import token_times
from hf_entmax_asr.model.words import WORD, TimedText, spelled_pieces, text_mask, timed_texts
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.utterances import DataError, Utterances, seconds_per_position

UTTERANCES_AT_ONCE = 16
MOST_TOKENS = 256


@dataclass
class TimeErrors:
    """Predicted − true times of the words that were recognised right.

    Attributes:
        of_word: (start, end) in seconds, by utterance and place among its true words.
        reference_words: how many words the utterances have.
    """

    of_word: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    reference_words: int = 0

    def add(self, utterance: str, true: Sequence[Interval], recognised: Sequence[TimedText]) -> None:
        """An utterance, its words and those that were recognised."""
        self.reference_words += len(true)
        for i, j in align_words([plain(word.label) for word in true], [plain(word.text) for word in recognised]):
            errors = recognised[j].start - true[i].start, recognised[j].end - true[i].end
            self.of_word[utterance, i] = errors

    def among(self, words: Collection[tuple[str, int]]) -> "TimeErrors":
        """Those of some words alone."""
        return TimeErrors({word: self.of_word[word] for word in words}, self.reference_words)

    def __str__(self) -> str:
        parts = []
        for name, errors in zip(("starts", "ends"), np.array([*self.of_word.values()]).T, strict=True):
            median, most = 1000 * np.quantile(np.abs(errors), (0.5, 0.9))
            parts.append(f"{name} median {median:.0f} ms, 90 % within {most:.0f} ms")
        return f"{'; '.join(parts)}; {len(self.of_word):,} of {self.reference_words:,} words recognised right"


def true_words(data: str | Path, split: str, ctm: str | Path | None = None) -> dict[str, list[Interval]]:
    """Words with their true times, by utterance: of a CTM file, or of a corpus that `write_compositions` wrote.

    Raises:
        LabelError: what `read_ctm` finds in the file.
        FileNotFoundError: the corpus has no word times.
        DataError: its split has none.
    """
    if ctm is not None:
        return read_ctm(ctm)
    known = read_word_times(data)
    if split not in known:
        raise DataError(f"there is no {Path(data) / split / 'word_times.json'}: name a CTM file of the words instead")
    return {name: [Interval(start, end, word) for word, start, end in words] for name, words in known[split].items()}


def plain(word: str) -> str:
    """A word without case and punctuation, to compare it by."""
    return re.sub(r"[^\w']", "", word.casefold()).strip("'")


def measure_word_times(
    model: Any,
    processor: Any,
    utterances: Utterances,
    truth: Mapping[str, Sequence[Interval]],
    settings: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> TimeErrors:
    """Errors of the times of a model with `settings` (by default its own), greedy search.

    Raises:
        DataError: no word was recognised right.
    """
    errors = TimeErrors()
    for said in _recognised(model, processor, utterances, truth, progress):
        times = said.times(settings)
        for row, (name, ids) in enumerate(zip(said.names, said.ids, strict=True)):
            values = (part[row].tolist() for part in (times.start, times.end, times.confidence))
            errors.add(name, truth[name], timed_texts(processor.tokenizer, ids, *values))
    if not errors.of_word:
        raise DataError(
            f"none of {errors.reference_words} words was recognised right, so there are no times to measure"
        )
    return errors


def choose_word_times(
    model: Any,
    processor: Any,
    utterances: Utterances,
    truth: Mapping[str, Sequence[Interval]],
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The settings with the smallest median distances once each has its best offset, among: every monotonic head for
    starts and for ends, CTC, and cross-attention.

    Raises:
        DataError: no word was recognised right.
    """
    errors: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    count = 0
    for said in _recognised(model, processor, utterances, truth, progress):
        candidates = dict(said.candidates())
        for row, (name, ids) in enumerate(zip(said.names, said.ids, strict=True)):
            words, true = _word_tokens(processor.tokenizer, ids), truth[name]
            count += len(true)
            for i, j in align_words([plain(w.label) for w in true], [text for text, _, _ in words]):
                for key, times in candidates.items():
                    first = key[0] == "start"
                    predicted = float(times[row, words[j][1] if first else words[j][2]])
                    errors[key].append(predicted - (true[i].start if first else true[i].end))
    if not errors:
        raise DataError(f"none of {count} words was recognised right, so there is nothing to choose by")
    best: dict[str, dict[str, tuple[float, float, tuple[Any, ...]]]] = defaultdict(dict)
    for key, values in errors.items():
        offset = -float(np.median(values))
        distance = float(np.median(np.abs(np.array(values) + offset)))
        side, source = key[:2]
        if side not in best[source] or distance < best[source][side][0]:
            best[source][side] = (distance, offset, key)
    source = min(best, key=lambda name: best[name]["start"][0] + best[name]["end"][0])
    (_, start_offset, start), (_, end_offset, end) = best[source]["start"], best[source]["end"]
    settings: dict[str, Any] = {"source": source}
    if source == "stops":
        settings |= {"start": list(start[2:4]), "end": list(end[2:4]), "end_at": end[4]}
    offsets = {"start_offset_ms": round(1000 * start_offset), "end_offset_ms": round(1000 * end_offset)}
    return settings | offsets


@dataclass(frozen=True)
class _Recognised:
    """A batch of recognised utterances: token ids behind the start, and the name of each."""

    model: Any
    seconds: float
    sequences: torch.Tensor
    is_text: torch.Tensor
    encoder_outputs: Any
    mask: torch.Tensor
    ids: list[list[int]]
    names: list[str]

    def times(self, settings: dict[str, Any] | None) -> Any:
        return token_times(
            self.model, self.sequences, self.is_text, self.encoder_outputs, self.mask, self.seconds, settings
        )

    def candidates(self) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """(side, source, …) and times (N, U) in seconds."""
        config = self.model.config
        sources = ["cross_attention"] + ["ctc"] * hasattr(self.model, "ctc_head")
        for source in sources:
            times = self.times({"source": source})
            yield ("start", source), times.start
            yield ("end", source), times.end
        if config.cross_attention != "monotonic" or config.monotonic_decoding != "hard":
            return
        stops = self.model.head_boundaries(
            self.sequences, attention_mask=self.mask, encoder_outputs=self.encoder_outputs
        )
        for layer, heads in enumerate(stops, config.first_monotonic_layer):
            for head in range(heads.shape[1]):
                here = (heads[:, head].double() + 0.5) * self.seconds
                yield ("start", "stops", layer, head), here
                yield ("end", "stops", layer, head, "same"), here
                yield ("end", "stops", layer, head, "next"), torch.cat([here[:, 1:], here[:, -1:]], 1)


@torch.no_grad()
def _recognised(
    model: Any,
    processor: Any,
    utterances: Utterances,
    truth: Mapping[str, Sequence[Interval]],
    progress: Callable[[int], None] | None,
) -> Iterator[_Recognised]:
    """The utterances whose words are known, in batches of similar length."""
    known = [i for i in np.argsort(-utterances.frames, kind="stable").tolist() if utterances.ids[i] in truth]
    collate = SpeechSeq2SeqCollator(processor)
    for first in range(0, len(known), UTTERANCES_AT_ONCE):
        rows = known[first : first + UTTERANCES_AT_ONCE]
        batch = collate([{"audio": utterances.rows[i]["audio"]} for i in rows])
        mask = batch["attention_mask"].to(model.device)
        encoder_outputs = model.get_encoder()(
            batch["input_features"].to(model.device), attention_mask=mask, return_dict=True
        )
        sequences = model.generate(
            encoder_outputs=encoder_outputs, attention_mask=mask, num_beams=1, max_new_tokens=MOST_TOKENS
        )
        ids = sequences[:, 1:].tolist()
        is_text = torch.tensor([text_mask(processor.tokenizer, row) for row in ids], device=model.device)
        seconds = seconds_per_position(model, processor)
        names = [utterances.ids[i] for i in rows]
        yield _Recognised(model, seconds, sequences, is_text, encoder_outputs, mask, ids, names)
        if progress is not None:
            progress(len(rows))


def _word_tokens(tokenizer: Any, ids: list[int]) -> list[tuple[str, int, int]]:
    """(plain text, first token, last token) of each word."""
    pieces = spelled_pieces(tokenizer, ids)
    owners = [piece for piece in pieces for _ in piece.text]
    spoken = "".join(piece.text for piece in pieces)
    return [
        (plain(match.group()), owners[match.start()].first, owners[match.end() - 1].last)
        for match in WORD.finditer(spoken)
    ]

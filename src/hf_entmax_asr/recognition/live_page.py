"""What a page shows of a recording: text while it is heard, then every word with its time and the stops of its heads.

A model whose heads are monotonic is heard in a session (`model.stream`), and writes while audio comes in. Any other
model hears the whole recording first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_entmax_asr.audio import BlockResampler
from hf_entmax_asr.model.hearing import check_streamable
from hf_entmax_asr.model.long_audio import PieceRule, pieces_at_pauses
from hf_entmax_asr.model.sessions import StreamToken
from hf_entmax_asr.model.words import TimedText, joined, timed_texts
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.timed_recognition import recognise_timed
from hf_entmax_asr.recognition.transcription import Transcript

INT16_SCALE = 32768.0
LONGEST_WORD_S = 1.0  # a word whose beginning nobody told begins no earlier before its end
LONGEST_SECONDS = 1800.0  # of a recording on the page


@dataclass(frozen=True)
class HeardWord:
    """A word, and where each head stopped for the last token of it: seconds by name such as "0.3" (layer.head)."""

    word: TimedText
    stops: dict[str, float]


@dataclass(frozen=True)
class Heard:
    """A recording: its waveform (samples,) at the model's rate, and its words."""

    waveform: np.ndarray
    sampling_rate: int
    text: str
    words: tuple[HeardWord, ...]

    def transcript(self, name: str) -> Transcript:
        """As what the programs write in their forms."""
        seconds = round(len(self.waveform) / self.sampling_rate, 3)
        return Transcript(name, self.text, seconds, words=tuple(heard.word for heard in self.words))


def why_not_live(model: Any) -> str | None:
    """What keeps a model from writing while audio comes in, or None."""
    try:
        check_streamable(model)
    except ValueError as error:
        return str(error)
    return None


class Hearing:
    """One recording while it comes in."""

    def __init__(self, model: Any, processor: Any, chunk_ms: float = 640.0, pause_ms: float = 600.0):
        self.model, self.processor = model, processor
        self.rate: int = processor.feature_extractor.sampling_rate
        self.session: Any = None
        if why_not_live(model) is None:
            self.session = model.stream(processor, chunk_ms=chunk_ms, pause_ms=pause_ms)
        self._blocks: list[np.ndarray] = []
        self._resampler: BlockResampler | None = None
        self._seconds = 0.0

    @property
    def text(self) -> str:
        """All that is certain so far."""
        return self.session.text if self.session is not None else ""

    def hear(self, rate: int, samples: np.ndarray) -> str:
        """Takes the next samples, (N,) or (N, channels), 16-bit integers or floats, at any rate -> the text so far.

        Raises:
            ValueError: a recording that is too long for a page.
        """
        scale = INT16_SCALE if np.issubdtype(samples.dtype, np.integer) else 1.0
        waveform = samples.astype(np.float32) / scale
        if waveform.ndim == 2:
            waveform = waveform.mean(axis=1)
        self._seconds += len(waveform) / rate
        if self._seconds > LONGEST_SECONDS:
            raise ValueError(
                f"the recording is longer than {LONGEST_SECONDS:.0f} s, the most that this page takes; "
                "scripts/transcribe.py takes any length."
            )
        if self._resampler is None:
            self._resampler = BlockResampler(rate, self.rate)
        self._take_in(self._resampler.push(waveform))
        return self.text

    def _take_in(self, waveform: np.ndarray) -> None:
        if len(waveform):
            self._blocks.append(waveform)
            if self.session is not None:
                self.session.feed(waveform)

    def finish(self) -> Heard:
        """The recording has ended."""
        if self._resampler is not None:
            self._take_in(self._resampler.finish())
        waveform = np.concatenate(self._blocks) if self._blocks else np.zeros(0, np.float32)
        if self.session is None:
            return self._recognised(waveform)
        self.session.finish()
        words = words_of_tokens(self.model, self.processor.tokenizer, self.session.tokens)
        return Heard(waveform, self.rate, self.session.text, tuple(words))

    def _recognised(self, waveform: np.ndarray) -> Heard:
        """All at once, in pieces where it is long."""
        if len(waveform) < self.processor.feature_extractor.shortest_samples:
            return Heard(waveform, self.rate, "", ())
        pieces = list(pieces_at_pauses([waveform], self.rate, PieceRule()))
        collate = SpeechSeq2SeqCollator(self.processor)
        features = [collate([{"audio": piece}])["input_features"][0] for _, piece in pieces]
        said = recognise_timed(self.model, self.processor, features, words=True)
        words = [
            HeardWord(TimedText(w.text, first / self.rate + w.start, first / self.rate + w.end, w.confidence), {})
            for (first, _), of_piece in zip(pieces, said, strict=True)
            for w in of_piece.words or ()
        ]
        return Heard(waveform, self.rate, joined([of_piece.text for of_piece in said]), tuple(words))


def words_of_tokens(model: Any, tokenizer: Any, tokens: Sequence[StreamToken]) -> list[HeardWord]:
    """The words that the tokens of a session spell.

    A token starts and ends where the heads of the checkpoint's `word_times` stopped for it; where those are not chosen,
    the first head of the last layer that counts tells the end of each token, and the token before where it starts.
    """
    settings = getattr(model.generation_config, "word_times", None) or {}
    starts, ends = list[float](), list[float]()
    for index, token in enumerate(tokens):
        if settings.get("source") == "stops":
            behind = tokens[min(index + (settings.get("end_at") == "next"), len(tokens) - 1)]
            start = _stop(token, settings["start"]) + settings.get("start_offset_ms", 0) / 1000
            end = _stop(behind, settings["end"]) + settings.get("end_offset_ms", 0) / 1000
        else:
            end = _stop(token, None)
            start = max(ends[-1] if ends else 0.0, end - LONGEST_WORD_S)
        starts.append(max(0.0, start))
        ends.append(max(0.0, end))
    ids = [token.id for token in tokens]
    sure = [float(np.exp(token.score)) for token in tokens]
    words = timed_texts(tokenizer, ids, starts, ends, sure)
    last = _last_tokens(tokenizer, ids)
    return [HeardWord(word, stops_of(tokens[index])) for word, index in zip(words, last, strict=True)]


def _last_tokens(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The number of the last token of each word: by words whose times are numbers of tokens."""
    numbers = [float(index) for index in range(len(ids))]
    found = timed_texts(tokenizer, ids, numbers, numbers, [1.0] * len(ids))
    return [int(word.end) for word in found]


def stops_of(token: StreamToken) -> dict[str, float]:
    """Seconds at which each head that counts stopped."""
    return {
        f"{layer}.{head}": time / 1000
        for layer, of_layer in enumerate(token.head_times_ms)
        for head, time in enumerate(of_layer)
        if time is not None
    }


def _stop(token: StreamToken, head: Sequence[int] | None) -> float:
    """Where a head [layer, head] stopped, in seconds; without one, the first of the last layer that counts."""
    stops = stops_of(token)
    name = next((n for n in stops if head is not None and n == f"{head[0]}.{head[1]}"), None)
    if name is None:
        last = max((int(n.partition(".")[0]) for n in stops), default=None)
        name = next((n for n in stops if n.startswith(f"{last}.")), None)
    return token.time_ms / 1000 if name is None else stops[name]

"""Live recognition: text that is never taken back, while audio comes in.

    with model.stream(processor, chunk_ms=640) as session:
        for event in session.feed(samples):
            print(event.committed)
        print(session.finish().committed)

A token is written once every head that counts has found where to stop in the audio heard so far; otherwise the session
waits for more. So the tokens are those of `generate` for the whole audio under the same chunk mask, whatever pieces the
audio comes in. The rules of the encoder stand in `streaming.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .chunks import Chunks
from .hearing import TokenWriter, WrittenToken, check_streamable
from .lagging import Lagging, lagging
from .live_beams import BeamWriter
from .pauses import LEAD_MS, PauseRule, Pauses
from .stepping import Task, run
from .streaming import IncrementalEncoder


@dataclass(frozen=True)
class StreamToken:
    """A token that was written.

    Attributes:
        id, text: the token, and what it added to the committed text (nothing, where a character is not whole yet).
        score: its log-probability.
        time_ms: where it was heard: the farthest stop among the heads that count, in the audio.
        emitted_ms: how much audio had been heard when it was written.
        head_times_ms: by monotonic layer, where each head stopped; None for heads that do not count.
    """

    id: int
    text: str
    score: float
    time_ms: float
    emitted_ms: float
    head_times_ms: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class StreamEvent:
    """What a session has to tell.

    Attributes:
        committed: the whole text so far; each event's begins with that of the event before.
        partial: what follows it and may still change: of beams the likeliest text so far; characters that are not
            whole yet stand here as "…".
        tokens: those that are new.
        audio_ms: how much audio had been heard.
        final: whether the audio has ended.
    """

    committed: str
    partial: str
    tokens: tuple[StreamToken, ...]
    audio_ms: float
    final: bool = False


@dataclass(frozen=True)
class StreamStats:
    """How a session went so far. Delays are in audio time: what computing takes comes on top, see real_time_factor.

    Attributes:
        audio_seconds, compute_seconds, real_time_factor: heard, spent, and the ratio.
        tokens: written, the ends of utterances not counted.
        delays_ms: of each token, the audio heard when it was written (what `metrics.lagging` takes).
        first_token_delay_ms, mean_token_delay_ms, last_token_delay_ms: of the first, of all and of the last token,
            emitted_ms − time_ms; None without tokens.
        streamability: share of the tokens that were written before the audio ended; None without tokens.
        lagging: AL, LAAL, DAL (in ms) and AP of these delays over all of the audio; None without tokens.
        held_numbers: in memory between two calls, of audio, frames, keys and values.
    """

    audio_seconds: float
    compute_seconds: float
    real_time_factor: float | None
    tokens: int
    delays_ms: tuple[float, ...]
    first_token_delay_ms: float | None
    mean_token_delay_ms: float | None
    last_token_delay_ms: float | None
    streamability: float | None
    lagging: Lagging | None
    held_numbers: int


class StreamSession:
    """One stream of audio. Several may live side by side on one model, each in a thread of its own, or step together
    (`feed_together`)."""

    _recent: Tensor
    _told_partial: str

    def __init__(
        self,
        model: Any,
        processor: Any,
        chunks: Chunks,
        *,
        pause_rule: PauseRule | None = None,
        prompt: Sequence[int] = (),
        num_beams: int = 1,
    ):
        """See `EntmaxAsrGenerationMixin.stream`, which makes it."""
        check_streamable(model)
        self.model = model
        self.processor = processor
        self.chunks = chunks
        self.pause_rule = pause_rule
        self.prompt = tuple(prompt)
        self.num_beams = num_beams
        extractor = processor.feature_extractor
        self.samples_per_position = model.config.frames_per_position * extractor.hop_samples
        self._lead_samples = extractor.sampling_rate * LEAD_MS // 1000
        self.reset()

    def reset(self) -> None:
        """Forgets everything: what follows is as in a new session."""
        self._start_sample = 0  # of the utterance that is being heard, in the stream
        self._heard = 0  # samples of the stream
        self._begin_utterance()
        self._earlier = ""  # text of the utterances before
        self._tokens: list[StreamToken] = []
        self._written_early = 0
        self._seconds = 0.0
        self._finished = False

    def __enter__(self) -> "StreamSession":
        return self

    def __exit__(self, *_: object) -> None:
        self._finished = True
        self._begin_utterance()

    @property
    def text(self) -> str:
        """All that is committed."""
        return self._joined(self._committed)

    @property
    def tokens(self) -> tuple[StreamToken, ...]:
        """All that were written."""
        return tuple(self._tokens)

    @property
    def held_numbers(self) -> int:
        """In memory between two calls, of audio, frames, keys and values; what was written comes on top."""
        return self._encoder.numel + self._writer.numel + self._recent.numel()

    @property
    def sequence(self) -> list[int]:
        """Ids of the utterance that is heard, as `generate` returns them: start, prompt, text, perhaps the end."""
        return list(self._writer.sequence)

    def feed(self, samples: Any) -> list[StreamEvent]:
        """Takes the next samples, mono, of any number: floats in [-1, 1], or 16-bit integers.

        Returns:
            One event for each chunk that brought new tokens, changed the partial text, or ended an utterance with text;
            often none.

        Raises:
            ValueError: the session has finished; samples of another form; a learned table of positions has ended.
        """
        began = time.perf_counter()
        (events,) = run([self.feeding(samples)])
        self._seconds += time.perf_counter() - began
        return events

    def feeding(self, samples: Any) -> Task[list[StreamEvent]]:
        """`feed` as a task, for `run`."""
        if self._finished:
            raise ValueError("This session has finished: reset() begins anew.")
        extractor = self.processor.feature_extractor
        waveform = extractor._waveform(samples, 0) if np.size(samples) else torch.zeros(0)
        events: list[StreamEvent] = []
        self._heard += len(waveform)
        for second in waveform.split(extractor.sampling_rate):  # copies stay short
            left = second
            while (end := (yield from self._hear(left, events))) is not None:
                lead = yield from self._end_utterance(events)
                left = torch.cat([lead, left[end:]])
        return events

    def finish(self) -> StreamEvent:
        """The audio has ended: what is left is heard and written. The session then takes no more."""
        began = time.perf_counter()
        (event,) = run([self.finishing()])
        self._seconds += time.perf_counter() - began
        return event

    def finishing(self) -> Task[StreamEvent]:
        """`finish` as a task, for `run`."""
        if self._finished:
            raise ValueError("This session has finished already: reset() begins anew.")
        tokens: list[StreamToken] = []
        if self._heard > self._start_sample:
            if self._pauses is not None:
                self._pauses.end()
            tokens = yield from self._end(self._heard)
        self._finished = True
        return StreamEvent(self.text, "", tuple(tokens), self._ms(self._heard), final=True)

    async def listen(self, source: AsyncIterable[Any]) -> AsyncIterator[StreamEvent]:
        """`feed` with each piece of the source, then `finish`, in a thread, so that the event loop is never held up."""
        async for samples in source:
            for event in await asyncio.to_thread(self.feed, samples):
                yield event
        yield await asyncio.to_thread(self.finish)

    def stats(self) -> StreamStats:
        """How the session went so far."""
        seconds = self._heard / self.processor.feature_extractor.sampling_rate
        behind = [token.emitted_ms - token.time_ms for token in self._tokens]
        delays = tuple(token.emitted_ms for token in self._tokens)
        return StreamStats(
            audio_seconds=seconds,
            compute_seconds=self._seconds,
            real_time_factor=self._seconds / seconds if seconds else None,
            tokens=len(behind),
            delays_ms=delays,
            first_token_delay_ms=behind[0] if behind else None,
            mean_token_delay_ms=sum(behind) / len(behind) if behind else None,
            last_token_delay_ms=behind[-1] if behind else None,
            streamability=self._written_early / len(behind) if behind else None,
            lagging=lagging(delays, 1000 * seconds) if delays else None,
            held_numbers=self.held_numbers,
        )

    def _begin_utterance(self) -> None:
        extractor = self.processor.feature_extractor
        self._encoder = IncrementalEncoder(self.model.get_encoder(), extractor, self.chunks)
        self._writer = (
            TokenWriter(self.model, self.prompt)
            if self.num_beams == 1
            else BeamWriter(self.model, self.prompt, num_beams=self.num_beams)
        )
        self._pauses = None if self.pause_rule is None else Pauses(self.pause_rule, extractor.sampling_rate)
        self._recent = torch.zeros(0)  # the last samples, with which the utterance behind a pause begins
        self._ids: list[int] = []
        self._committed = self._held_back = self._told_partial = ""

    def _hear(self, samples: Tensor, events: list[StreamEvent]) -> Task[int | None]:
        """Takes samples of the utterance -> how many of them are still of it, if it ends among them."""
        end = None if self._pauses is None else self._pauses.hear(samples)
        for chunk in self._encoder.take(samples[:end]):
            states = yield chunk
            tokens = yield from self._take_in(states)
            partial = self._partial()
            if tokens or partial != self._told_partial:
                self._told_partial = partial
                events.append(StreamEvent(self.text, partial, tuple(tokens), self._ms(self._needed())))
        if self._pauses is not None:
            self._recent = torch.cat([self._recent, samples[:end]])[-self._lead_samples :]
        return end

    def _take_in(self, states: Tensor | None) -> Task[list[StreamToken]]:
        """The next chunk -> the tokens that it brings."""
        self._writer.hear(states, self._encoder.sounding, more=True)
        tokens = yield from self._write(self._needed())
        self._written_early += len(tokens)
        return tokens

    def _end_utterance(self, events: list[StreamEvent]) -> Task[Tensor]:
        """Writes what is left of the utterance, which ends in a pause, and begins the next one; returns the samples of
        the pause that the next one begins with."""
        assert self._pauses is not None
        end = self._start_sample + self._pauses.heard
        tokens = yield from self._end(end)
        if tokens or self._told_partial:
            events.append(StreamEvent(self.text, "", tuple(tokens), self._ms(end)))
        earlier = self.text
        lead = self._recent[len(self._recent) - min(self._lead_samples, self._pauses.quiet_samples // 2) :]
        self._start_sample = end - len(lead)
        self._begin_utterance()
        self._earlier = earlier
        return lead

    def _end(self, heard: int) -> Task[list[StreamToken]]:
        """The utterance ends here -> the tokens that were still to be written, of silence none."""
        states: list[Tensor] = []
        for chunk in self._encoder.rest():
            states.append((yield chunk))
        tokens: list[StreamToken] = []
        if self._pauses is None or not self._pauses.silent:
            self._writer.hear(torch.cat(states, 1) if states else None, self._encoder.sounding, more=False)
            tokens = yield from self._write(heard)
        self._committed, self._held_back = self._committed + self._held_back, ""
        return tokens

    def _needed(self) -> int:
        """Samples of the stream that were needed for what is encoded."""
        return self._start_sample + self._encoder.samples_for(self._encoder.positions)

    def _write(self, heard: int) -> Task[list[StreamToken]]:
        """Every token that can be written now, with `heard` samples of the stream."""
        tokens = []
        while (written := (yield from self._writer.write())) is not None:
            text = self._add_text(written.id)
            tokens.append(self._token(written, text, self._ms(heard)))
        self._tokens += tokens
        return tokens

    def _add_text(self, token: int) -> str:
        """What the token adds to the committed text of the utterance; characters that are not whole are held back."""
        self._ids.append(token)
        text = self.processor.tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = text.rstrip("\ufffd")
        if not whole.startswith(self._committed):
            return ""
        added, self._held_back = whole[len(self._committed) :], text[len(whole) :]
        self._committed = whole
        return added

    def _token(self, written: WrittenToken, text: str, emitted_ms: float) -> StreamToken:
        times = tuple(
            tuple(self._position_ms(stop) if counts else None for stop, counts in zip(layer, active, strict=True))
            for layer, active in zip(written.stops, self._writer.active, strict=True)
        )
        heard = max((time for layer in times for time in layer if time is not None), default=emitted_ms)
        return StreamToken(written.id, text, written.score, heard, emitted_ms, times)

    def _position_ms(self, position: int) -> float:
        """Centre of an encoder position in the stream."""
        extractor = self.processor.feature_extractor
        centre = position * self.samples_per_position + extractor.window_samples / 2 - extractor.samples_before
        return self._ms(self._start_sample + centre)

    def _ms(self, samples: float) -> float:
        return samples * 1000 / self.processor.feature_extractor.sampling_rate

    def _joined(self, text: str) -> str:
        return f"{self._earlier} {text}" if self._earlier and text else self._earlier + text

    def _partial(self) -> str:
        """What the likeliest text has behind the committed one."""
        pending = self._writer.pending()
        if not pending:
            return "…" if self._held_back else ""
        ids = self._ids + pending
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = text.rstrip("\ufffd")
        partial = whole[len(self._committed) :] + ("…" if whole != text else "")
        return f" {partial}" if self._earlier and partial and not self._committed else partial


def feed_together(sessions: Sequence[StreamSession], pieces: Sequence[Any]) -> list[list[StreamEvent]]:
    """`feed` of several sessions of one model, each with its next samples (perhaps none): what they have to compute at
    a time goes through the model in one pass. The events of each are those that it would have alone.

    Raises:
        ValueError: as `feed`, once the others are done; not one piece for each session, or sessions of several models.
    """
    return _run_together(sessions, [session.feeding(piece) for session, piece in zip(sessions, pieces, strict=True)])


def finish_together(sessions: Sequence[StreamSession]) -> list[StreamEvent]:
    """`finish` of several sessions of one model, likewise."""
    return _run_together(sessions, [session.finishing() for session in sessions])


def _run_together(sessions: Sequence[StreamSession], tasks: list[Task[Any]]) -> list[Any]:
    if len({id(session.model) for session in sessions}) > 1 or len({id(session) for session in sessions}) < len(tasks):
        raise ValueError("sessions that step together are different ones of one model.")
    began = time.perf_counter()
    results = run(tasks)
    for session in sessions:  # each waited for all
        session._seconds += time.perf_counter() - began
    return results

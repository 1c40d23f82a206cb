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
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from .chunks import Chunks
from .hearing import TokenWriter, WrittenToken, check_streamable
from .lagging import lagging
from .live_beams import BeamWriter
from .pauses import LEAD_MS, PauseRule, Pauses
from .stepping import Task, run
from .stream_events import StreamEvent, StreamStats, StreamToken
from .streaming import IncrementalEncoder


class StreamSession:
    """One stream of audio. Several may live side by side on one model, each in a thread of its own, or step together
    (`feed_together`)."""

    _audio: Tensor
    _last_stops: list[list[int]] | None
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
        logits_processor: Sequence[LogitsProcessor] = (),
    ):
        """See `EntmaxAsrGenerationMixin.stream`, which makes it."""
        check_streamable(model)
        self.model = model
        self.processor = processor
        self.chunks = chunks
        self.pause_rule = pause_rule
        self.prompt = tuple(prompt)
        self.num_beams = num_beams
        self.logits_processor = tuple(logits_processor)
        extractor = processor.feature_extractor
        self.samples_per_position = model.config.frames_per_position * extractor.hop_samples
        self._lead_samples = extractor.sampling_rate * LEAD_MS // 1000
        self.reset()

    def reset(self) -> None:
        """Forgets everything: what follows is as in a new session."""
        self._start_sample = 0  # of the utterance that is being heard, in the stream
        self._heard = 0  # samples of the stream
        self._heard_before = 0  # when this utterance began
        self._begin_utterance()
        self._earlier = ""  # text of the utterances before
        self._tokens: list[StreamToken] = []
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
        return self._encoder.numel + self._writer.numel + self._audio.numel()

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
            yield from self._hear(second, events)
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
        events: list[StreamEvent] = []
        tokens: list[StreamToken] = []
        if self._heard > self._start_sample:
            if self._pauses is not None:
                self._pauses.end()
            tokens += yield from self._end(self._heard)
            while (start := self._next_start(self._heard - self._start_sample)) is not None:
                yield from self._hear(self._begin_next(start, self._heard), events)
                tokens += [token for event in events for token in event.tokens]
                tokens += yield from self._end(self._heard)
                events.clear()
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
        delays, ended = tuple(token.emitted_ms for token in self._tokens), self._ms(self._heard)
        return StreamStats(
            audio_seconds=seconds,
            compute_seconds=self._seconds,
            real_time_factor=self._seconds / seconds if seconds else None,
            tokens=len(behind),
            delays_ms=delays,
            first_token_delay_ms=behind[0] if behind else None,
            mean_token_delay_ms=sum(behind) / len(behind) if behind else None,
            last_token_delay_ms=behind[-1] if behind else None,
            streamability=sum(delay < ended for delay in delays) / len(delays) if delays else None,
            lagging=lagging(delays, 1000 * seconds) if delays else None,
            held_numbers=self.held_numbers,
        )

    def _begin_utterance(self) -> None:
        extractor = self.processor.feature_extractor
        self._encoder = IncrementalEncoder(self.model.get_encoder(), extractor, self.chunks)
        self._writer = (
            TokenWriter(self.model, self.prompt, processors=self.logits_processor)
            if self.num_beams == 1
            else BeamWriter(self.model, self.prompt, num_beams=self.num_beams, processors=self.logits_processor)
        )
        self._pauses = None if self.pause_rule is None else Pauses(self.pause_rule, extractor.sampling_rate)
        self._audio = torch.zeros(0)  # of the utterance, where others may begin in it
        self._last_stops: list[list[int]] | None = None  # of the heads, for the token that was written last
        self._ids: list[int] = []
        self._committed = self._held_back = self._told_partial = ""

    def _hear(self, samples: Tensor, events: list[StreamEvent]) -> Task[None]:
        """Takes the next samples: those of this utterance, and of those that begin behind its end."""
        left: Tensor | None = samples
        while left is not None:
            left = yield from self._hear_utterance(left, events)

    def _hear_utterance(self, samples: Tensor, events: list[StreamEvent]) -> Task[Tensor | None]:
        """Takes samples of the utterance -> if it ends among them, those that the next one begins with."""
        end = None
        if self._pauses is not None:
            end = self._pauses.hear(samples)
            self._audio = torch.cat([self._audio, samples[:end]])
        for chunk in self._encoder.take(samples[:end]):
            states = yield chunk
            tokens = yield from self._take_in(states)
            partial = self._partial()
            if tokens or partial != self._told_partial:
                self._told_partial = partial
                events.append(StreamEvent(self.text, partial, tuple(tokens), self._ms(self._needed())))
            if (start := self._next_start(self._encoder.samples_for(self._encoder.positions))) is not None:
                behind = samples[:0] if end is None else samples[end:]
                return torch.cat([self._begin_next(start, self._needed()), behind])
        if end is None:
            return None
        assert self._pauses is not None
        heard = self._start_sample + self._pauses.heard
        tokens = yield from self._end(heard)
        if tokens or self._told_partial:
            events.append(StreamEvent(self.text, "", tuple(tokens), self._ms(heard)))
        start = self._next_start(self._pauses.heard)
        if start is None:
            start = len(self._audio) - min(self._lead_samples, self._pauses.quiet_samples // 2)
        return torch.cat([self._begin_next(start, heard), samples[end:]])

    def _next_start(self, heard: int) -> int | None:
        """Where speech goes on behind the end that the model has found, among `heard` samples of the utterance."""
        last_stops = self._last_stops or self._writer.end_stops  # the latter where nothing was written
        if self._pauses is None or not self._writer.found_end or last_stops is None:
            return None
        stops = sorted(stop for layer in last_stops for stop in layer)
        return self._pauses.speech_behind(stops[len(stops) // 2] * self.samples_per_position, heard)

    def _begin_next(self, start: int, heard: int) -> Tensor:
        """The next utterance begins at a sample of this one, with `heard` of the stream -> what is known of it."""
        self._end_text()
        known, earlier = self._audio[start:], self.text
        self._start_sample += start
        self._heard_before = heard
        self._begin_utterance()
        self._earlier = earlier
        return known

    def _take_in(self, states: Tensor | None) -> Task[list[StreamToken]]:
        """The next chunk -> the tokens that it brings."""
        self._writer.hear(states, self._encoder.sounding, more=True)
        return (yield from self._write(self._needed()))

    def _end(self, heard: int) -> Task[list[StreamToken]]:
        """The utterance ends here -> the tokens that were still to be written, of silence none."""
        states: list[Any] = []
        for chunk in self._encoder.rest():
            states.append((yield chunk))
        tokens: list[StreamToken] = []
        if self._pauses is None or not self._pauses.silent:
            self._writer.hear(torch.cat(states, 1) if states else None, self._encoder.sounding, more=False)
            tokens = yield from self._write(heard)
        self._end_text()
        return tokens

    def _end_text(self) -> None:
        """A character that is not whole stays so."""
        self._committed, self._held_back = self._committed + self._held_back, ""

    def _needed(self) -> int:
        """Samples of the stream that had been heard when what is encoded could be."""
        return max(self._heard_before, self._start_sample + self._encoder.samples_for(self._encoder.positions))

    def _write(self, heard: int) -> Task[list[StreamToken]]:
        """Every token that can be written now, with `heard` samples of the stream."""
        tokens = []
        while (written := (yield from self._writer.write())) is not None:
            self._last_stops = written.stops
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

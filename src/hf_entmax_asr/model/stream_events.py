"""What a live session tells: tokens, events, and how it went."""

from dataclasses import dataclass

from .lagging import Lagging


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

"""Where to cut a long recording: in its pauses, so that no word is cut, and without ever holding all of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .pauses import SILENCE_DB

HOP_S = 0.01
SMOOTHED_S = 0.2  # a stretch without pauses is cut where it is quiet for so long
EARLIEST_CUT = 0.5  # as a share of the longest piece: without pauses no piece is shorter, but the last
BELOW_SPEECH_DB = 40.0  # what lies so far below the loud parts of speech is a pause
NEAR_NOISE = 0.2  # and so is what lies no further up the way from background noise to speech


@dataclass(frozen=True)
class PieceRule:
    """Recordings above `longest_seconds` are cut wherever it is quiet for `pause_seconds`; of the pause, each piece
    keeps `margin_seconds` before and behind its speech. Where no pause comes for `longest_seconds`, the quietest moment
    of the second half will do."""

    longest_seconds: float = 30.0
    pause_seconds: float = 0.3
    margin_seconds: float = 0.15

    def __post_init__(self) -> None:
        if not self.longest_seconds >= 1:
            raise ValueError(
                f"pieces of {self.longest_seconds} s are too short to recognise; give at least 1, better 20 to 30."
            )
        if not (self.pause_seconds >= 5 * HOP_S and 0 <= 2 * self.margin_seconds <= self.pause_seconds):
            raise ValueError(
                f"pause_seconds = {self.pause_seconds} must be at least {5 * HOP_S}, and margin_seconds = "
                f"{self.margin_seconds} at most half of it, so that pieces do not overlap."
            )


def pieces_at_pauses(
    blocks: Iterable[np.ndarray], sampling_rate: int, rule: PieceRule | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks (samples,) of one recording, however it was cut into them -> (first sample, waveform) of its pieces.

    A recording of at most `longest_seconds` is one piece, as it is. No more is held than a longest piece and a block.
    Silence between pieces is in none of them; where nothing is above -55 dB of full scale there is no piece.
    """
    rule = PieceRule() if rule is None else rule
    hop = int(HOP_S * sampling_rate)
    longest = int(rule.longest_seconds * sampling_rate) // hop * hop
    held, start, whole = np.zeros(0, np.float32), 0, True
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) > longest:
            whole = False
            found, following = _next_piece(held[:longest], hop, rule, more=True)
            if found is not None:
                yield start + found[0], held[slice(*found)].copy()
            start, held = start + following, held[following:]
    if whole:
        yield 0, held
        return
    while len(held):
        found, following = _next_piece(held, hop, rule, more=False)
        if found is not None:
            yield start + found[0], held[slice(*found)].copy()
        start, held = start + following, held[following:]


def _next_piece(window: np.ndarray, hop: int, rule: PieceRule, more: bool) -> tuple[tuple[int, int] | None, int]:
    """(start, end) in samples of the first piece in what is left (samples,) of a recording, cut off after the longest
    that a piece can be where there is `more` of it; None where nothing sounds. And where the rest begins."""
    levels = _levels_db(window, hop)
    loud = np.flatnonzero(levels >= _threshold_db(levels))
    margin, pause = round(rule.margin_seconds / HOP_S), round(rule.pause_seconds / HOP_S)
    if not len(loud):
        return None, max(hop, len(window) - margin * hop) if more else len(window)
    first = max(0, int(loud[0]) - margin)
    if more and first > 0:
        return None, first * hop  # so that the longest piece begins with speech
    pauses = np.flatnonzero(np.diff(loud) > pause)
    if len(pauses):
        last, following = int(loud[pauses[0]]), int(loud[pauses[0] + 1]) - margin
    elif not more:
        last, following = int(loud[-1]), -(-len(window) // hop)
    elif len(levels) - 1 - int(loud[-1]) >= pause:
        last, following = int(loud[-1]), len(levels) - margin
    else:
        last = following = _quietest(levels)
        return (first * hop, last * hop), following * hop
    return (first * hop, min(len(window), (last + 1 + margin) * hop)), min(len(window), following * hop)


def _levels_db(waveform: np.ndarray, hop: int) -> np.ndarray:
    """(samples,) -> (10 ms steps,), the last one perhaps of fewer samples."""
    padded = np.pad(waveform.astype(np.float64), (0, -len(waveform) % hop))
    power = np.square(padded).reshape(-1, hop).mean(1)
    return 10 * np.log10(np.maximum(power, 1e-12))


def _threshold_db(levels: np.ndarray) -> float:
    """Below it lie pauses: far below the loudest, or near the background noise, or too quiet to be speech."""
    noise, speech = np.quantile(levels, (0.02, 0.95))
    return float(max(speech - BELOW_SPEECH_DB, noise + NEAR_NOISE * (speech - noise), SILENCE_DB))


def _quietest(levels: np.ndarray) -> int:
    """The middle of the quietest `SMOOTHED_S` of the second half, in steps."""
    first, width = int(EARLIEST_CUT * len(levels)), max(1, round(SMOOTHED_S / HOP_S))
    power = 10 ** (levels[first:] / 10)
    return first + int(np.convolve(power, np.ones(width), mode="valid").argmin()) + width // 2

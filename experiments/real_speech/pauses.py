"""Cuts a long recording between its lines: at pauses of the speech near the times at which the lines should end.

Such times come from subtitles and are off by some tenths of a second, in the middle of words. A pause nearby is where
the line ends; where there is none, the lines are not parted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FRAMES_PER_SECOND = 100
REACH = 0.8  # seconds between a time and the pause that belongs to it
SHORTEST = 0.15  # seconds of a pause
LONG = 0.5  # seconds; of two longer pauses the nearer is preferred
DISTANCE_COST = 0.3  # seconds that a pause must be longer to be preferred to one a second nearer
QUIET, LOUD = 5, 90  # percentiles of a recording's levels that stand for its silence and its speech
THRESHOLD = 0.3  # of the way from silence to speech: what is below is a pause


@dataclass(frozen=True)
class Pause:
    """A stretch without speech, in seconds."""

    start: float
    end: float

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


def levels(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Loudness in dB, a value a hundredth of a second; (samples,) -> (frames,)."""
    edges = np.arange(0, len(waveform) * FRAMES_PER_SECOND // sampling_rate + 1) * sampling_rate // FRAMES_PER_SECOND
    if len(edges) < 2:
        return np.zeros(0)
    energy = np.add.reduceat(np.square(waveform[: edges[-1]], dtype=np.float64), edges[:-1]) / np.diff(edges)
    return 10 * np.log10(np.convolve(energy, np.ones(3) / 3, "same") + 1e-8)


def find_pauses(waveform: np.ndarray, sampling_rate: int) -> list[Pause]:
    """The pauses between the first and the last sound of a recording, in order."""
    db = levels(waveform, sampling_rate)
    if not len(db):
        return []
    quiet, loud = np.percentile(db, (QUIET, LOUD))
    below = db < quiet + THRESHOLD * (loud - quiet)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], below.astype(np.int8), [0])))) / FRAMES_PER_SECOND
    found = [Pause(float(start), float(end)) for start, end in edges.reshape(-1, 2)]
    inside = (pause for pause in found if pause.start > 0 and pause.end < len(db) / FRAMES_PER_SECOND)
    return [pause for pause in inside if pause.end - pause.start >= SHORTEST - 1e-9]


def cut_times(pauses: Sequence[Pause], times: Sequence[float]) -> list[float | None]:
    """Where to cut for each time, in increasing order; None where no pause is near that no other time needs.

    Of all ways to give the times pauses of their own, in order, it is the one with the most, longest and nearest
    pauses, weighed against each other.
    """
    # By the pause given last: the worth of the best way, and the cuts.
    ways: dict[int, tuple[float, list[float | None]]] = {-1: (0.0, [])}
    for time in times:
        near = [n for n, pause in enumerate(pauses) if pause.start - REACH < time < pause.end + REACH]
        following = {last: (worth, [*cuts, None]) for last, (worth, cuts) in ways.items()}
        for number in near:
            before = [way for last, way in ways.items() if last < number]
            worth, cuts = max(before, key=lambda way: way[0])
            found = worth + _worth(pauses[number], time)
            if number not in following or found > following[number][0]:
                following[number] = (found, [*cuts, pauses[number].middle])
        ways = following
    return max(ways.values(), key=lambda way: way[0])[1]


def _worth(pause: Pause, time: float) -> float:
    """Of a pause as the end of a line: from 0.9 for a short one far away to 1.5 for a long one there."""
    distance = max(0.0, pause.start - time, time - pause.end)
    return 1.0 + min(pause.end - pause.start, LONG) - DISTANCE_COST * distance

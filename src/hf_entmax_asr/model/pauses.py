"""Where a stream may be cut into utterances: at pauses, found by the level of the audio."""

import math
from collections import deque
from dataclasses import dataclass

from torch import Tensor

LEVEL_MS = 10
SILENCE_DB = -55.0  # below full scale: nothing that quiet is speech
BELOW_LOUDEST_DB = 30.0  # what lies that far below the loudest of an utterance is a pause in it


@dataclass(frozen=True)
class PauseRule:
    """An utterance ends with the chunk behind which it has been quiet for `pause_ms`.

    The nearer it comes to `longest_ms`, the shorter a pause will do; there it is cut without one.
    """

    pause_ms: float = 600.0
    longest_ms: float = 25_000.0

    def __post_init__(self) -> None:
        if not self.pause_ms >= LEVEL_MS or not self.longest_ms > self.pause_ms:
            raise ValueError(
                f"pause_ms = {self.pause_ms} must be at least {LEVEL_MS}, and longest_ms = {self.longest_ms} above it."
            )

    def quiet_ms(self, heard_ms: float) -> float:
        """How long a pause must be once so much of an utterance has been heard: all of `pause_ms` in its first half,
        less and less in the second."""
        left = 2 * (1 - heard_ms / self.longest_ms)
        return self.pause_ms * min(1.0, max(0.0, left))


class Pauses:
    """The levels of one utterance as far as the rule needs them."""

    def __init__(self, rule: PauseRule, sampling_rate: int):
        self.rule = rule
        self.step = sampling_rate * LEVEL_MS // 1000
        self.heard_ms = 0.0
        self.loudest_db = -math.inf
        self._levels_db: deque[float] = deque(maxlen=math.ceil(rule.pause_ms / LEVEL_MS))

    @property
    def silent(self) -> bool:
        """Whether nothing has been heard that could be speech."""
        return self.loudest_db < SILENCE_DB

    def hear(self, samples: Tensor) -> None:
        """(N,) of the next chunk, in [-1, 1]."""
        for piece in samples.split(self.step):
            power = float(piece.square().mean())
            self._levels_db.append(10 * math.log10(power) if power > 0 else -math.inf)
        self.heard_ms += len(samples) * LEVEL_MS / self.step
        self.loudest_db = max(self.loudest_db, *self._levels_db)

    def ends(self, next_ms: float) -> bool:
        """Whether the utterance ends here; `next_ms` is how much would be heard before the next answer."""
        if self.heard_ms + next_ms > self.rule.longest_ms:
            return True
        needed = max(1, math.ceil(self.rule.quiet_ms(self.heard_ms) / LEVEL_MS))
        if len(self._levels_db) < needed:
            return False
        quiet_db = max(self.loudest_db - BELOW_LOUDEST_DB, SILENCE_DB)
        return all(level < quiet_db for level in list(self._levels_db)[-needed:])

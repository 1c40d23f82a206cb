"""Where a stream may be cut into utterances: at pauses, found by the level of the audio."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEVEL_MS = 10
SILENCE_DB = -55.0  # below full scale: nothing that quiet is speech
BELOW_LOUDEST_DB = 30.0  # what lies that far below the loudest of an utterance is a pause in it
LEAD_MS = 200  # the next utterance begins so long before the end of the pause, if it has been quiet for twice as long
GAP_MS = 1000  # behind its last token, within which the end of a sentence is looked for that no pause follows
SOUND_MS = 150  # less than that is no word


@dataclass(frozen=True)
class PauseRule:
    """An utterance ends as soon as it has been quiet for `pause_ms`.

    In the second half of `longest_ms` shorter and shorter pauses will do; there it is cut without one.
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
    """The levels of one utterance, every 10 ms, as far as the rule needs them."""

    def __init__(self, rule: PauseRule, sampling_rate: int):
        self.rule = rule
        self.step = sampling_rate * LEVEL_MS // 1000
        self.heard = 0  # samples
        self.loudest_db = -math.inf
        self._levels_db: list[float] = []
        self._waiting = torch.zeros(0)  # less than a step

    @property
    def silent(self) -> bool:
        """Whether nothing has been heard that could be speech."""
        return self.loudest_db < SILENCE_DB

    @property
    def quiet_samples(self) -> int:
        """How long it has been quiet."""
        quiet = itertools.takewhile(lambda level: level < self._quiet_db, reversed(self._levels_db))
        return self.step * sum(1 for _ in quiet)

    @property
    def _quiet_db(self) -> float:
        """Below it lie pauses."""
        return max(self.loudest_db - BELOW_LOUDEST_DB, SILENCE_DB)

    def speech_behind(self, first: int, last: int) -> int | None:
        """Where speech begins anew among the samples `first` to `last`: at the quietest place behind `first` (and not
        where the utterance itself begins), if sound enough for a word follows."""
        begin = max(first // self.step, SOUND_MS // LEVEL_MS)
        levels = self._levels_db[begin : last // self.step]
        if not levels:
            return None
        window = levels[: GAP_MS // LEVEL_MS]
        gap = min(range(len(window)), key=window.__getitem__)
        sound = sum(level >= self._quiet_db for level in levels[gap:])
        return (begin + gap) * self.step if sound * LEVEL_MS >= SOUND_MS else None

    def hear(self, samples: Tensor) -> int | None:
        """The next samples (N,), in [-1, 1] -> how many of them are still of this utterance, if it ends among them."""
        begun = len(self._waiting)
        audio = torch.cat([self._waiting, samples])
        steps = audio[: len(audio) // self.step * self.step].view(-1, self.step)
        for index, power in enumerate(steps.square().mean(1).tolist()):
            if self._ends_behind(power):
                return max(0, (index + 1) * self.step - begun)
        self._waiting = audio[steps.numel() :]
        return None

    def end(self) -> None:
        """The audio has ended: what is no whole step counts too."""
        if len(self._waiting):
            self._ends_behind(float(self._waiting.square().mean()))

    def _ends_behind(self, power: float) -> bool:
        level = 10 * math.log10(power) if power > 0 else -math.inf
        self.heard += self.step
        self.loudest_db = max(self.loudest_db, level)
        self._levels_db.append(level)
        heard_ms = self.heard * LEVEL_MS / self.step
        if heard_ms >= self.rule.longest_ms:
            return True
        needed = max(1, math.ceil(self.rule.quiet_ms(heard_ms) / LEVEL_MS))
        return self.quiet_samples >= needed * self.step

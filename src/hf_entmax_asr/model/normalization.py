"""What is left to do to log-mel frames once they are computed, as functions that take a recording piece by piece.

Each is called with the next frames (T, F) of one recording and gives them back normalised, float32; pieces of any
length give what the whole gives. What needs the whole recording first has no such form and stands in the feature
extractor.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Normalizer = Callable[[Tensor], Tensor]

STD_FLOOR = 1e-5  # a bin that never moves in an utterance becomes 0, not 0 / 0
PRIOR_FRAMES = 100  # so much the stored statistics count beside the frames heard so far: one second
USUAL_MAXIMUM = 1.5  # log10 of power, of a recording of speech at a usual level
STEADY_FRAMES = 95  # of a second, but for the window at its end; in less, a vowel may be all there is
LEVEL_FRAMES = 10  # over which the level is taken
STEADY_SHARE = 0.09
RANGE = 8.0  # decades of power below the maximum, where Whisper's features are cut off


def unchanged(features: Tensor) -> Tensor:
    """No normalisation."""
    return features


class GlobalMoments:
    """Mean and variance normalisation by stored statistics; nothing gets below `lowest`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], lowest: float = -math.inf):
        self.mean, self.std, self.lowest = torch.tensor(mean), torch.tensor(std).clamp(min=STD_FLOOR), lowest

    def __call__(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.std).float().clamp(min=self.lowest)


class RunningMoments:
    """Mean and variance of the frames up to and including each one, beside `PRIOR_FRAMES` of the stored statistics;
    nothing gets below `lowest`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], lowest: float = -math.inf):
        self.count, self.lowest = PRIOR_FRAMES, lowest
        start = torch.tensor(mean, dtype=torch.float64)
        self.total = self.count * start
        self.squares = self.count * (start.square() + torch.tensor(std, dtype=torch.float64).square())

    def __call__(self, features: Tensor) -> Tensor:
        if not len(features):
            return features
        x = features.double()
        count = self.count + torch.arange(1, len(x) + 1, dtype=torch.float64).unsqueeze(1)  # (T, 1)
        total, squares = self.total + x.cumsum(0), self.squares + x.square().cumsum(0)  # (T, F)
        self.count, self.total, self.squares = self.count + len(x), total[-1], squares[-1]
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=STD_FLOOR)
        return ((x - mean) / std).float().clamp(min=self.lowest)


def is_steady(features: Tensor) -> bool:
    """Whether a second or more of logarithmic frames (T, F) is one steady sound, such as noise or the hum of mains.

    The level, a mean over bins and a tenth of a second, moves by less than 9 % of what the single bins move (standard
    deviations over time). Of white, pink and brown noise it moves by 4 to 6 %, of hum by 0; of speech by 32 % and more,
    and by 12 % and more in white noise of the same power (three corpora, 350 clips of four casts and a dozen rooms).
    """
    if len(features) < STEADY_FRAMES:
        return False
    inner = features[3:-3].double()  # the first and the last frames may reach beyond the recording
    single = inner.var(dim=0).mean().sqrt()
    level = inner.mean(dim=1).unfold(0, LEVEL_FRAMES, 1).mean(dim=1)
    return bool(level.std() < STEADY_SHARE * single.clamp(min=0.01))


def scaled_log_mel(features: Tensor, maximum: Tensor) -> Tensor:
    """log10 of the mel spectrum (T, F), and a maximum that broadcasts to it -> about [-1, 1]: cut off 8 decades below
    the maximum, then (x + 4) / 4 (Radford et al. 2022)."""
    return (torch.maximum(features, maximum - RANGE) + 4) / 4


class RunningMaximum:
    """Whisper's scaling by the highest value of the frames up to and including each one, at least `USUAL_MAXIMUM`.

    Only what lies 8 decades below depends on it. From the usual maximum on, the silence before the first word is cut
    off about where the whole utterance's maximum would cut it.
    """

    def __init__(self) -> None:
        self.maximum = torch.tensor(USUAL_MAXIMUM)

    def __call__(self, features: Tensor) -> Tensor:
        if not len(features):
            return features
        maxima = features.amax(1).cummax(0).values.clamp(min=float(self.maximum))  # (T,)
        self.maximum = maxima[-1]
        return scaled_log_mel(features, maxima.unsqueeze(1))

"""One sampling rate to another, by a windowed sinc.

Every new sample is a Kaiser-windowed sinc sum over the old ones (Smith, "Digital audio resampling", CCRMA 2002). The
pass band ends at 94 % of the lower Nyquist frequency and aliases stay about 90 dB below; samples beyond the ends count
as 0.
"""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000  # beyond these a header is wrong rather than the recording odd

CUTOFF = 0.97  # of the lower Nyquist frequency; half of the transition band is 3 %
ZERO_CROSSINGS = 96  # of the sinc, on each side
KAISER_BETA = 9.0
LARGEST_BANK = 2**20  # weights; 11025 to 16000 Hz has 405,120 of them, 44099 to 16000 Hz would have 7e8
TABLE_STEPS = 512  # of the lower rate's sampling interval; interpolating between them errs by less than 2e-6
WEIGHTS_AT_ONCE = 2**18


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample a waveform (samples,) from one rate to another (Hz): ceil(samples * to / from) samples, float32.

    Raises ValueError for rates outside 1 to 768 kHz.
    """
    check_sampling_rate(from_rate)
    check_sampling_rate(to_rate)
    return resample_by_ratio(waveform, from_rate, to_rate)


def check_sampling_rate(rate: int) -> None:
    """Raise ValueError for a rate (Hz) that no recording has."""
    if not LOWEST_RATE_HZ <= rate <= HIGHEST_RATE_HZ:
        raise ValueError(
            f"a sampling rate of {rate} Hz is not between {LOWEST_RATE_HZ:,} and {HIGHEST_RATE_HZ:,} Hz; where a file "
            "has it, its header is wrong: write the file again with the rate it was recorded at"
        )


def resample_by_ratio(waveform: np.ndarray, old: int, new: int) -> np.ndarray:
    """Turn every `old` samples of a waveform (samples,) into `new` ones: ceil(samples * new / old) samples, float32.

    Beside the waveforms themselves this takes some megabytes, whatever the ratio. Raises ValueError for a ratio that is
    not positive.
    """
    if old <= 0 or new <= 0:
        raise ValueError(f"every {old} samples cannot become {new}: both must be positive")
    waveform = np.asarray(waveform, np.float32)
    common = math.gcd(old, new)
    old, new = old // common, new // common
    if old == new:
        return waveform
    if new * (old + 2 * _reach(old, new)) <= LARGEST_BANK:
        return _resample_by_bank(waveform, old, new)
    return _resample_by_table(waveform, old, new)


class BlockResampler:
    """`resample` for a waveform that comes in blocks: what it gives back, put together, is what `resample` gives of the
    whole. It holds no more than a block and some milliseconds."""

    def __init__(self, from_rate: int, to_rate: int):
        """Raises ValueError for rates outside 1 to 768 kHz."""
        check_sampling_rate(from_rate)
        check_sampling_rate(to_rate)
        common = math.gcd(from_rate, to_rate)
        self.old, self.new = from_rate // common, to_rate // common
        self._around = -(-_reach(self.old, self.new) // self.old)  # periods of `old` samples that an edge is made of
        self._held = np.zeros(0, np.float32)
        self._before = 0  # periods of what is held that have been resampled already

    def push(self, block: np.ndarray) -> np.ndarray:
        """The next block (samples,) -> as much of the new waveform as is known by it."""
        if self.old == self.new:
            return np.asarray(block, np.float32)
        self._held = np.concatenate([self._held, block])
        periods = len(self._held) // self.old - self._around  # that have enough behind them
        if periods <= self._before:
            return np.zeros(0, np.float32)
        known = resample_by_ratio(self._held[: (periods + self._around) * self.old], self.old, self.new)
        found = known[self._before * self.new : periods * self.new]
        kept = max(0, periods - self._around)
        self._held, self._before = self._held[kept * self.old :], periods - kept
        return found

    def finish(self) -> np.ndarray:
        """The rest, behind the last block."""
        rest, self._held = self._held, np.zeros(0, np.float32)
        return resample_by_ratio(rest, self.old, self.new)[self._before * self.new :] if len(rest) else rest


def resample_blocks(blocks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """Blocks (samples,) of a waveform that follow each other, at another rate (see `BlockResampler`)."""
    resampler = BlockResampler(from_rate, to_rate)
    for block in blocks:
        yield resampler.push(block)
    yield resampler.finish()


def _reach(old: int, new: int) -> int:
    """How many old samples on each side a new one is made of, at most."""
    return math.ceil(ZERO_CROSSINGS / min(1.0, new / old))


def _kernel(distance: np.ndarray, old: int, new: int) -> np.ndarray:
    """The weight of an old sample at this distance from the new one, in old samples."""
    scale = min(1.0, new / old)  # of the lower rate over the old one
    inside = np.clip(1 - (distance * scale / ZERO_CROSSINGS) ** 2, 0, None)
    window = np.i0(KAISER_BETA * np.sqrt(inside)) / np.i0(KAISER_BETA) * (inside > 0)
    return CUTOFF * scale * np.sinc(CUTOFF * scale * distance) * window


def _resample_by_bank(waveform: np.ndarray, old: int, new: int) -> np.ndarray:
    """With one exact kernel for each place that a new sample can have between two old ones."""
    import torch

    kernels = torch.from_numpy(_kernel_bank(old, new))  # (new, 1, taps)
    reach = (kernels.shape[-1] - old) // 2
    padded = torch.nn.functional.pad(torch.tensor(waveform), (reach, reach + old))
    blocks = torch.nn.functional.conv1d(padded[None, None], kernels, stride=old)  # (1, new, blocks)
    return blocks[0].T.reshape(-1)[: -(-len(waveform) * new // old)].numpy()


@lru_cache(maxsize=8)
def _kernel_bank(old: int, new: int) -> np.ndarray:
    """(new, 1, taps): row p weighs the old samples around time p * old / new."""
    reach = _reach(old, new)
    taps = np.arange(-reach, reach + old)
    return _kernel(taps - np.arange(new)[:, None] * old / new, old, new).astype(np.float32)[:, None, :]


def _resample_by_table(waveform: np.ndarray, old: int, new: int) -> np.ndarray:
    """With kernels at evenly spaced places between two old samples, and linear interpolation from one to the next."""
    table = _kernel_table(old, new)  # (steps + 1, taps)
    steps, taps = len(table) - 1, table.shape[1]
    reach = taps // 2
    padded = np.concatenate([np.zeros(reach - 1, np.float32), waveform, np.zeros(reach, np.float32)])
    result = np.empty(-(-len(waveform) * new // old), np.float32)
    if not len(result):
        return result
    around = np.lib.stride_tricks.sliding_window_view(padded, taps)  # (samples, taps), a view
    rows = max(1, WEIGHTS_AT_ONCE // taps)
    for start in range(0, len(result), rows):
        # A new sample's time in old ones is before + (step + share) / steps, its parts exact.
        before, rest = np.divmod(np.arange(start, min(start + rows, len(result)), dtype=np.int64) * old, new)
        step, share = np.divmod(rest * steps, new)
        samples = around[before]  # (rows, taps)
        lower = np.einsum("nt,nt->n", samples, table[step])
        upper = np.einsum("nt,nt->n", samples, table[step + 1])
        result[start : start + rows] = lower + (share / new) * (upper - lower)
    return result


@lru_cache(maxsize=8)
def _kernel_table(old: int, new: int) -> np.ndarray:
    """(steps + 1, taps): row s weighs the old samples 1 - reach to reach around time s / steps.

    The wider the kernels, the smoother: the size of the table is about the same for every ratio.
    """
    reach = _reach(old, new)
    steps = math.ceil(TABLE_STEPS * min(1.0, new / old))
    distance = np.arange(1 - reach, reach + 1) - np.arange(steps + 1)[:, None] / steps
    return _kernel(distance, old, new).astype(np.float32)

"""How far text lags behind speech: from the delays of tokens, their true ends, and the stops of monotonic heads.

A delay is how much of the source had been read when a token was written, in any unit that the source's length has too
(milliseconds, seconds, frames). The lagging measures, which live sessions report too, stand in `model/lagging.py`.
"""

from collections.abc import Sequence

from torch import Tensor

from hf_entmax_asr.model.lagging import Lagging, lagging

__all__ = [
    "Lagging",
    "boundary_coverage",
    "first_token_delay",
    "lagging",
    "last_token_delay",
    "streamability",
    "token_emission_delays",
]


def token_emission_delays(emitted: Sequence[float], ends: Sequence[float]) -> list[float]:
    """How long after its true end each token (or word) was written; below 0 where it was written before.

    Raises:
        ValueError: not one end for each token.
    """
    if len(emitted) != len(ends):
        raise ValueError(f"{len(emitted)} tokens were written but {len(ends)} ends are given: pair them first.")
    return [written - end for written, end in zip(emitted, ends, strict=True)]


def first_token_delay(emitted: Sequence[float], speech_start: float) -> float:
    """From the first sound of speech to the first token.

    Raises:
        ValueError: no token was written.
    """
    return _written(emitted)[0] - speech_start


def last_token_delay(emitted: Sequence[float], speech_end: float) -> float:
    """From the last sound of speech to the last token.

    Raises:
        ValueError: no token was written.
    """
    return _written(emitted)[-1] - speech_end


def _written(emitted: Sequence[float]) -> Sequence[float]:
    if not emitted:
        raise ValueError("no token was written, so there is no first or last one; leave the utterance out.")
    return emitted


def boundary_coverage(stops: Sequence[Tensor], positions: Sequence[int]) -> float:
    """Share of the stops that heads found by themselves, before the last position (Inaguma et al. 2020, 2005.09394).

    Args:
        stops: per utterance (N, U), where each of N heads stopped for each token, in encoder positions. The last token,
            which ends the text, is left out: to wait for the end is right there.
        positions: encoder positions of each utterance.

    Raises:
        ValueError: different numbers of utterances, or not one stop before a last token.
    """
    found = _found(stops, positions)
    counted = sum(each.numel() for each in found)
    if counted == 0:
        raise ValueError("there is no token in front of the last one of any utterance, so no stop to judge by.")
    return sum(int(each.sum()) for each in found) / counted


def streamability(stops: Sequence[Tensor], positions: Sequence[int]) -> float:
    """Share of the utterances whose whole text was written before the audio's end: no head waited for it.

    Arguments and errors as in `boundary_coverage`.
    """
    found = _found(stops, positions)
    if not found:
        raise ValueError("there are no utterances.")
    return sum(bool(each.all()) for each in found) / len(found)


def _found(stops: Sequence[Tensor], positions: Sequence[int]) -> list[Tensor]:
    if len(stops) != len(positions):
        raise ValueError(f"stops of {len(stops)} utterances but positions of {len(positions)}.")
    return [heads[:, :-1] < count - 1 for heads, count in zip(stops, positions, strict=True)]

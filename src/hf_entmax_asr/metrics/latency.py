"""How far text lags behind speech: from the delays of tokens, their true ends, and the stops of monotonic heads.

A delay is how much of the source had been read when a token was written, in any unit that the source's length has too
(milliseconds, seconds, frames). The lagging measures are those of SimulEval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Lagging:
    """The lagging of one utterance, in the unit of its delays but for the proportion.

    Attributes:
        average_lagging: AL (Ma et al. 2019, arXiv 1810.08398), behind a writer that keeps an even pace over the
            reference; a hypothesis longer than the reference can make it negative.
        length_adaptive_average_lagging: LAAL (Papi et al. 2022, arXiv 2206.05807), the same with the longer of
            hypothesis and reference.
        differentiable_average_lagging: DAL (Cherry & Foster 2019, arXiv 1906.00048), where writing takes time.
        average_proportion: AP (Cho & Esipova 2016, arXiv 1606.02012), share of the source read, mean over tokens.
    """

    average_lagging: float
    length_adaptive_average_lagging: float
    differentiable_average_lagging: float
    average_proportion: float


def lagging(delays: Sequence[float], source_length: float, reference_length: int | None = None) -> Lagging:
    """The four lagging measures of one utterance.

    Args:
        delays: one a token, never falling.
        source_length: of the whole source.
        reference_length: tokens of the reference; by default as many as there are delays.

    Raises:
        ValueError: no delays, delays that fall, or a length that is not above 0.
    """
    delays = list(delays)
    reference_length = len(delays) if reference_length is None else reference_length
    if not delays or source_length <= 0 or reference_length <= 0:
        raise ValueError(
            f"{len(delays)} delays, source_length = {source_length}, reference_length = {reference_length}: all three "
            "must be above 0; leave utterances without text out."
        )
    if fall := next((i for i in range(1, len(delays)) if delays[i] < delays[i - 1]), None):
        raise ValueError(
            f"delays fall from {delays[fall - 1]} to {delays[fall]} at token {fall}: a token is never written before "
            "the one in front of it."
        )
    longer = max(len(delays), reference_length)
    return Lagging(
        average_lagging=_lagging(delays, source_length, source_length / reference_length),
        length_adaptive_average_lagging=_lagging(delays, source_length, source_length / longer),
        differentiable_average_lagging=_differentiable_lagging(delays, source_length / len(delays)),
        average_proportion=sum(delays) / (source_length * reference_length),
    )


def _lagging(delays: Sequence[float], source_length: float, pace: float) -> float:
    """Behind an even pace, mean over the tokens up to the first that has the whole source."""
    counted = next((i + 1 for i, delay in enumerate(delays) if delay >= source_length), len(delays))
    return sum(delay - pace * i for i, delay in enumerate(delays[:counted])) / counted


def _differentiable_lagging(delays: Sequence[float], pace: float) -> float:
    """The same over all tokens, each of them at least `pace` after the one before."""
    total, written = 0.0, delays[0] - pace
    for i, delay in enumerate(delays):
        written = max(delay, written + pace)
        total += written - pace * i
    return total / len(delays)


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

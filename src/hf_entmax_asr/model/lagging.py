"""How far text lags behind speech, by how much of the source had been read when each token was written.

A delay has any unit that the source's length has too (milliseconds, seconds, frames). The measures are those of
SimulEval.
"""

from collections.abc import Sequence
from dataclasses import dataclass


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

"""Utterances cut into batches bounded by padded frames."""

from collections.abc import Sequence

import numpy as np

MAX_UTTERANCES = 256


def cut_batches(
    order: Sequence[int] | np.ndarray, frames: np.ndarray, frames_per_batch: int, max_utterances: int = MAX_UTTERANCES
) -> list[tuple[int, ...]]:
    """Cut utterances, taken in `order`, into batches within the bounds.

    Raises:
        ValueError: one utterance alone is above `frames_per_batch`.
    """
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    longest = 0
    for index in order:
        length = int(frames[index])
        if length > frames_per_batch:
            raise ValueError(
                f"an utterance of {length} frames does not fit a batch of {frames_per_batch} frames: "
                "raise frames_per_batch or lower the longest duration allowed"
            )
        longest = max(longest, length)
        full = len(current) == max_utterances or longest * (len(current) + 1) > frames_per_batch
        if current and full:
            batches.append(tuple(current))
            current, longest = [], length
        current.append(int(index))
    if current:
        batches.append(tuple(current))
    return batches

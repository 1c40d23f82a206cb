"""A few of many, evenly spaced."""

import numpy as np


def evenly_spaced(total: int, most: int) -> list[int]:
    """All of the indices below `total`, or `most` of them, evenly spaced, with the first and the last.

    >>> evenly_spaced(3, 6), evenly_spaced(12, 6), evenly_spaced(12, 1)
    ([0, 1, 2], [0, 2, 4, 7, 9, 11], [0])
    """
    return np.linspace(0, total - 1, min(most, total)).round().astype(int).tolist()

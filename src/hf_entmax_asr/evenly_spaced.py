"""A few out of many, evenly spaced."""


def evenly_spaced(count: int, most: int) -> list[int]:
    """All numbers below `count`, or `most` evenly spaced ones, the first and the last among them (the first, of one).

    >>> evenly_spaced(3, 6), evenly_spaced(12, 6)
    ([0, 1, 2], [0, 2, 4, 7, 9, 11])
    """
    shown = min(count, most)
    return [round(k * (count - 1) / max(1, shown - 1)) for k in range(shown)]

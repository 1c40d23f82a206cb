"""Where to cut a long recording: at its quietest moments, so that no word is cut."""

import numpy as np

HOP_S = 0.01
SMOOTHED_S = 0.2  # a pause is quiet for so long
EARLIEST_CUT = 0.5  # as a share of the longest piece: no piece is shorter, but the last


def cut_at_pauses(waveform: np.ndarray, sampling_rate: int, longest_seconds: float) -> list[tuple[int, int]]:
    """(samples,) -> the (start, end) in samples of pieces of at most `longest_seconds` that follow each other without a
    gap. Each cut is in the middle of the quietest `SMOOTHED_S` of the second half of a longest piece.

    Raises:
        ValueError: pieces shorter than a second.
    """
    if longest_seconds < 1:
        raise ValueError(f"pieces of {longest_seconds} s are too short to recognise; give at least 1, better 20 to 30.")
    longest, hop = int(longest_seconds * sampling_rate), int(HOP_S * sampling_rate)
    pieces, start = [], 0
    while len(waveform) - start > longest:
        first = start + int(EARLIEST_CUT * longest)
        window = waveform[first : start + longest].astype(np.float64)
        energy = np.square(window[: len(window) // hop * hop]).reshape(-1, hop).mean(1)  # (10 ms steps,)
        width = max(1, round(SMOOTHED_S / HOP_S))
        quietest = int(np.convolve(energy, np.ones(width), mode="valid").argmin())
        cut = first + (quietest + width // 2) * hop
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, len(waveform))]

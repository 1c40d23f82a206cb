"""When each token and word is heard, from maps of cross-attention: a monotonic path through them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_entmax_asr.analysis.phonemes import Interval

MEDIAN_WIDTH = 7  # positions, as in Whisper


def token_ends(weights: Tensor) -> Tensor:
    """The position after the last one that belongs to each token: (H, U, S) weights of some heads -> (U,) integers.

    The weights of each position are compared over the tokens (zero mean, unit deviation), smoothed by a median over
    positions and averaged over the heads, as in openai/whisper's timing.py; then `monotonic_path` divides the audio.

    Raises:
        ValueError: more tokens than positions.
    """
    scores = weights.float()
    if scores.shape[1] > 1:
        scores = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-6)
    half = MEDIAN_WIDTH // 2
    if scores.shape[-1] > half:  # a reflection must be shorter than what it reflects
        padded = torch.nn.functional.pad(scores, (half, half), mode="reflect")
        scores = padded.unfold(-1, MEDIAN_WIDTH, 1).median(-1).values
    return monotonic_path(scores.mean(0))


def monotonic_path(scores: Tensor) -> Tensor:
    """The division of S positions into U consecutive pieces, none empty, with the greatest sum of scores (U, S).

    Returns:
        (U,) the position after the end of each piece; the last is S.

    Raises:
        ValueError: more tokens than positions.
    """
    tokens, positions = scores.shape
    if tokens > positions:
        raise ValueError(f"{tokens} tokens cannot share {positions} positions: each needs one of its own.")
    columns = scores.double().T.contiguous().numpy(force=True)  # (S, U)
    best = columns[0].copy()
    best[1:] = -float("inf")
    advanced = torch.zeros(positions, tokens, dtype=torch.bool).numpy()  # whether the token before had position s − 1
    for s in range(1, positions):
        step = advanced[s, 1:]
        step[:] = best[:-1] > best[1:]
        before = best[:-1].copy()
        best[1:][step] = before[step]
        best += columns[s]
    ends = [positions] * tokens
    token = tokens - 1
    for s in range(positions - 1, 0, -1):
        if advanced[s, token]:
            token -= 1
            ends[token] = s
    return torch.tensor(ends)


def word_intervals(text: str, offsets: Sequence[tuple[int, int]], seconds: Sequence[float]) -> list[Interval]:
    """The words of a text with their times, from those of its tokens.

    Args:
        text: words with white space between.
        offsets: the span of characters of each token.
        seconds: at which each token ends. A word begins where the token before its first one ended.
    """
    words: list[Interval] = []
    place = 0
    for word in text.split():
        place = text.index(word, place)
        end_of_word = place + len(word)
        inside = [i for i, (start, end) in enumerate(offsets) if start < end_of_word and end > place and end > start]
        if inside:
            before = seconds[inside[0] - 1] if inside[0] > 0 else 0.0
            words.append(Interval(before, seconds[inside[-1]], word))
        place = end_of_word
    return words


def label_ends(text: str, offsets: Sequence[tuple[int, int]], words: Sequence[Interval]) -> list[float] | None:
    """Seconds at which each token ends, from the times of words; None where these are not the words of the text.

    A token inside a word gets its share of it by characters; one without characters (the end of the sentence) NaN; one
    between words (white space) the end of the word before, or the beginning of the first.
    """
    spelled = text.split()
    if [word.casefold() for word in spelled] != [interval.label.casefold() for interval in words]:
        return None
    ends_of_characters: list[float] = []
    place = 0
    for word, interval in zip(spelled, words, strict=True):
        begin = text.index(word, place)
        gap = words[0].start if not ends_of_characters else ends_of_characters[-1]
        ends_of_characters += [gap] * (begin - place)
        step = (interval.end - interval.start) / len(word)
        ends_of_characters += [interval.start + step * (i + 1) for i in range(len(word))]
        place = begin + len(word)
    ends_of_characters += [words[-1].end if words else 0.0] * (len(text) - place)
    return [ends_of_characters[end - 1] if end > start else float("nan") for start, end in offsets]

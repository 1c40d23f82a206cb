"""Times of words from those of their tokens, and times of tokens from those of words."""

from collections.abc import Sequence

from hf_entmax_asr.analysis.phonemes import Interval


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

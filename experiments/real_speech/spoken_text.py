"""Subtitles as they are spoken: upper case, with letters, apostrophes and spaces only."""

import re
from collections.abc import Mapping

_ABBREVIATION = re.compile(r"\b(?:[A-Z]\.){2,}")
_PUNCTUATION = re.compile(r'[.,;!?:"()<>-]')
# Not those that are part of a code, a fraction, a pair of coordinates or a list of digits.
_NUMBER = re.compile(r"(?<![\w.:/+-])(?P<digits>\d{1,3}(?:,\d{3})+|\d+)(?P<ending>st|nd|rd|th|%|)(?![\w/]|[.,:-]\d)")
# fmt: off
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
_TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on
_SCALES = ((1_000_000, "million"), (1000, "thousand"), (100, "hundred"))
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_YEARS = range(1900, 2200)


class UnspeakableError(ValueError):
    """No rule says how a subtitle is spoken."""


class Speaker:
    """Turns subtitles into what is spoken: a table for the words of a game, and rules for the rest."""

    def __init__(self, spoken: Mapping[str, str], signs: str | None = None, numbers: bool = False) -> None:
        """
        Args:
            spoken: numbers, titles and abbreviations, and how they are said.
            signs: a regular expression of what nobody speaks.
            numbers: whether plain numbers and years that the table lacks are spelled out.
        """
        self._spoken = spoken
        keys = "|".join(sorted(map(re.escape, spoken), key=len, reverse=True))
        self._words = re.compile(rf"(?<![\w.])(?:{keys})(?!\w)") if keys else None
        self._signs = re.compile(signs) if signs else None
        self._numbers = numbers

    def __call__(self, subtitle: str) -> str:
        """
        Raises:
            UnspeakableError: there is a digit or a sign in it that has no rule, or no word.
        """
        text = self._signs.sub(" ", subtitle) if self._signs else subtitle
        if self._words:
            text = self._words.sub(lambda match: self._spoken[match[0]], text)
        if self._numbers:
            text = _NUMBER.sub(_in_words, text)
        text = _ABBREVIATION.sub(lambda match: match[0].replace(".", " "), text)
        text = _PUNCTUATION.sub(" ", text).upper()
        words = [word for word in text.split() if word.strip("'")]
        if not words or not all(re.fullmatch("[A-Z']+", word) for word in words):
            raise UnspeakableError(
                f"no rule says how to speak the subtitle {subtitle!r}; add one to the table SPOKEN of the game"
            )
        return " ".join(words)


def _in_words(match: re.Match[str]) -> str:
    """A number in words; itself where it may be said in several ways."""
    digits, ending = match["digits"], match["ending"]
    number = int(digits.replace(",", ""))
    if (len(digits) > 1 and digits[0] == "0") or number >= 1_000_000_000:
        return match[0]
    if ending == "%":
        return cardinal(number) + " percent"
    if ending:
        return ordinal(number)
    if "," in digits or number < 1000 or number % 1000 == 0:
        return cardinal(number)
    if number in _YEARS:
        century, year = divmod(number, 100)
        rest = "hundred" if year == 0 else f"oh {cardinal(year)}" if year < 10 else cardinal(year)
        return f"{cardinal(century)} {rest}"
    return match[0]


def cardinal(number: int) -> str:
    """A number from zero on in words, as in American English: one hundred forty three."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        tens, units = divmod(number, 10)
        return _TENS[tens] + (f" {_UNITS[units]}" if units else "")
    for size, name in _SCALES:
        if number >= size:
            count, rest = divmod(number, size)
            return f"{cardinal(count)} {name}" + (f" {cardinal(rest)}" if rest else "")
    raise AssertionError(number)


def ordinal(number: int) -> str:
    """A number in the order of things: twenty first."""
    *head, last = cardinal(number).split()
    if last in _ORDINALS:
        last = _ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return " ".join([*head, last])

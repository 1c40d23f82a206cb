"""The sentences that telephone prompts are made of: numbers, dates, times, amounts, spelled names, short phrases.

A small grammar: `{name}` stands for a rule; a rule is a choice of texts, each as likely as the others, or a function.
Every word it can draw is in the sample corpus as a recording of its own; `prompts.py` joins those recordings.
"""

import re
from collections.abc import Callable, Collection, Mapping
from itertools import islice

import numpy as np

SHORTEST_SENTENCE, LONGEST_SENTENCE = 2, 9  # words; a word spoken alone takes about 0.7 s
FRUITLESS_DRAWS = 10_000  # in a row, before a grammar counts as exhausted

Random = np.random.Generator
Rule = tuple[str, ...] | Callable[[Random], str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = _words("ten twenty thirty forty fifty sixty seventy eighty ninety")
ORDINAL_ONES = _words(
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
)
ORDINAL_TENS = _words("tenth twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth")


def cardinal(number: int) -> str:
    """The words of a number from 0 to 999 999 999, without "and": 1204 -> one thousand two hundred four."""
    if not 0 <= number < 10**9:
        raise ValueError(f"cardinal takes a number from 0 to 999999999, got {number}")
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = f" {cardinal(number % size)}" if number % size else ""
            return f"{cardinal(number // size)} {name}{rest}"
    if number < 20:
        return ONES[number]
    return TENS[number // 10 - 1] + (f" {ONES[number % 10]}" if number % 10 else "")


def ordinal(number: int) -> str:
    """The words of an ordinal from 1 to 999 999 999: 21 -> twenty first, 300 -> three hundredth."""
    if number < 1:
        raise ValueError(f"ordinal takes a number from 1 to 999999999, got {number}")
    front, _, last = cardinal(number).rpartition(" ")
    if last in ONES:
        last = ORDINAL_ONES[ONES.index(last)]
    else:
        last = ORDINAL_TENS[TENS.index(last)] if last in TENS else f"{last}th"
    return f"{front} {last}".strip()


def between(least: int, most: int) -> Callable[[Random], str]:
    """A rule: a number from `least` to `most`, both included."""
    return lambda random: cardinal(int(random.integers(least, most + 1)))


def of_any_size(most_digits: int) -> Callable[[Random], str]:
    """A rule: a number of 1 to `most_digits` digits, each length as likely."""
    return lambda random: cardinal(int(random.integers(10 ** int(random.integers(1, most_digits + 1)))))


def _round_ordinal(random: Random) -> str:
    return ordinal(int(random.integers(1, 10)) * 10 ** int(random.integers(2, 7)))


def _repeat(rule: str, least: int, most: int) -> Callable[[Random], str]:
    return lambda random: " ".join([f"{{{rule}}}"] * int(random.integers(least, most + 1)))


GRAMMAR: Mapping[str, Rule] = {
    "sentence": ("{quantity}", "{date}", "{time}", "{line}", "{spelled}", "{status}", "{mail}"),
    "quantity": ("{any_number}", "{amount}", "{amount}", "{span}", "{rank}", "{rank}"),
    "any_number": ("{number}", "{number}", "{number}", "minus {number}"),
    "number": of_any_size(7),
    "amount": ("{small_number} {unit}", "minus {small_number} {unit}", "{plural} {unit}"),
    "small_number": of_any_size(3),
    "plural": between(2, 99),
    "sixty": between(2, 59),
    "unit": _words("dollars percent hours minutes seconds messages"),
    "span": (
        "{plural} hours {sixty} minutes",
        "{sixty} minutes {sixty} seconds",
        "{sixty} minutes and {sixty} seconds",
    ),
    "rank": ("{ordinal} {thing}", "{ordinal}", "{tens_ordinal} {thing}", "{round_ordinal}", "{round_ordinal} {thing}"),
    "ordinal": lambda random: ordinal(int(random.integers(1, 100))),
    "tens_ordinal": ORDINAL_TENS,
    "round_ordinal": _round_ordinal,
    "thing": _words("message number extension minute second time"),
    "date": ("{month_day}", "{day} {month_day}", "{month_day} {year}", "{day} {month_day} {year}", "{day} and {day}"),
    "day": _words("sunday monday tuesday wednesday thursday friday saturday"),
    "month_day": (
        "{month} {ordinal_28}",
        "{month} {ordinal_28}",
        "{month} {ordinal_28}",
        "{long_month} twenty ninth",
        "{long_month} thirtieth",
    ),
    "month": _words("january february march april may june july august september october november december"),
    "long_month": _words("january march april may june july august september october november december"),
    "ordinal_28": lambda random: ordinal(int(random.integers(1, 29))),
    "year": ("nineteen {two_digits}", "twenty {recent}", "two thousand {teen}"),
    "two_digits": between(10, 99),
    "recent": between(10, 39),
    "teen": between(1, 19),
    "time": ("{clock}", "{clock}", "{when} at {clock}", "{when} at {clock}"),
    "clock": ("{hour} o'clock", "{hour} {half}", "{hour} {two_digit_minute} {half}", "{hour} oh {minute} {half}"),
    "hour": between(1, 12),
    "two_digit_minute": between(10, 59),
    "minute": between(1, 9),
    "half": ("am", "pm"),
    "when": ("today", "tomorrow", "yesterday", "{day}"),
    "line": ("{digits}", "number {digits}", "{place} {short_digits}", "calling {place} {short_digits}", "{dialled}"),
    "digits": _repeat("digit", 3, 7),
    "short_digits": _repeat("digit", 1, 4),
    "digit": ("oh", *ONES[:10]),
    "place": _words("extension extension agent console dahdi jingle number sip skinny unistim zap"),
    "dialled": ("star {short_digits}", "press {short_digits} pound", "{short_digits} star", "pound {short_digits}"),
    "spelled": (
        "{letters}",
        "{letters}",
        "{case} {letter}",
        "{code}",
        "{code} {short_digits}",
        "{address}",
        "{address}",
    ),
    "letters": _repeat("letter", 2, 6),
    "letter": _words("a b c d e f g h i j k l m n o p q r s t u v w x y z zed"),
    "case": ("uppercase", "lowercase"),
    "code": _repeat("phonetic", 2, 5),
    "phonetic": _words(
        "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec "
        "romeo sierra tango uniform victor whiskey xray yankee zulu niner"
    ),
    "address": (
        "{letter} {symbol} {letter}",
        "{symbol} {letter} {symbol}",
        "{letters} at {letter} dot {letter}",
        "{symbol} {digit}",
        "{symbol} {symbol}",
    ),
    "symbol": _words(
        "ampersand asterisk at backslash backtick caret colon comma dash dollar dot equals percent pipe plus quote "
        "semicolon slash space tick tilde underscore"
    ),
    "status": (
        "{owned} is {state}",
        "your {owned} is {state}",
        "{owned} {short_digits} is {state}",
        "your {number_like} is {short_digits}",
        "{hello} {name}",
        "{hello} from {name}",
    ),
    "owned": _words("extension number password agent location playback transfer record time console"),
    "number_like": _words("extension number password agent time location"),
    "state": ("{done}", "{done}", "local", "new", "old", "urgent"),
    "done": _words("activated added cancelled deactivated disabled enabled paused removed saved"),
    "hello": ("hello", "goodbye"),
    "name": ("{phonetic}", "{day}", "{month}", "family", "friends", "{phonetic} and {phonetic}"),
    "mail": (
        "{count} {age} messages",
        "no {age} messages",
        "no {age} messages from {sender}",
        "one {age} message",
        "{count} {age} messages from {sender}",
        "{which} message from {sender}",
        "message {done} {when} at {clock}",
        "message received {when} at {clock}",
        "press {key} for {service}",
        "press {key} for {age} messages",
        "press {key} for {service} and {key} for {service}",
    ),
    "count": between(2, 60),
    "age": _words("new old urgent saved"),
    "which": (
        "first",
        "last",
        "{ordinal}",
        "{tens_ordinal}",
        "{tens_ordinal}",
        "your first",
        "your last",
        "your new",
        "{age}",
    ),
    "sender": ("family", "friends", "work", "{place} {digit} {digit}", "{phonetic}"),
    "key": (*ONES[:10], "star", "pound"),
    "service": _words("agent family friends location messages playback record transfer work extension"),
}


def draw_sentence(random: Random, rule: str = "sentence") -> str:
    """Draw one sentence of the grammar, of any length."""
    choice = GRAMMAR[rule]
    text = choice(random) if callable(choice) else choice[int(random.integers(len(choice)))]
    return re.sub(r"\{(\w+)\}", lambda slot: draw_sentence(random, slot.group(1)), text)


def draw_splits(seed: int, counts: Mapping[str, int], exclude: Collection[str] = ()) -> dict[str, list[str]]:
    """Draw `counts[split]` sentences for every split: all distinct, within and across splits, none in `exclude`.

    They have 2 to 9 words. Sentences are dealt to the splits at random, so that all splits are alike; the same seed
    and counts give the same sentences. Raises ValueError for a negative count, or when the grammar has no more to give.
    """
    if short := {split: count for split, count in counts.items() if count < 0}:
        raise ValueError(f"sentence counts must not be negative, got {short}")
    random = np.random.default_rng(seed)
    drawn: dict[str, None] = {}  # a set that remembers its order
    excluded, fruitless = set(exclude), 0
    while len(drawn) < sum(counts.values()):
        text = draw_sentence(random)
        if text in drawn or text in excluded or not SHORTEST_SENTENCE <= len(text.split()) <= LONGEST_SENTENCE:
            fruitless += 1
            if fruitless > FRUITLESS_DRAWS:
                wanted = sum(counts.values())
                raise ValueError(
                    f"the grammar gave {len(drawn)} distinct sentences of the {wanted} wanted: ask for fewer"
                )
            continue
        drawn[text], fruitless = None, 0
    order = random.permutation(sum(counts.values()))
    texts = list(drawn)
    dealt = (texts[index] for index in order)
    return {split: list(islice(dealt, count)) for split, count in counts.items()}

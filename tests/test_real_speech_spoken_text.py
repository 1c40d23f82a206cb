"""Subtitles as they are spoken, and those without a rule."""

import re

import pytest
from experiments.real_speech.amazon_queen_corpus import spoken_text
from experiments.real_speech.spoken_text import Speaker, UnspeakableError, cardinal, ordinal


@pytest.mark.parametrize(
    ("subtitle", "spoken"),
    [
        ("\"You crash 'em, we cash 'em!\" ", "YOU CRASH 'EM WE CASH 'EM"),
        ("AMAZONS' DUNGEON?! That's bad....", "AMAZONS' DUNGEON THAT'S BAD"),
        ("Change D.N.A. and you change life itself.", "CHANGE D N A AND YOU CHANGE LIFE ITSELF"),
        ("The R.S.P.C.A.?", "THE R S P C A"),
        ("you were born 13th July, 1922, huh?", "YOU WERE BORN THIRTEENTH JULY NINETEEN TWENTY TWO HUH"),
        ("Friday's film will be at 19:00 Hours", "FRIDAY'S FILM WILL BE AT NINETEEN HUNDRED HOURS"),
        ("This is the 1940's.", "THIS IS THE NINETEEN FORTIES"),
        ("they've got IQs less than 50?", "THEY'VE GOT I QS LESS THAN FIFTY"),
        ("Well Ms. Russel, I'm Mr. King, not Mr Chatterbox", "WELL MIZ RUSSEL I'M MISTER KING NOT MISTER CHATTERBOX"),
        ("@@ Treatment^_ @@", "TREATMENT"),
        ("a half-witted <koff> (sigh)", "A HALF WITTED KOFF SIGH"),
        ("Bring an idol, Identity and DRUMS.", "BRING AN IDOL IDENTITY AND DRUMS"),
    ],
)
def test_a_subtitle_as_it_is_spoken(subtitle, spoken):
    assert spoken_text(subtitle) == spoken


@pytest.mark.parametrize("subtitle", ["240 nets", "&#($!!, he got away!", "...", "café", "1950's"])
def test_a_subtitle_without_a_rule_is_refused(subtitle):
    with pytest.raises(UnspeakableError, match=re.escape(repr(subtitle))):
        spoken_text(subtitle)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (44, "forty four"),
        (100, "one hundred"),
        (583, "five hundred eighty three"),
        (20_000, "twenty thousand"),
        (57_283, "fifty seven thousand two hundred eighty three"),
        (45_000_012, "forty five million twelve"),
    ],
)
def test_a_number_in_words(number, words):
    assert cardinal(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "first"),
        (12, "twelfth"),
        (17, "seventeenth"),
        (20, "twentieth"),
        (32, "thirty second"),
        (100, "one hundredth"),
    ],
)
def test_an_ordinal_in_words(number, words):
    assert ordinal(number) == words


@pytest.mark.parametrize(
    ("subtitle", "spoken"),
    [
        ("Cost? 100 crew.", "COST ONE HUNDRED CREW"),
        ("the year 2158.", "THE YEAR TWENTY ONE FIFTY EIGHT"),
        ("in 2098; not 1900 or 1905", "IN TWENTY NINETY EIGHT NOT NINETEEN HUNDRED OR NINETEEN OH FIVE"),
        ("almost 2000, or 5000 years", "ALMOST TWO THOUSAND OR FIVE THOUSAND YEARS"),
        ("over 20,000 years", "OVER TWENTY THOUSAND YEARS"),
        ("the 4th astral plane", "THE FOURTH ASTRAL PLANE"),
        ("our guns at 200%", "OUR GUNS AT TWO HUNDRED PERCENT"),
        ("1. Worshippers shall", "ONE WORSHIPPERS SHALL"),
        ("22 degrees C.", "TWENTY TWO DEGREES SEA"),
        ("*Happy* campers -- `yes'", "HAPPY CAMPERS YES'"),
    ],
)
def test_plain_numbers_are_spelled_out(subtitle, spoken):
    assert Speaker({"C.": "sea"}, signs=r"[*`]", numbers=True)(subtitle) == spoken


@pytest.mark.parametrize(
    "subtitle",
    [
        "241.6, 368.7",
        "100:50",
        "A86",
        "item 2418",  # a year of no century here
        "2418-B",
        "94-18",
        "1/100 of it",
        "2,34",
        "007",
        "ways to ~",
        "...",
    ],
)
def test_what_may_be_said_in_several_ways_is_refused(subtitle):
    with pytest.raises(UnspeakableError, match=re.escape(repr(subtitle))):
        Speaker({}, numbers=True)(subtitle)


def test_numbers_are_left_to_the_table_unless_asked_for():
    assert Speaker({"24": "two dozen"})("24 nets") == "TWO DOZEN NETS"
    with pytest.raises(UnspeakableError):
        Speaker({"24": "two dozen"})("25 nets")

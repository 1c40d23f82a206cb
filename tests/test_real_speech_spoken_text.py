"""Subtitles as they are spoken, and those without a rule."""

import re

import pytest
from experiments.real_speech.amazon_queen_corpus import spoken_text
from experiments.real_speech.spoken_text import UnspeakableError


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

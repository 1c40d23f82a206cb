"""The text rules on worked examples; what they refuse."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_entmax_asr.corpora import text_rule, text_rules
from hf_entmax_asr.corpora.aishell1 import normalise_aishell1

WORKED = [
    ("none", " As It  is. ", "As It  is."),
    ("basic", "Hello, [noise] WORLD (laughs) -- it's 5%!", "hello world it s 5"),
    ("basic", "Größe: ÉTÉ", "größe été"),
    ("english", "Uh, I won't pay twenty-five dollars, Mr. Smith.", "i will not pay $25 mister smith"),
    ("english", "The colour", "the colour"),
    ("wsj", "<NOISE> MR. SMITH <UNK> :COLON *GUESS* <SPOKEN_NOISE>", "MR. SMITH COLON GUESS"),
    ("wsj", "THE SHARE-HOLDER COMPAIGN APPROACHES- RESEACHERS", "THE SHAREHOLDER CAMPAIGN APPROACHES RESEARCHERS"),
    ("aishell1", " 广州 ｔ a Ｉ ﾠ楼市　Ａ股１", "广州TAIﾠ楼市A股１"),
]


@pytest.mark.parametrize(("rule", "text", "expected"), WORKED, ids=[f"{i}-{w[0]}" for i, w in enumerate(WORKED)])
def test_worked_examples(rule, text, expected):
    assert text_rule(rule)(text) == expected


def test_a_rule_says_when_it_changes_the_number_of_words():
    """One wrong word of seven is one of three where numbers are digits: the rate rises, and the reason is given."""
    rule, text = text_rule("english"), "press six two one two pound now"
    assert len(rule(text).split()) == 3
    said = rule.recounted(7, 3)
    assert "7 reference words became 3: a number in words becomes one word of digits" in said
    assert rule.recounted(7, 7) is None
    assert text_rule("none").recounted(2, 1).endswith("2 reference words became 1")


@pytest.mark.parametrize("rule", text_rules())
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_every_rule_takes_any_text_and_leaves_no_space_around_it(rule, text):
    normal = text_rule(rule)(text)
    assert normal == normal.strip()
    if rule in ("wsj", "aishell1"):
        assert all(len(gap) <= 1 for gap in normal.split(" ")) or "  " not in normal


@given(st.text(st.sampled_from("ab Ａｚ１，　而对\u3000\n"), max_size=30))
def test_the_rule_for_aishell_is_that_of_its_corpus(text):
    assert text_rule("aishell1")(text) == normalise_aishell1(text)


def test_a_spelling_table_makes_spellings_equal(tmp_path):
    table = tmp_path / "normalizer.json"
    table.write_text(json.dumps({"colour": "color"}))
    assert text_rule("english", table)("The Colour!") == "the color"
    with pytest.raises(ValueError, match="'basic' takes no spelling table"):
        text_rule("basic", table)
    table.write_text('["colour"]')
    with pytest.raises(ValueError, match="not a JSON object of words"):
        text_rule("english", table)
    table.write_text("colour")
    with pytest.raises(ValueError, match="is not JSON"):
        text_rule("english", table)
    with pytest.raises(FileNotFoundError, match="missing"):
        text_rule("english", tmp_path / "missing")


def test_an_unknown_rule_names_the_known_ones():
    with pytest.raises(ValueError, match="no text rule 'whisper'; use one of none, basic, english, aishell1, wsj"):
        text_rule("whisper")

"""Confusions counted; the HTML page parsed: well formed, self-contained, escaped, complete."""

import re

import pytest

from hf_entmax_asr.metrics import Edit, align, confusions, html_report
from hf_entmax_asr.metrics.report import STYLE
from support.html_page import Page

REFERENCES = ["the cat sat", "a <b> & c", "right", "", "one two two"]
HYPOTHESES = ["the bat", "a d & c <script>", "right", "noise", "one too too"]
IDS = ["first", "x<y", "third", "fourth", "fifth"]


def page_of(unit: str = "word") -> Page:
    summary = [("As they are", "WER 1 %"), ("", "<more>")]
    return Page(html_report("run/best: <test>", summary, IDS, align(REFERENCES, HYPOTHESES, unit), unit))


def test_every_utterance_is_there_worst_first():
    page = page_of()
    heads = [article.split("·")[0].strip() for article in page.articles]
    assert heads[-1] == "third"  # the only correct one, behind all others
    assert sorted(heads) == sorted(IDS)
    errors = [sum(map(int, re.findall(r"(\d+) (?:sub|del|ins)", article))) for article in page.articles[:-1]]
    assert errors == sorted(errors, reverse=True)
    assert "the" in page.articles[heads.index("first")]
    assert "✓" in page.articles[-1]
    assert "4 utterances with errors" in page.text
    assert "1 utterances without errors" in page.text


def test_errors_show_what_was_said_and_what_was_heard():
    columns = page_of().columns[3:]  # behind the legend
    assert ["sub", "cat", "bat"] in columns
    assert ["del", "sat", "∅"] in columns
    assert ["sub", "<b>", "d"] in columns
    assert ["ins", "∅", "<script>"] in columns
    assert ["ins", "∅", "noise"] in columns
    assert len(columns) == 2 + 2 + 1 + 2


def test_the_page_needs_nothing_from_outside_and_follows_light_and_dark():
    source = html_report("t", [], IDS, align(REFERENCES, HYPOTHESES))
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "onclick", "onload"} & {name for name, _ in page.attributes}
    assert "://" not in source
    assert "@import" not in source
    assert "url(" not in source
    assert "prefers-color-scheme: dark" in source
    assert "color-scheme: light dark" in source


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.1)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_all_colours_can_be_read():
    """Text against its background has a contrast of at least 4.5 (WCAG AA), in light and in dark."""
    schemes = re.findall(r":root \{([^}]*)\}", STYLE)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w+)", scheme))
        pairs = [("text", "back"), ("soft", "back")] + [(k, f"{k}-back") for k in ("sub", "del", "ins")]
        for front, back in pairs:
            light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)


def test_characters_show_their_spaces():
    page = Page(html_report("t", [], ["u"], align(["a b"], ["ab"], "character"), "character"))
    assert page.columns[3:] == [["del", "␣", "∅"]]


def test_confusions_are_counted_most_frequent_first():
    counted = confusions(align(REFERENCES, HYPOTHESES))
    assert counted[0] == (Edit("substitution", "two", "too"), 2)
    assert [count for _, count in counted] == [2, 1, 1, 1, 1, 1]
    assert confusions(align(REFERENCES, HYPOTHESES), 1) == counted[:1]
    assert confusions(align(["a"], ["a"])) == []
    assert "Most frequent confusions" not in html_report("t", [], ["u"], align(["a"], ["a"]))


def test_ids_and_alignments_must_match():
    with pytest.raises(ValueError, match="1 ids for 2 alignments"):
        html_report("t", [], ["a"], [[], []])

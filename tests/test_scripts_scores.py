"""scripts/evaluate.py's report and normalised scores, and scripts/compare.py, called as a user calls them."""

import json
import re
from pathlib import Path

import pytest

from hf_entmax_asr.metrics import align, error_segments, matched_pairs
from hf_entmax_asr.training import train
from support.html_page import Page
from support.tones import plain_recipe, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=8, test=6)


@pytest.fixture(scope="module")
def checkpoint(tones, tmp_path_factory) -> Path:
    recipe = plain_recipe(tones, schedule={"max_steps": 2})
    return train(recipe, tmp_path_factory.mktemp("run") / "run").last.resolve()


@pytest.mark.parametrize("unit", ["word", "character"])
def test_evaluate_writes_a_report_that_agrees_with_what_it_prints(call, checkpoint, tones, tmp_path, unit):
    arguments = (
        "--report",
        tmp_path / "r.html",
        "--output",
        tmp_path / "r.jsonl",
        "--unit",
        unit,
        "--decoding",
        "soft",
    )
    status, out, error = call("evaluate", checkpoint, tones, *arguments)
    assert (status, error) == (0, "")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(page.articles) == len(records) == 6
    for line in re.findall(r"[WC]ER \d.*", out):
        assert line in page.text
    assert "greedy, soft monotonic heads, no language model" in out
    assert "greedy, soft monotonic heads, no language model" in page.text
    assert "confidence), bootstrap over 6 utterances" in out
    assert "Normalised by the rule 'basic'" in out
    assert "reference words became" not in out
    errors = sum(1 for record in records for _ in range(record["substitutions"]))
    if unit == "word":
        assert len([c for c in page.columns[3:] if c[0] == "sub"]) == errors


def test_evaluate_takes_no_spelling_table_for_other_rules(call, checkpoint, tones, tmp_path):
    status, _, error = call("evaluate", checkpoint, tones, "--spelling-table", tmp_path / "t.json")
    assert status == 1
    assert "takes no spelling table" in error


def write_results(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    keys = ("id", "reference", "hypothesis")
    lines = (json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def results(tmp_path) -> tuple[Path, Path]:
    texts = [(f"u{i}", f"a b c d {i}") for i in range(60)]
    first = [(name, text, text.replace("b", "x") if int(name[1:]) % 10 == 0 else text) for name, text in texts]
    second = [(name, text, text.replace("c", "C") if int(name[1:]) % 2 == 0 else text) for name, text in texts]
    return write_results(tmp_path / "a.jsonl", first), write_results(tmp_path / "b.jsonl", second[::-1])


def test_compare_prints_both_tests(call, results):
    status, out, error = call("compare", *results)
    assert (status, error) == (0, "")
    assert "a.jsonl: WER 2.0 % (ins 0.0, del 0.0, sub 2.0; 300 words)" in out
    assert "b.jsonl: WER 10.0 %" in out
    assert "First minus second: -8.00 points" in out
    assert "the first is better in 100.0 % of the samples" in out
    # In 6 utterances both are wrong in one segment, in 24 the second alone.
    expected = matched_pairs([(1, 1)] * 6 + [(0, 1)] * 24)
    assert f"30 segments, W = {expected.statistic:.3f}" in out
    assert "they differ at the 5 % level" in out
    assert "Caution: only 30 segments" in out
    swapped = call("compare", *reversed(results))[1]
    assert "First minus second: +8.00 points" in swapped
    assert f"W = {-expected.statistic:.3f}" in swapped


def test_compare_by_a_rule_and_in_characters(call, results):
    status, out, _ = call("compare", *results, "--normalization", "basic", "--unit", "character", "--level", "0.9")
    assert status == 0
    assert "b.jsonl: CER 0.0 %" in out
    assert "with 90 % confidence" in out
    assert "lower case, no punctuation" in out
    assert "reference words became" not in out
    same = call("compare", results[0], results[0])[1]
    assert "no difference is shown" in same


def test_compare_says_that_a_rule_makes_other_words(call, tmp_path):
    path = write_results(tmp_path / "a.jsonl", [("u", "call two oh five nine", "call two oh nine nine")])
    out = call("compare", path, path, "--normalization", "english")[1]
    assert "WER 50.0 %" in out  # 20 % of the words as they are
    assert "5 reference words became 2: a number in words becomes one word of digits" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "1 utterances of .*a.jsonl are not in .*b.jsonl: u0"),
        (lambda rows: [*rows, ("u60", "a", "a")], "1 utterances of .*b.jsonl are not in .*a.jsonl: u60"),
        (lambda rows: [("u59", "z", "a"), *rows[1:]], "1 utterances have different references in the two files: u59"),
        (lambda rows: [*rows, rows[0]], "line 61: the id 'u59' is there twice"),
        (lambda rows: [], "line 1: not a JSON object with id, reference and hypothesis"),
    ],
)
def test_compare_says_what_does_not_match(call, results, change, message):
    records = [json.loads(line) for line in results[1].read_text(encoding="utf-8").splitlines()]
    write_results(results[1], change([(r["id"], r["reference"], r["hypothesis"]) for r in records]))
    status, out, error = call("compare", *results)
    assert (status, out) == (1, "")
    assert re.search(message, error), error


def test_compare_reads_texts_with_any_line_separator(call, tmp_path):
    paths = [
        write_results(tmp_path / f"{n}.jsonl", [("u", "a\u2028b c\x85d", h)]) for n, h in (("a", "a"), ("b", "a b"))
    ]
    assert call("compare", *paths)[0] == 0
    assert call("compare", paths[0], tmp_path / "missing.jsonl")[0] == 1
    a, b = (align(["a\u2028b c\x85d"], [h])[0] for h in ("a", "a b"))
    assert sum(x for x, _ in error_segments(a, b)) == 3

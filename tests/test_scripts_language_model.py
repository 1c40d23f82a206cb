"""train_lm.py, tune_lm.py, and --lm of evaluate.py and transcribe.py, called as a user calls them."""

import json
import re
import sys
from pathlib import Path

import pytest

from hf_entmax_asr.training import train
from support.language_models import make_ngrams, needs_kenlm, needs_trainer, write_arpa
from support.tones import plain_recipe, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=6, test=5)


@pytest.fixture(scope="module")
def checkpoint(tones, tmp_path_factory) -> Path:
    recipe = plain_recipe(tones, schedule={"max_steps": 2})
    return train(recipe, tmp_path_factory.mktemp("run") / "run").last.resolve()


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> Path:
    ngrams = make_ngrams([["fa", "be"], ["be", "dad", "c"], ["c"]])
    return write_arpa(tmp_path_factory.mktemp("lm") / "lm.arpa", ngrams)


def hypotheses(path: Path) -> list[str]:
    return [json.loads(line)["hypothesis"] for line in path.read_text(encoding="utf-8").splitlines()]


@needs_kenlm
def test_evaluate_and_transcribe_obey_the_language_model(call, checkpoint, tones, language_model, tmp_path):
    outputs = {}
    for name, options in {
        "none": (),
        "light": ("--lm", language_model, "--lm-weight", "0"),
        "heavy": ("--lm", language_model, "--lm-weight", "60", "--insertion-bonus", "-1"),
    }.items():
        arguments = ("--num-beams", "4", "--decoding", "soft", "--output", tmp_path / name, *options)
        status, _, error = call("evaluate", checkpoint, tones, *arguments)
        assert (status, error) == (0, "")
        outputs[name] = hypotheses(tmp_path / name)
    assert outputs["heavy"] != outputs["none"]
    assert set(" ".join(outputs["heavy"]).split()) <= {"fa", "be", "dad", "c"}
    recording = tones / "test" / "000.flac"
    arguments = ("--num-beams", "4", "--decoding", "soft", "--lm", language_model, "--lm-weight", "60")
    status, out, error = call("transcribe", checkpoint, recording, *arguments, "--insertion-bonus", "-1")
    assert (status, error) == (0, "")
    assert out.strip() == outputs["heavy"][0].strip()
    status, out, error = call("transcribe", checkpoint, recording, *arguments, "--ctc-weight", "1")
    assert (status, error) == (0, "")
    assert set(out.split()) <= {"fa", "be", "dad", "c"}
    asked = ("--ctc-weight", "0.3", "--max-utterances", "1")
    assert (
        "greedy, hard monotonic heads, CTC (weight 0.3), no language" in call("evaluate", checkpoint, tones, *asked)[1]
    )


@needs_kenlm
def test_bad_language_models_are_said_in_one_line(call, checkpoint, tones, tmp_path, language_model):
    notes = tmp_path / "notes.txt"
    notes.write_text("no model")
    cases = {
        ("--lm", tmp_path / "missing.arpa"): "missing.arpa",
        ("--lm", notes): "is not an ARPA file",
        ("--lm", language_model, "--lm-weight", "-1"): "weight is -1.0",
        ("--lm", language_model, "--unknown-words", "0"): "unknown_words is 0",
    }
    for options, message in cases.items():
        for program, data in (("evaluate", tones), ("transcribe", tones / "test" / "000.flac")):
            status, out, error = call(program, checkpoint, data, *options)
            assert (status, out) == (1, "")
            assert message in error
            assert error.startswith(f"{program}.py: ")
            assert error.count("\n") == 1


@pytest.mark.parametrize("program", ["evaluate", "transcribe", "tune_lm"])
def test_without_kenlm_the_extra_is_named(call, checkpoint, tones, language_model, monkeypatch, program):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    data = tones / "test" / "000.flac" if program == "transcribe" else tones
    status, _, error = call(program, checkpoint, data, "--lm", language_model)
    assert status == 1
    assert "pip install 'hf_entmax_asr[lm]'" in error


@needs_kenlm
def test_tune_prints_what_evaluate_prints(call, checkpoint, tones, language_model):
    decoding = ("--num-beams", "2", "--decoding", "soft")
    grid = ("--weights", "0", "0.5", "--bonuses", "0", "2")
    status, out, error = call("tune_lm", checkpoint, tones, "--lm", language_model, *grid, *decoding)
    assert (status, error) == (0, "")
    heading, bonuses, plain, fused, best = out.splitlines()
    assert "6 utterances of validation, 2 beams" in heading
    assert bonuses.split()[1:] == ["0", "2"]
    assert len(plain.split()) == 2  # without a weight, no bonus
    cells = [float(cell) for cell in (*plain.split()[1:], *fused.split()[1:])]
    for options, cell in zip((("0", "0"), ("0.5", "0"), ("0.5", "2")), cells, strict=True):
        arguments = ("--lm", language_model, "--lm-weight", options[0], "--insertion-bonus", options[1])
        printed = call("evaluate", checkpoint, tones, "--split", "validation", *arguments, *decoding)[1]
        assert float(re.search(r"WER ([\d.]+) %", printed)[1]) == pytest.approx(cell, abs=0.051)
    weight, bonus, rate = re.search(r"--lm-weight (\S+) --insertion-bonus (\S+): WER ([\d.]+) %", best).groups()
    assert float(rate) == pytest.approx(min(cells), abs=0.051)
    assert (weight, bonus) in {("0", "0"), ("0.5", "0"), ("0.5", "2")}


@needs_kenlm
def test_tune_names_what_it_lacks(call, checkpoint, tones, language_model):
    status, _, error = call("tune_lm", checkpoint, tones, "--lm", language_model, "--split", "dev")
    assert status == 1
    assert "no split 'dev'" in error
    status, _, error = call("tune_lm", checkpoint, tones, "--lm", language_model, "--weights", "-0.1")
    assert status == 1
    assert "weight is -0.1" in error


@needs_trainer
def test_train_lm_takes_text_and_data(call, tones, tmp_path):
    extra = tmp_path / "more.txt"
    extra.write_text("fa be\n\nbe dad c\n", encoding="utf-8")
    arguments = ("--output", tmp_path / "lm.arpa", "--order", "2", "--test", tones, extra)
    status, out, _ = call("train_lm", tones, extra, *arguments)
    assert status == 0
    assert "lm.arpa: words, order 2, 26 sentences (" in out
    assert re.search(r"perplexity [\d.]+ over 17 words and 8 sentence ends; \d+ words unknown", out)


@needs_trainer
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "dev"], "has no split 'dev'"),
        (["--order", "9"], "order is 9"),
        (["--test", "missing.txt"], "missing.txt"),
        (["--test", "blank.txt"], "blank.txt holds no text"),
        (["--test", "zeros.txt"], "zeros.txt, line 2: holds zero bytes"),
    ],
)
def test_train_lm_names_what_is_wrong(call, tones, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    (tmp_path / "zeros.txt").write_bytes(b"one\ntw\0\n")
    status, out, error = call("train_lm", tones, "--output", tmp_path / "lm.arpa", *arguments)
    assert (status, out) == (1, "")
    assert message in error
    assert not (tmp_path / "lm.arpa").exists()

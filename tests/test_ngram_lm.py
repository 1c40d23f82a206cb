"""Reading ARPA files against a naive twin; training by the installed tools; every refusal."""

import math
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.ngram_lm import LanguageModelError, NgramModel, train_ngram
from support.language_models import (
    SENTENCES,
    WORDS,
    character_ngrams,
    needs_kenlm,
    needs_trainer,
    score_units,
    word_ngrams,
    write_arpa,
)

# scoring


@needs_kenlm
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "new", "ä"]), max_size=6), st.sampled_from([1, 1000]))
def test_words_score_as_the_naive_twin(tmp_path_factory, words, unknown_words):
    model = NgramModel(write_arpa(tmp_path_factory.mktemp("lm") / "a.arpa", word_ngrams()), unknown_words=unknown_words)
    assert (model.unit, model.order) == ("word", 2)
    assert set(model.unigrams) == set(WORDS)
    expected = score_units(word_ngrams(), words, unknown_words)
    assert model.log_probability(" ".join(words)) == pytest.approx(expected, abs=1e-4)
    assert model.perplexity([" ".join(words)]) == pytest.approx(math.exp(-expected / (len(words) + 1)), rel=1e-3)


@needs_kenlm
@pytest.mark.parametrize("text", ["ab ba", " ab  cä", "", "dd"])
def test_characters_score_as_the_naive_twin(tmp_path, text):
    model = NgramModel(write_arpa(tmp_path / "a.arpa", character_ngrams()), unknown_words=50)
    assert model.unit == "character"
    units = list(text.lstrip().replace(" ", "▁"))
    assert model.units(text) == units
    assert model.log_probability(text) == pytest.approx(score_units(character_ngrams(), units, 50), abs=1e-4)


@needs_kenlm
def test_probabilities_of_what_may_come_next_sum_to_one(tmp_path):
    model = NgramModel(write_arpa(tmp_path / "a.arpa", word_ngrams()), unknown_words=7)
    state, _ = model.advance(model.start(), "ab")
    logs = [model.advance(state, word)[1] for word in WORDS] + [model.end(state)]
    unknown = model.advance(state, "unheard")[1]
    assert sum(map(math.exp, logs)) + 7 * math.exp(unknown) == pytest.approx(1, abs=1e-5)


@needs_kenlm
def test_states_compare_by_value_and_are_not_changed(tmp_path):
    model = NgramModel(write_arpa(tmp_path / "a.arpa", word_ngrams()))
    start = model.start()
    first, second = model.advance(start, "ab")[0], model.advance(start, "ab")[0]
    assert first == second
    assert hash(first) == hash(second)
    assert start == model.start()
    assert start != first


@needs_kenlm
def test_a_closed_vocabulary_is_said_and_can_be_left(tmp_path, caplog):
    path = write_arpa(tmp_path / "a.arpa", word_ngrams(), without=("<unk>",))
    model = NgramModel(path, unknown_words=100)
    assert "has no <unk>: an unknown word has probability 1 / 100" in caplog.text
    assert model.advance(model.start(), "unheard")[1] == pytest.approx(-math.log(100))
    assert model.unknown == pytest.approx(-math.log(100))


@needs_kenlm
def test_files_that_are_no_language_models(tmp_path):
    with pytest.raises(FileNotFoundError):
        NgramModel(tmp_path / "missing.arpa")
    path = tmp_path / "a.arpa"
    path.write_text("one two three\n")
    with pytest.raises(LanguageModelError, match=r"no section \\1-grams:"):
        NgramModel(path)
    path.write_bytes(b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1\t\xff\n\\end\\\n")
    with pytest.raises(LanguageModelError, match="not an ARPA file in UTF-8"):
        NgramModel(path)
    path.write_text("\\data\\\nngram 1=1\n\n\\1-grams:\nminus\ta\n\\end\\\n")
    with pytest.raises(LanguageModelError, match="line 5 is not an ARPA file"):
        NgramModel(path)
    path.write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n\n\\end\\\n")
    with pytest.raises(LanguageModelError, match="knows no words"):
        NgramModel(path)
    path.write_text("\\data\\\nngram 1=9\n\n\\1-grams:\n-1\ta\n\n\\end\\\n")
    with pytest.raises(LanguageModelError, match="KenLM cannot read"):
        NgramModel(path)
    write_arpa(path, word_ngrams())
    with pytest.raises(LanguageModelError, match="unit is 'letter'"):
        NgramModel(path, unit="letter")
    with pytest.raises(LanguageModelError, match="unknown_words is 0"):
        NgramModel(path, unknown_words=0)
    with pytest.raises(LanguageModelError, match="no texts"):
        NgramModel(path).perplexity([])


def test_without_kenlm_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_entmax_asr\[lm\]'"):
        NgramModel(write_arpa(tmp_path / "a.arpa", word_ngrams()))


# training


def sentences(count: int) -> list[str]:
    """Words of a small language with long and short, frequent and rare words."""
    import numpy as np

    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefgh"), random.integers(1, 6))) for _ in range(60)]
    share = 1 / np.arange(1, 61)
    return [" ".join(random.choice(words, random.integers(1, 8), p=share / share.sum())) for _ in range(count)]


@needs_trainer
@pytest.mark.parametrize(("unit", "order"), [("word", 2), ("word", 3), ("character", 4)])
def test_a_trained_model_is_a_distribution_and_better_than_chance(tmp_path, unit, order, caplog):
    texts = sentences(600)
    method = train_ngram(texts[:500], tmp_path / "deep" / "lm.arpa", order=order, unit=unit)
    assert ("Witten-Bell" in method) == ("Witten-Bell" in caplog.text)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["lm.arpa"]
    model = NgramModel(tmp_path / "deep" / "lm.arpa", unknown_words=1)
    assert (model.unit, model.order) == (unit, order)
    state = model.advance(model.start(), model.units(texts[0])[0])[0]
    logs = [model.advance(state, entry)[1] for entry in model.unigrams] + [model.end(state)]
    total = sum(map(math.exp, logs)) + math.exp(model.advance(state, "unheard")[1])
    assert total == pytest.approx(1, abs=0.01)  # a little is given to <s>
    assert model.perplexity(texts[500:]) < 0.8 * len(model.unigrams)
    assert model.perplexity(texts[:500]) < model.perplexity(texts[500:])


@needs_trainer
def test_white_space_and_empty_texts_do_not_matter(tmp_path):
    texts = sentences(300)
    train_ngram(texts, tmp_path / "a.arpa", order=2)
    train_ngram(["", *(f"  {t} \n".replace(" ", "\t") for t in texts), "\u2028"], tmp_path / "b.arpa", order=2)
    assert (tmp_path / "a.arpa").read_text() == (tmp_path / "b.arpa").read_text()


@needs_kenlm
@pytest.mark.skipif(os.name != "posix", reason="writes a shell script")
def test_a_tool_that_fails_leaves_the_old_file_and_says_what_it_said(tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "lmplz"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho the disk is full >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    old = write_arpa(tmp_path / "lm.arpa", word_ngrams())
    before = old.read_text()
    with pytest.raises(LanguageModelError, match="lmplz failed: the disk is full"):
        train_ngram(SENTENCES, old)
    assert old.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "lm.arpa"]


@pytest.mark.skipif(os.name != "posix", reason="writes a shell script")
def test_what_lmplz_is_told(tmp_path, monkeypatch):
    """lmplz itself is seldom installed: a stand-in keeps its arguments and text, and writes a model."""
    tool, kept, arpa = tmp_path / "bin" / "lmplz", tmp_path / "kept", write_arpa(tmp_path / "m.arpa", word_ngrams())
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" > {kept}; cat text >> {kept}; cp {arpa} lm.arpa\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    assert "lmplz" in train_ngram(["ab  ba", "", "cab"], tmp_path / "out.arpa", order=4, unit="character")
    arguments, *text = kept.read_text(encoding="utf-8").splitlines()
    assert "-o 4" in arguments
    assert "--text text --arpa lm.arpa" in arguments
    assert text == ["a b ▁ b a", "c a b"]
    assert (tmp_path / "out.arpa").read_text() == arpa.read_text()


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["a"], {"order": 1}, "order is 1; it must be 2 to 6"),
        (["a"], {"order": 7}, "order is 7"),
        (["a"], {"unit": "piece"}, "unit is 'piece'"),
        (["a"], {"tool": "srilm"}, "tool is 'srilm'; use 'lmplz' or 'irstlm'"),
    ],
)
def test_arguments_out_of_range(tmp_path, texts, options, message):
    with pytest.raises(LanguageModelError, match=message):
        train_ngram(texts, tmp_path / "lm.arpa", **options)


@needs_trainer
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts to train"),
        (["", " \n"], "no texts to train"),
        ("one text", "texts is one string"),
        (["a </s> b"], "'a </s> b' holds '</s>'"),
        (["a ▁b"], "holds '▁'"),
    ],
)
def test_texts_that_cannot_be_trained_on(tmp_path, texts, message):
    with pytest.raises(LanguageModelError, match=message):
        train_ngram(texts, tmp_path / "lm.arpa")
    assert list(tmp_path.iterdir()) == []


def test_without_a_tool_the_error_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("hf_entmax_asr.ngram_lm.estimation.IRSTLM_FOLDER", tmp_path)
    with pytest.raises(LanguageModelError, match="apt-get install irstlm"):
        train_ngram(["a"], tmp_path / "lm.arpa")
    with pytest.raises(LanguageModelError, match=r"was found \(irstlm\)"):
        train_ngram(["a"], tmp_path / "lm.arpa", tool="irstlm")

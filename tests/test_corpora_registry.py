"""The records of the corpora, and that one file and one line make a corpus known everywhere."""

import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from conftest import script
from hf_entmax_asr.corpora import CORPORA, CorpusError, find_corpus, read_corpus, registry, text_rule, text_rules
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.text import GENERAL_RULES
from hf_entmax_asr.training import RecipeError, load_recipe
from hf_entmax_asr.training.preparation import build_processor, load_rows
from support import harbour_radio

RECIPES = Path(__file__).parent.parent / "scripts" / "recipes"
SHIPPED = [name for name in CORPORA if name != "folder"]
SAID = ("starboard engine is out", "all stations listen", "no traffic ahead", "speed two knots")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def root(tmp_path):
    """The corpus on disk, its dev split with a recording too many."""
    random = np.random.default_rng(0)
    for split, texts in (("train", SAID), ("dev", SAID[:2])):
        folder = tmp_path / "radio" / split
        folder.mkdir(parents=True)
        for number in range(len(texts) + (split == "dev")):
            soundfile.write(folder / f"{number:04d}.wav", random.uniform(-0.1, 0.1, 16_000), 16_000)
        lines = [f"{number:04d}\t{text}\n" for number, text in enumerate(texts)]
        (folder / "transcripts.tsv").write_text("".join(lines), encoding="utf-8")
    return tmp_path / "radio"


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(CORPORA, "harbour_radio", harbour_radio.CORPUS)


# one more corpus


def test_one_line_registers_a_module():
    corpora = registry.records((*registry.MODULES, "support.harbour_radio"))
    assert list(corpora) == [*CORPORA, "harbour_radio"]
    assert corpora["harbour_radio"] is harbour_radio.CORPUS
    with pytest.raises(ValueError, match=r"support\.harbour_radio holds a second corpus named 'harbour_radio'"):
        registry.records(["support.harbour_radio", "support.harbour_radio"])


def test_a_registered_corpus_is_read_with_a_report(registered, root):
    splits, report = read_corpus("harbour_radio", root)
    assert {name: list(rows["text"]) for name, rows in splits.items()} == {
        "train": [text.upper() for text in SAID],
        "dev": [text.upper() for text in SAID[:2]],
    }
    assert str(report).splitlines() == [
        f"harbour_radio in {root}",
        "  train: 4 utterances, 0.07 minutes",
        "  dev: 2 utterances, 0.03 minutes",
        f"    1 audio files without a transcript, left out: {root}/dev/0002.wav",
        f"  test: not there (no transcripts.tsv in {root}/test)",
    ]
    with pytest.raises(FileNotFoundError, match=r"harbour_radio in .* lacks splits: test: no transcripts\.tsv"):
        read_corpus("harbour_radio", root, splits=["train", "test"])
    with pytest.raises(ValueError, match="no split is named 'validation'; the splits are train, dev, test"):
        read_corpus("harbour_radio", root, splits="validation")
    (root / "train" / "0003.wav").unlink()
    with pytest.raises(CorpusError, match=f"1 transcripts or index entries without audio: {root}/train/0003.wav"):
        read_corpus("harbour_radio", root, splits="train")


def test_a_registered_corpus_is_prepared_and_trained_on(registered, root, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    status, printed, _ = call("prepare", "harbour_radio", root)
    assert status == 0
    tokens = 4 + len(set("".join(SAID)))  # the special ones; the word boundary stands for the space
    assert f"prepared/harbour_radio: {tokens} tokens (character), global CMVN of 4 utterances" in printed
    settings = printed.split("--set ")[1].split()
    assert settings == [
        "data.prepared=prepared/harbour_radio",
        "data.train_split=train",
        "data.corpus=harbour_radio",
        "data.validation_split=dev",
    ]
    recipe = load_recipe(RECIPES / "paper_base.yaml", [*settings, f"data.path={root}", "features.feature_size=80"])
    rows = load_rows(recipe)
    assert {role: len(split) for role, split in rows.items()} == {"train": 4, "validation": 2}
    tokenizer = build_processor(recipe, rows).tokenizer
    assert tokenizer.get_vocab() == EntmaxAsrProcessor.from_pretrained("prepared/harbour_radio").tokenizer.get_vocab()


def test_a_corpus_that_is_not_registered_is_refused_by_name():
    with pytest.raises(ValueError, match="there is no corpus 'harbour_radio'; the corpora are folder, aishell1, wsj"):
        find_corpus("harbour_radio")
    with pytest.raises(RecipeError, match=r"data\.corpus is 'harbour_radio'; it must be one of 'folder', 'aishell1'"):
        load_recipe(RECIPES / "paper_base.yaml", ["data.corpus=harbour_radio"])


# the records


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", ["paper", "strong"])
def test_the_recipes_of_a_corpus_agree_with_its_record(name, kind):
    corpus = CORPORA[name]
    assert corpus.recipe == f"{name}_strong.yaml"
    recipe = load_recipe(RECIPES / f"{name}_{kind}.yaml")
    data, tokenizer = recipe.data, recipe.tokenizer
    assert (data.corpus, data.validation_split) == (name, corpus.validation_split)
    assert {*data.train_split.split("+"), data.validation_split} <= set(corpus.splits)
    assert corpus.choose_train_splits(data.train_split.split("+")) == data.train_split.split("+")
    assert tokenizer.kind == corpus.tokenizer
    if tokenizer.kind == "character":
        assert (tokenizer.word_boundary, tokenizer.symbols) == (corpus.word_boundary, corpus.symbols)


@pytest.mark.parametrize(
    ("name", "there", "chosen"),
    [
        ("folder", ["test", "train"], ["train"]),
        ("wsj", ["test_dev93", "train_si84", "train_si284"], ["train_si284"]),
        ("wsj", ["train_si84", "test_dev93"], ["train_si84"]),
        ("librispeech", ["train-clean-100", "train-other-500", "dev-clean"], ["train-clean-100", "train-other-500"]),
    ],
)
def test_splits_to_train_on(name, there, chosen):
    assert CORPORA[name].choose_train_splits(there) == chosen


def test_splits_that_nothing_says_to_train_on():
    with pytest.raises(
        ValueError, match=r"no split to train on \(train_si284 or train_si84\); name some of test_dev93"
    ):
        CORPORA["wsj"].choose_train_splits(["test_dev93"])


def test_every_corpus_adds_its_rule():
    assert list(text_rules()) == ["none", "basic", "english", "aishell1", "wsj"]
    assert [rule.name for rule in GENERAL_RULES] == ["none", "basic", "english"]
    for corpus in CORPORA.values():
        assert text_rule(corpus.scoring_rule.name) is corpus.scoring_rule


@pytest.mark.parametrize(
    ("given", "unit", "rule"),
    [
        ([], "word", "basic"),
        (["--corpus", "aishell1"], "character", "aishell1"),
        (["--corpus", "wsj"], "word", "wsj"),
        (["--corpus", "librispeech"], "word", "basic"),
        (["--corpus", "aishell1", "--unit", "word", "--normalization", "none"], "word", "none"),
    ],
)
def test_a_corpus_is_scored_by_its_own_rule_and_unit(given, unit, rule, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "CHECKPOINT", "DATA", *given])
    evaluate = script("evaluate")
    arguments = evaluate.parse()
    evaluate.score_as_usual(arguments)
    assert (arguments.unit, arguments.normalization) == (unit, rule)

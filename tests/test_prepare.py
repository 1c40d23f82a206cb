"""scripts/prepare.py on corpora as shipped, and training that uses what it makes."""

import importlib.util
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora import load_librispeech, load_wsj
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.recognition import DataError
from hf_entmax_asr.training import RecipeError, train
from hf_entmax_asr.training.preparation import build_processor, load_rows
from support.corpus_trees import cut, write_aishell1, write_librispeech, write_wsj
from support.tones import tiny_recipe, write_splits

ROOT = Path(__file__).parent.parent
WRITERS = {"aishell1": write_aishell1, "wsj": write_wsj, "librispeech": write_librispeech}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """Call prepare.py: (exit status, printed, said on the error stream)."""
    specification = importlib.util.spec_from_file_location("prepare", ROOT / "scripts" / "prepare.py")
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
        status = program.main()
        return status, *capsys.readouterr()

    return run


def test_aishell_gets_characters_without_spaces_and_the_work_is_done_once(tmp_path, prepare):
    write_aishell1(tmp_path / "data")
    status, printed, _ = prepare("aishell1", tmp_path / "data")
    assert status == 0
    assert "train: 6 utterances, NOT the 120,098 of the published split, 0.02 minutes, 2 speakers" in printed
    assert "2 audio files without a transcript, left out: " in printed
    assert "global CMVN of 6 utterances" in printed
    folder = tmp_path / "prepared" / "aishell1"
    processor = EntmaxAsrProcessor.from_pretrained(folder)
    assert processor.tokenizer.convert_ids_to_tokens(processor.tokenizer("BB机和").input_ids) == [*"BB机和", "</s>"]
    summary = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    assert summary["settings"]["train_splits"] == ["train"]
    assert summary["splits"]["dev"] == {"utterances": 3, "hours": pytest.approx(3 * 2700 / 16_000 / 3600)}
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    assert "prepared/aishell1 is up to date" in prepare("aishell1", tmp_path / "data")[1]
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before
    assert "prepared/aishell1: " in prepare("aishell1", tmp_path / "data", "--feature-size", 40)[1]
    assert EntmaxAsrProcessor.from_pretrained(folder).feature_extractor.feature_size == 40
    assert [path.name for path in folder.parent.iterdir()] == ["aishell1"]  # nothing temporary is left


def test_the_statistics_are_those_of_the_training_split(tmp_path, prepare):
    write_wsj(tmp_path / "wsj")
    assert prepare("wsj", tmp_path / "wsj", "--num-proc", 2)[0] == 0
    extractor = EntmaxAsrProcessor.from_pretrained(tmp_path / "prepared/wsj").feature_extractor
    assert extractor.cmvn == "global"
    tokenizer = EntmaxAsrProcessor.from_pretrained(tmp_path / "prepared/wsj").tokenizer
    assert tokenizer.tokenize("I <NOISE>") == ["I", "▁", "<NOISE>"]
    rows = load_wsj(tmp_path / "wsj", splits="train_si284")["train_si284"]  # which holds train_si84
    frames = torch.cat([extractor.log_mel(torch.tensor(read_audio(row["audio"]))) for row in rows])
    np.testing.assert_allclose(extractor.cmvn_mean, frames.mean(0), rtol=1e-4)
    np.testing.assert_allclose(extractor.cmvn_std, frames.std(0, correction=0), rtol=1e-3)
    assert prepare("wsj", tmp_path / "wsj", "--cmvn-utterances", 2)[0] == 0
    extractor = EntmaxAsrProcessor.from_pretrained(tmp_path / "prepared/wsj").feature_extractor
    frames = torch.cat([extractor.log_mel(torch.tensor(read_audio(rows[i]["audio"]))) for i in (0, 5)])
    np.testing.assert_allclose(extractor.cmvn_mean, frames.mean(0), rtol=1e-4)


def test_librispeech_gets_pieces_of_all_its_training_splits(tmp_path, prepare):
    write_librispeech(tmp_path, ("train-clean-100", "train-clean-360", "dev-clean"))
    status, printed, _ = prepare("librispeech", tmp_path, "--vocab-size", 40, "--output", "made/it")
    assert status == 0
    assert "data.train_split=train-clean-100+train-clean-360" in printed
    tokenizer = EntmaxAsrProcessor.from_pretrained(tmp_path / "made/it").tokenizer
    assert len(tokenizer) == 40
    text = load_librispeech(tmp_path)["train-clean-360"]["text"][0]
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert len(tokenizer(text).input_ids) < len(text)


def test_what_cannot_be_prepared_is_said_and_nothing_is_written(tmp_path, prepare):
    write_librispeech(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for arguments, message in (
        (("librispeech", tmp_path, "--output", "mine"), "mine holds something else than prepare.py's output"),
        (("librispeech", tmp_path, "--train-splits", "train"), "--train-splits are train; the splits there are"),
        (
            ("librispeech", tmp_path, "--splits", "dev-clean-2"),
            "no split to train on (train-*); name some of",
        ),
        (("librispeech", tmp_path, "--vocab-size", 9), "vocab_size is 9"),
        (("aishell1", tmp_path), "holds no AISHELL-1"),
    ):
        status, _, said = prepare(*arguments)
        assert status == 1
        assert "\nprepare.py: " in f"\n{said}"  # after the progress bars
        assert message in said
    damaged = tmp_path / "LibriSpeech/train-clean-5/103/1240/103-1240-0001.flac"
    cut(damaged)
    status, _, said = prepare("librispeech", tmp_path, "--vocab-size", 40)
    assert status == 1
    assert f"1 audio files that are damaged, cut short or empty: {damaged}" in said
    assert not (tmp_path / "prepared").exists()
    status, printed, _ = prepare("librispeech", tmp_path, "--vocab-size", 40, "--bad-utterances", "drop")
    assert status == 0
    assert "train-clean-5: 8 utterances" in printed
    assert str(damaged) in printed


def test_a_folder_is_prepared_too(tmp_path, prepare):
    write_splits(tmp_path / "tones", train=6, validation=2)
    status, printed, _ = prepare("folder", tmp_path / "tones", "--output", "made")
    assert status == 0
    assert "  validation: 2 utterances, " in printed
    assert (tmp_path / "made" / "prepared.json").is_file()


SPLITS = {
    "aishell1": ("train", "dev"),
    "wsj": ("train_si284", "test_dev93"),
    "librispeech": ("train-clean-5+dev-clean-2", "dev-clean-2"),
}


def corpus_recipe(corpus, root, **sections):
    data = {
        "corpus": corpus,
        "prepared": f"prepared/{corpus}",
        "train_split": SPLITS[corpus][0],
        "validation_split": SPLITS[corpus][1],
    }
    sections["data"] = data | sections.get("data", {})
    features = {"feature_size": 20, "cmvn": "global"} | sections.pop("features", {})
    return tiny_recipe(root, features=features, model={"ctc_loss_weight": 0.0}, **sections)


@pytest.mark.parametrize("corpus", SPLITS)
def test_training_uses_the_corpus_and_what_was_prepared(tmp_path, prepare, corpus):
    WRITERS[corpus](tmp_path / "data")
    options = ("--feature-size", 20, "--tokenizer", "character", "--train-splits", *SPLITS[corpus][0].split("+"))
    assert prepare(corpus, tmp_path / "data", *options)[0] == 0
    recipe = corpus_recipe(corpus, tmp_path / "data", schedule={"max_steps": 2})
    rows = load_rows(recipe)
    assert {role: len(split) for role, split in rows.items()} == {
        "aishell1": {"train": 6, "validation": 3},
        "wsj": {"train": 6, "validation": 3},
        "librispeech": {"train": 18, "validation": 9},
    }[corpus]
    result = train(recipe, tmp_path / "run")
    assert result.step == 2
    trained = EntmaxAsrProcessor.from_pretrained(result.last)
    prepared = EntmaxAsrProcessor.from_pretrained(tmp_path / "prepared" / corpus)
    assert trained.feature_extractor.cmvn_mean == prepared.feature_extractor.cmvn_mean
    assert trained.tokenizer.get_vocab() == prepared.tokenizer.get_vocab()


def test_recipes_that_do_not_fit_what_was_prepared_are_refused(tmp_path, prepare):
    write_aishell1(tmp_path / "data")
    rows = load_rows(corpus_recipe("aishell1", tmp_path / "data"))
    with pytest.raises(RecipeError, match=r"data.prepared is prepared/aishell1, where scripts/prepare.py has made"):
        build_processor(corpus_recipe("aishell1", tmp_path / "data"), rows)
    assert prepare("aishell1", tmp_path / "data")[0] == 0
    with pytest.raises(RecipeError, match=r"features.feature_size is 20, but prepared/aishell1 was prepared with 80"):
        build_processor(corpus_recipe("aishell1", tmp_path / "data"), rows)
    per_utterance = corpus_recipe("aishell1", tmp_path / "data", features={"cmvn": "utterance"})
    assert build_processor(per_utterance, rows).feature_extractor.cmvn_mean is None
    with pytest.raises(RecipeError, match=r"data.prepared and tokenizer.path both name a tokenizer"):
        corpus_recipe("aishell1", tmp_path / "data", tokenizer={"path": "elsewhere"})


def test_data_that_the_recipe_asks_for_and_that_is_not_there(tmp_path):
    write_librispeech(tmp_path)
    with pytest.raises(DataError, match=r"lacks splits: dev-clean: no speakers' folders"):
        load_rows(corpus_recipe("librispeech", tmp_path, data={"validation_split": "dev-clean"}))
    with pytest.raises(DataError, match="no split is named 'train'; the splits are train-clean-100"):
        load_rows(corpus_recipe("librispeech", tmp_path, data={"train_split": "train"}))
    damaged = tmp_path / "LibriSpeech/dev-clean-2/103/1240/103-1240-0001.flac"
    cut(damaged)
    with pytest.raises(DataError, match=f"damaged, cut short or empty: {damaged}"):
        load_rows(corpus_recipe("librispeech", tmp_path))
    rows = load_rows(corpus_recipe("librispeech", tmp_path, data={"bad_utterances": "drop"}))
    assert len(rows["validation"]) == 8

"""Before the first step: corpora and splits that are not there, features, tokenizer, model."""

import math
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from hf_entmax_asr.recognition import DataError
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.utterances import cache_features, prepare_split
from hf_entmax_asr.tokenization import train_character_tokenizer
from hf_entmax_asr.training import train
from hf_entmax_asr.training.preparation import build_config, build_model, build_processor, load_rows
from support.tones import tiny_recipe, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=5)


def test_global_cmvn_is_measured_on_the_training_split(tones):
    recipe = tiny_recipe(tones, features={"feature_size": 20, "cmvn": "global"})
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    assert cache_features(utterances, processor.feature_extractor, megabytes=1)
    every = torch.cat(utterances.features).float()
    torch.testing.assert_close(every.mean(0), torch.zeros(20), rtol=0, atol=5e-3)
    torch.testing.assert_close(every.std(0), torch.ones(20), rtol=0, atol=5e-3)


def test_a_corpus_that_cannot_be_read_is_refused(tmp_path):
    path = write_splits(tmp_path / "tones", train=1)
    with (path / "train" / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write("lost.flac,ab\n")
    with pytest.raises(DataError, match=r"listed but missing: .*lost\.flac"):
        train(tiny_recipe(path), tmp_path / "run")
    with pytest.raises(DataError, match="does not exist"):
        train(tiny_recipe(tmp_path / "nowhere"), tmp_path / "run")


def test_a_missing_split_is_named(tones, tmp_path):
    with pytest.raises(DataError, match=r"no split 'dev'.*'train'.*set data.validation_split"):
        train(tiny_recipe(tones, data={"validation_split": "dev"}), tmp_path / "run")


def test_a_tokenizer_of_ones_own(tones, tmp_path):
    train_character_tokenizer(["abcdef ghi"]).save_pretrained(tmp_path / "own")
    recipe = tiny_recipe(tones, tokenizer={"path": str(tmp_path / "own")})
    result = train(recipe, tmp_path / "run", stop_after=1)
    model, processor = load_recogniser(result.last, "cpu")
    assert len(processor.tokenizer) == model.config.vocab_size == 4 + 10
    other = train_character_tokenizer(["abcdef"])
    other.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match="must append its end token"):
        train(tiny_recipe(tones, tokenizer={"path": str(tmp_path / "other")}), tmp_path / "run2")


def test_a_vocabulary_that_is_too_small_is_refused(tones, tmp_path):
    with pytest.raises(DataError, match="vocab_size is 8"):
        train(tiny_recipe(tones, tokenizer={"kind": "bpe", "vocab_size": 8}), tmp_path / "run")


def test_the_energy_bias_comes_from_the_data(tones):
    recipe = tiny_recipe(tones)
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    model = build_model(recipe, build_config(recipe, processor), utterances)
    positions = sum(math.ceil(math.ceil(frames / 2) / 2) for frames in utterances.frames)
    expected = -math.log(positions / sum(len(labels) for labels in utterances.labels))
    assert model.config.energy_bias_init == pytest.approx(expected)
    assert model.model.decoder.layers[0].encoder_attn.energy_bias.tolist() == pytest.approx([expected] * 2)

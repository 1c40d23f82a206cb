"""Before the first step: data checks, features, tokenizer, model, optimizer and schedule."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers.processors import TemplateProcessing

from hf_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.recognition import DataError, SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.utterances import cache_features, prepare_split
from hf_entmax_asr.tokenization import train_character_tokenizer
from hf_entmax_asr.training import train
from hf_entmax_asr.training.data_checks import checked, ctc_length
from hf_entmax_asr.training.optimization import budget_used, learning_rate, parameter_groups, set_learning_rate
from hf_entmax_asr.training.preparation import build_config, build_model, build_processor, load_rows
from hf_entmax_asr.training.recipe import ScheduleSection
from support.tones import tiny_recipe, write_splits, write_tones


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=5)


def test_the_cache_holds_what_the_extractor_gives_and_respects_its_budget(tones):
    recipe = tiny_recipe(tones)
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    expected_frames = utterances.frames.copy()
    collate = SpeechSeq2SeqCollator(processor)
    uncached = collate([utterances.example(i) for i in range(5)])
    assert not cache_features(utterances, processor.feature_extractor, megabytes=0.01)
    assert utterances.features is None
    assert cache_features(utterances, processor.feature_extractor, megabytes=1)
    np.testing.assert_array_equal(utterances.frames, expected_frames)
    cached = collate([utterances.example(i) for i in range(5)])
    torch.testing.assert_close(cached["input_features"], uncached["input_features"], rtol=2e-3, atol=2e-3)
    for key in ("attention_mask", "labels"):
        torch.testing.assert_close(cached[key], uncached[key])


def test_global_cmvn_is_measured_on_the_training_split(tones):
    recipe = tiny_recipe(tones, features={"feature_size": 20, "cmvn": "global"})
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    assert cache_features(utterances, processor.feature_extractor, megabytes=1)
    every = torch.cat(utterances.features).float()
    torch.testing.assert_close(every.mean(0), torch.zeros(20), rtol=0, atol=5e-3)
    torch.testing.assert_close(every.std(0), torch.ones(20), rtol=0, atol=5e-3)


def test_ctc_needs_a_blank_between_equal_neighbours():
    assert ctc_length([5, 5, 6, 5, 2]) == 5
    assert ctc_length([2]) == 0


def bad_data(tones: Path, tmp_path: Path) -> Path:
    """A clip that is as it should be, one of 50 ms and one with a text far too long for its audio."""
    rows = [("file_name", "text"), ("good.flac", "ab"), ("short.flac", "a")]
    rows.append(("wrong.flac", "abc def " * 8))
    folder = tmp_path / "bad" / "train"
    folder.mkdir(parents=True)
    audio, _ = soundfile.read(tones / "train" / "000.flac")
    for name, _ in rows[1:]:
        soundfile.write(folder / name, audio[:800] if name == "short.flac" else audio, 16000)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder.parent


def test_bad_utterances_are_refused_with_counts_and_ids(tones, tmp_path):
    recipe = tiny_recipe(bad_data(tones, tmp_path), data={"validation_split": None})
    with pytest.raises(DataError) as refusal:
        train(recipe, tmp_path / "run")
    message = str(refusal.value)
    for part in ("1 shorter than 0.1 s", "short", "more tokens than", "wrong"):
        assert part in message
    assert "good" not in message
    assert "data.bad_utterances=drop" in message


def test_a_corpus_that_cannot_be_read_is_refused(tones, tmp_path):
    path = bad_data(tones, tmp_path)
    with (path / "train" / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write("lost.flac,ab\n")
    with pytest.raises(DataError, match=r"listed but missing: .*lost\.flac"):
        train(tiny_recipe(path), tmp_path / "run")
    with pytest.raises(DataError, match="does not exist"):
        train(tiny_recipe(tmp_path / "nowhere"), tmp_path / "run")


def test_an_empty_text_is_refused_whatever_the_corpus(tones):
    recipe = tiny_recipe(tones)
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    utterances.texts[3] = "  "
    with pytest.raises(DataError, match="1 with an empty text: 003"):
        checked("train", utterances, recipe.data, processor.tokenizer, None)


def test_bad_utterances_can_be_dropped(tones, tmp_path):
    path = str(bad_data(tones, tmp_path))
    recipe = tiny_recipe(tones, data={"path": path, "validation_split": None, "bad_utterances": "drop"})
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    positions = EntmaxAsrConfig().positions_of(utterances.frames)
    kept = checked("train", utterances, recipe.data, processor.tokenizer, positions)
    assert kept.texts == ["ab"]
    assert kept.example(0)["labels"] == processor.tokenizer("ab").input_ids


def test_unknown_characters_are_counted_and_named(tones, tmp_path):
    write_tones(tmp_path / "other" / "train", 2, seed=5)
    metadata = tmp_path / "other" / "train" / "metadata.csv"
    metadata.write_text("file_name,text\n000.flac,qab\n001.flac,cab\n")
    recipe = tiny_recipe(tones)
    processor = build_processor(recipe, load_rows(recipe))
    utterances = prepare_split(load_folder(tmp_path / "other")["train"], processor)
    with pytest.raises(DataError, match=r"limit 1\.0%.*Unknown characters: q\."):
        checked("train", utterances, recipe.data, processor.tokenizer, None)


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


def test_schedule_warms_up_falls_by_the_root_and_cools_down():
    schedule = ScheduleSection(warmup_steps=100, max_steps=1000, cooldown_fraction=0.2, cooldown_floor=0.1)
    rate = lambda step: learning_rate(schedule, 2.0, step, budget_used(schedule, step, 0.0))  # noqa: E731
    assert rate(49) == pytest.approx(1.0)
    assert rate(99) == pytest.approx(2.0)
    assert rate(399) == pytest.approx(1.0)
    assert rate(800) == pytest.approx(2 * math.sqrt(100 / 801))
    assert rate(900) == pytest.approx(2 * math.sqrt(100 / 901) * 0.55)
    assert learning_rate(schedule, 2.0, 999, 1.0) == pytest.approx(2 * math.sqrt(0.1) * 0.1)


def test_a_budget_of_minutes_drives_the_same_cooldown():
    schedule = ScheduleSection(warmup_steps=1, max_minutes=10, cooldown_fraction=0.5, cooldown_floor=0.0)
    assert budget_used(schedule, 10**6, 150.0) == pytest.approx(0.25)
    assert learning_rate(schedule, 1.0, 0, 0.75) == pytest.approx(0.5)
    assert budget_used(replace(schedule, max_steps=100), 90, 150.0) == pytest.approx(0.9)


def test_weight_decay_spares_every_vector(tones):
    recipe = tiny_recipe(tones, model={"encoder_transform": "entmax"})
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    model = build_model(recipe, build_config(recipe, processor), prepare_split(rows["train"], processor))
    decayed, spared, alphas = parameter_groups(model, 0.1, alpha_rate_factor=5.0)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == alphas["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in (decayed, spared, alphas)) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    assert {"gate", "energy_bias", "bias"} <= {names[id(p)].rpartition(".")[2] for p in spared["params"]}
    assert {names[id(p)].rpartition(".")[2] for p in alphas["params"]} == {"alpha_logit"}
    assert all(p.ndim > 1 for p in decayed["params"])
    optimizer = torch.optim.AdamW([decayed, spared, alphas])
    set_learning_rate(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01, 0.05]


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

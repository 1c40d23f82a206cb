"""Whether a split can be trained on: what is refused, with which counts and names, and what can be dropped."""

import csv
from pathlib import Path

import pytest
import soundfile

from hf_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.recognition import DataError
from hf_entmax_asr.recognition.utterances import prepare_split
from hf_entmax_asr.training import train
from hf_entmax_asr.training.data_checks import ctc_length, usable_utterances
from hf_entmax_asr.training.preparation import build_processor, load_rows
from support.tones import tiny_recipe, write_splits, write_tones


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=5)


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


def test_an_empty_text_is_refused_whatever_the_corpus(tones):
    recipe = tiny_recipe(tones)
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    utterances.texts[3] = "  "
    with pytest.raises(DataError, match="1 with an empty text: 003"):
        usable_utterances("train", utterances, recipe.data, processor.tokenizer, None)


def test_bad_utterances_can_be_dropped(tones, tmp_path):
    path = str(bad_data(tones, tmp_path))
    recipe = tiny_recipe(tones, data={"path": path, "validation_split": None, "bad_utterances": "drop"})
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    positions = EntmaxAsrConfig().positions_of(utterances.frames)
    kept = usable_utterances("train", utterances, recipe.data, processor.tokenizer, positions)
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
        usable_utterances("train", utterances, recipe.data, processor.tokenizer, None)

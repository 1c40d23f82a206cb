"""A split as recognition and training take it: tokens, frames and cached features."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_entmax_asr.recognition import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.utterances import cache_features, prepare_split
from hf_entmax_asr.training.preparation import build_processor, load_rows
from support.tones import tiny_recipe, write_splits


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

"""What `generate` refuses, how long its texts can be, and models that are shared out over processes."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from hf_entmax_asr.model.cache import MonotonicLayer
from hf_entmax_asr.model.generation_inputs import EndWithAudio, NoCircles, most_tokens, with_cheap_suppression
from support.small_models import features, small_config, small_model


@pytest.fixture
def talker():
    """A model that never says the end of a sentence by itself."""
    model = small_model(lively=True)
    with torch.no_grad():
        model.lm_head.weight[2] = 0
        model.lm_head.weight[5] = 1
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(2, torch.tensor([0, 1, 2]), -1e4))
    return model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.index_fill(1, torch.tensor([3]), float("nan")), "reaches nan"),
        (lambda x: x.index_fill(1, torch.tensor([3]), float("-inf")), "reaches inf"),
        (lambda x: x.index_fill(1, torch.tensor([3]), 1e30), "reaches 1e\\+30"),
        (lambda x: x[:, :, :5], r"must be \(utterances, time, 12\)"),
        (lambda x: x[0], r"must be \(utterances, time, 12\)"),
        (lambda x: x[:, :0], r"must be \(utterances, time, 12\)"),
    ],
)
def test_features_that_no_audio_gives_are_refused(change, said):
    x, mask = features()
    with pytest.raises(ValueError, match=said):
        small_model().generate(change(x), attention_mask=mask)


def test_a_mask_of_other_rows_or_length_is_refused():
    model, (x, mask) = small_model(), features()
    states = model.get_encoder()(x, attention_mask=mask)
    for wrong in (mask[:2], mask[:1], mask[:, :40], torch.cat([mask, mask], 1), mask[0]):
        with pytest.raises(ValueError, match="attention_mask has the shape"):
            model.generate(x, attention_mask=wrong)
        with pytest.raises(ValueError, match="attention_mask has the shape"):
            model.generate(encoder_outputs=states, attention_mask=wrong)
        with pytest.raises(ValueError, match="attention_mask has the shape"):
            model.generate(encoder_outputs=(states[0],), attention_mask=wrong)
    assert torch.equal(
        model.generate(encoder_outputs=(states[0],), attention_mask=mask), model.generate(x, attention_mask=mask)
    )
    with pytest.raises(ValueError, match="encoder_outputs reaches nan"):
        model.generate(encoder_outputs=(states[0] * float("nan"),), attention_mask=mask)


@pytest.mark.parametrize("position", [-1, 16, 10**9])
def test_a_cache_whose_heads_stand_outside_the_audio_is_refused(position):
    model, (x, mask) = small_model(lively=True), features()
    cache = model.generate(x, attention_mask=mask, max_new_tokens=3, return_dict_in_generate=True).past_key_values
    layer = next(each for each in cache.cross_attention_cache.layers if isinstance(each, MonotonicLayer))
    layer.progress[0, 0, -1] = position
    with pytest.raises(ValueError, match="heads that stand outside the 16 encoder positions"):
        model.generate(x, attention_mask=mask, past_key_values=cache, decoder_input_ids=torch.ones(3, 5).long())


def test_a_cache_of_other_audio_is_refused():
    model, (x, mask) = small_model(lively=True), features()
    cache = model.generate(x, attention_mask=mask, max_new_tokens=3, return_dict_in_generate=True).past_key_values
    with pytest.raises(ValueError, match="holds keys of 16 encoder positions; this audio has 8"):
        model.generate(x[:, :30], past_key_values=cache, decoder_input_ids=torch.ones(3, 5).long())


def lengths(sequences):
    """Tokens of each text before its end."""
    return [row[1:].tolist().index(2) if 2 in row[1:] else len(row) - 1 for row in sequences]


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_text_is_as_long_as_its_audio_lets_it(talker, strategy):
    x, mask = features()  # 61, 49 and 39 frames: 16, 13 and 10 positions
    rows = strategy.get("num_return_sequences", 1)
    for share, expected in ((1.0, [16, 13, 10]), (0.5, [8, 7, 5]), (2, [32, 26, 20])):
        talker.config.max_tokens_per_position = share
        found = lengths(talker.generate(x, attention_mask=mask, **strategy))
        assert found == [length for length in expected for _ in range(rows)]
    alone = talker.generate(x[1:2, :49], **strategy)
    assert lengths(alone) == [26] * rows


def test_the_limit_of_the_user_lies_above_that_of_the_audio(talker):
    x, mask = features()
    assert lengths(talker.generate(x, attention_mask=mask, max_new_tokens=12)) == [12, 12, 10]
    assert lengths(talker.generate(x, attention_mask=mask, max_length=12)) == [11, 11, 10]
    assert lengths(talker.generate(x, attention_mask=mask, max_new_tokens=1000)) == [16, 13, 10]
    asked = GenerationConfig(max_new_tokens=4, eos_token_id=2, pad_token_id=0, decoder_start_token_id=1)
    assert lengths(talker.generate(x, attention_mask=mask, generation_config=asked)) == [4, 4, 4]


def test_audio_without_a_sound_has_no_text(talker):
    x, mask = features()
    x[1] = -4.0
    x[2, 20:] = -4.0  # 5 positions have sound
    assert lengths(talker.generate(x, attention_mask=mask)) == [16, 0, 5]
    assert most_tokens(talker.config, x, None, mask).tolist() == [16, 0, 5]
    assert most_tokens(talker.config, torch.zeros(2, 100, 12), None, None).tolist() == [0, 0]


def test_what_was_cut_is_told_and_what_ended_by_itself_is_not(talker, caplog):
    logger = logging.getLogger("hf_entmax_asr.model.generation_entmax_asr")
    logger.addHandler(caplog.handler)
    logger.warning_once.cache_clear()
    x, mask = features()
    try:
        with caplog.at_level(logging.WARNING):
            small_model().generate(x, attention_mask=mask, max_new_tokens=2)
            assert not [r for r in caplog.records if "was cut" in r.getMessage()]
            talker.generate(x, attention_mask=mask)
        assert [r.getMessage() for r in caplog.records if "was cut" in r.getMessage()]
    finally:
        logger.removeHandler(caplog.handler)


def test_only_a_hypothesis_that_goes_on_is_cut():
    end = EndWithAudio(torch.tensor([2, 2, 2]), torch.tensor([2]), given=1)
    said = torch.tensor([[1, 7, 7], [1, 7, 2], [1, 7, 7]])
    scores = torch.zeros(3, 9)
    scores[0, 5] = scores[1, 5] = scores[2, 2] = 1  # goes on; has ended; ends now
    forced = end(said, scores)
    assert end.cut.tolist() == [True, False, False]
    assert forced.argmax(1).tolist() == [2, 2, 2]
    assert end(said[:, :2], scores) is scores


def test_the_share_must_be_one_that_can_be_meant():
    for share in (0, -1, float("nan"), 1e9):
        with pytest.raises(Exception, match="max_tokens_per_position"):
            small_config(max_tokens_per_position=share)


@pytest.mark.slow
def test_sharded_models_generate_what_whole_ones_do():
    done = subprocess.run(
        [sys.executable, "-m", "support.generate_sharded"],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["whole", "layer by layer", "transducer", ""]


def naive_circles(text, most):
    """The tokens that cannot follow a text, said with slices of lists."""
    phrases = range(1, min(16, len(text) // most) + 1)
    return {text[-size] for size in phrases if text[-size * most :] == text[-size:] * most}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(2, 9), st.integers(1, 18), st.integers(0, 4))
def test_a_phrase_that_stands_often_enough_cannot_begin_again(head, most, size, repeats):
    text = head + head[-size:] * most * (repeats > 0)
    scores = NoCircles(most)(torch.tensor([text, [7] * len(text)]), torch.zeros(2, 8))
    assert {token for token in range(8) if scores[0, token] == -torch.inf} == naive_circles(text, most)
    assert {token for token in range(8) if scores[1, token] == -torch.inf} == naive_circles([7] * len(text), most)


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}])
def test_no_text_goes_round_in_circles(talker, strategy):
    x, mask = features()
    talker.config.max_tokens_per_position = 4
    ids = talker.generate(x, attention_mask=mask, max_repeats=0, **strategy)[0, 1:-1].tolist()
    assert naive_circles(ids, 8)  # by itself it does
    for most in (8, 3):
        asked = {} if most == 8 else {"max_repeats": most}
        ids = talker.generate(x, attention_mask=mask, **asked, **strategy)[0, 1:-1].tolist()
        assert not any(ids[end] in naive_circles(ids[:end], most) for end in range(1, len(ids)))
    talker.generation_config.max_repeats = 3
    assert talker.generate(x, attention_mask=mask, **strategy)[0, 1:-1].tolist() == ids


@pytest.mark.parametrize("wrong", [1, -1, 2.5, True])
def test_a_number_of_repeats_that_cannot_be_is_refused(wrong):
    x, mask = features()
    with pytest.raises(ValueError, match=r"max_repeats = .* must be 2 or more"):
        small_model().generate(x, attention_mask=mask, max_repeats=wrong)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 12)), st.lists(st.integers(-1, 12), min_size=1), st.integers(1, 3))
def test_tokens_are_forbidden_as_transformers_forbids_them(always, at_first, length):
    theirs = LogitsProcessorList(
        [SuppressTokensLogitsProcessor(always), SuppressTokensAtBeginLogitsProcessor(at_first, begin_index=2)]
    )
    scores = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    before = scores.clone()
    ids = torch.zeros(2, length, dtype=torch.long)
    assert torch.equal(with_cheap_suppression(theirs)(ids, scores), theirs(ids, scores))
    assert torch.equal(scores, before)


def test_generation_forbids_tokens_the_cheap_way(talker):
    settings = GenerationConfig(suppress_tokens=[5], begin_suppress_tokens=[6])
    processors = talker._get_logits_processor(settings, input_ids_seq_length=1, logits_processor=LogitsProcessorList())
    assert {type(processor).__module__ for processor in processors} == {EndWithAudio.__module__}

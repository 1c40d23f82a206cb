"""Generation: every strategy, the cache and its head positions, and the boundaries that `generate` returns."""

import copy

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, StaticCache
from transformers.cache_utils import DynamicLayer

from hf_entmax_asr.model.cache import MonotonicLayer, make_cache
from support.small_models import CHUNKS, features, small_model

READINGS = [
    {"monotonic_decoding": decoding, "firing_rule": rule, "monotonic_chunk_size": chunk}
    for chunk in CHUNKS
    for decoding, rule in (("hard", "threshold"), ("hard", "cumulative"), ("soft", "threshold"))
]
READING_NAMES = ["-".join(map(str, reading.values())) for reading in READINGS]
STRATEGIES = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 3, "do_sample": True},
}


def decode(model, seed=0, frames=61, batch=3, **options):
    """Tokens, scores and more of the test features."""
    input_features, mask = features(batch=batch, frames=frames)
    options = {"max_new_tokens": 8, "output_scores": True, "return_dict_in_generate": True, **options}
    torch.manual_seed(seed)
    return model.generate(input_features, attention_mask=mask, **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("reading", READINGS, ids=READING_NAMES)
def test_cached_equals_uncached(reading, strategy):
    model = small_model(lively=True, **reading)
    cached, uncached = (decode(model, use_cache=use_cache, **STRATEGIES[strategy]) for use_cache in (True, False))
    assert torch.equal(cached.sequences, uncached.sequences)
    assert cached.sequences.shape[0] == 3 * STRATEGIES[strategy].get("num_return_sequences", 1)
    assert len(cached.sequences.unique()) > 4  # the decoded tokens do vary
    for score, other in zip(cached.scores, uncached.scores, strict=True):
        torch.testing.assert_close(score, other, rtol=1e-4, atol=1e-4)
    assert uncached.past_key_values is None


def test_cached_equals_uncached_without_monotonic_layers():
    for options in ({"cross_attention": "full"}, {"first_monotonic_layer": 1}):
        model = small_model(lively=True, **options)
        for strategy in STRATEGIES.values():
            cached, uncached = (decode(model, use_cache=use_cache, **strategy) for use_cache in (True, False))
            assert torch.equal(cached.sequences, uncached.sequences)
            torch.testing.assert_close(cached.scores, uncached.scores, rtol=1e-4, atol=1e-4)


def test_greedy_takes_the_best_token_and_beams_a_better_sentence():
    model = small_model(lively=True, eos_token_id=None)
    input_features, mask = features()
    greedy, beams = decode(model), decode(model, num_beams=6)
    log_p = [
        model(input_features, attention_mask=mask, decoder_input_ids=ids[:, :-1]).logits.log_softmax(-1)
        for ids in (greedy.sequences, beams.sequences)
    ]
    assert torch.equal(log_p[0].argmax(-1), greedy.sequences[:, 1:])
    totals = [
        p.gather(-1, ids[:, 1:, None]).sum((1, 2))
        for p, ids in zip(log_p, (greedy.sequences, beams.sequences), strict=True)
    ]
    torch.testing.assert_close(totals[1] / 8, beams.sequences_scores, rtol=1e-4, atol=1e-4)
    assert (totals[1] >= totals[0] - 1e-4).all()
    assert (totals[1] > totals[0] + 1e-3).any()


def test_sampling_follows_the_seed():
    model = small_model(lively=True)
    first, again, other = (decode(model, seed, do_sample=True).sequences for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize("strategy", ["greedy", "beams"])
@pytest.mark.parametrize("reading", READINGS, ids=READING_NAMES)
def test_a_padded_batch_equals_single_utterances(reading, strategy):
    model = small_model(lively=True, **reading)
    options = {"max_new_tokens": 8, **STRATEGIES[strategy]}
    together = decode(model, output_scores=False, **options).sequences.unflatten(0, (3, -1))
    input_features, mask = features()
    for index in range(3):
        alone = model.generate(input_features[index : index + 1, : mask[index].sum()], **options)
        width = alone.shape[1]
        assert torch.equal(together[index, :, :width], alone)
        assert (together[index, :, width:] == 0).all()


@pytest.mark.parametrize("reading", READINGS, ids=READING_NAMES)
def test_assisted_decoding_equals_greedy(reading):
    model, assistant = (small_model(seed, lively=True, **reading) for seed in (0, 1))
    greedy = decode(model, batch=1, max_new_tokens=10).sequences
    for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": assistant}):
        assisted = decode(model, batch=1, max_new_tokens=10, **options)
        assert torch.equal(assisted.sequences, greedy), list(options)


@pytest.mark.parametrize("reading", READINGS, ids=READING_NAMES)
def test_a_cropped_cache_goes_on_from_where_it_was_cropped(reading):
    model = small_model(lively=True, **reading)
    input_features, mask = features()
    inputs = {"input_features": input_features, "attention_mask": mask}
    prefix, wrong, right = (torch.randint(4, 24, (3, n), generator=torch.Generator().manual_seed(n)) for n in (3, 2, 4))
    with torch.no_grad():
        cache = model(**inputs, decoder_input_ids=prefix).past_key_values
        cache = model(**inputs, decoder_input_ids=wrong, past_key_values=cache).past_key_values
        cache.crop(-2)
        continued = model(**inputs, decoder_input_ids=right, past_key_values=cache).logits
        whole = model(**inputs, decoder_input_ids=torch.cat([prefix, right], 1), use_cache=False).logits
    torch.testing.assert_close(continued, whole[:, 3:], rtol=1e-4, atol=1e-4)


# The cache


def filled_cache(model):
    """The cache of three utterances after four tokens each, and what filled it."""
    input_features, mask = features()
    tokens = torch.randint(4, 24, (3, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(input_features, attention_mask=mask, decoder_input_ids=tokens, use_cache=True)
    return output.past_key_values, input_features, mask, tokens


@pytest.mark.parametrize("reading", READINGS, ids=READING_NAMES)
@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reorder", "select", "repeat"],
)
def test_head_positions_follow_their_rows(change, rows, reading):
    model = small_model(lively=True, **reading)
    cache, input_features, mask, tokens = filled_cache(model)
    before = [copy.copy(vars(layer)) for layer in cache.cross_attention_cache.layers]
    assert len(before[0]["progress"].flatten(1).unique(dim=0)) == 3  # the rows differ
    change(cache)
    for layer, old in zip(cache.cross_attention_cache.layers, before, strict=True):
        for name in ("progress", "keys", "values", "window_keys"):
            if old[name] is None:
                assert getattr(layer, name) is None
            else:
                assert torch.equal(getattr(layer, name), old[name][rows]), name
    following = torch.randint(4, 24, (len(rows), 2), generator=torch.Generator().manual_seed(1))
    inputs = {"input_features": input_features[rows], "attention_mask": mask[rows]}
    with torch.no_grad():
        continued = model(**inputs, decoder_input_ids=following, past_key_values=cache).logits
        whole = model(**inputs, decoder_input_ids=torch.cat([tokens[rows], following], 1), use_cache=False).logits
    torch.testing.assert_close(continued, whole[:, 4:], rtol=1e-4, atol=1e-4)


def test_a_reset_cache_is_as_new():
    model = small_model(lively=True, monotonic_chunk_size=4)
    cache, input_features, mask, tokens = filled_cache(model)
    positions = [layer.progress for layer in cache.cross_attention_cache.layers]
    cache.reset()
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        model(input_features, attention_mask=mask, decoder_input_ids=tokens, past_key_values=cache)
    for layer, before in zip(cache.cross_attention_cache.layers, positions, strict=True):
        assert torch.equal(layer.progress, before)


def test_layers_of_the_cache_are_those_of_the_model():
    config = small_model(first_monotonic_layer=1).config
    assert [type(layer) for layer in make_cache(config).cross_attention_cache.layers] == [DynamicLayer, MonotonicLayer]


def test_an_empty_cache_of_the_user_is_filled():
    model = small_model(lively=True)
    expected = decode(model).sequences
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert torch.equal(decode(model, past_key_values=cache).sequences, expected)
    assert cache.cross_attention_cache.layers[0].progress.shape[2] == cache.get_seq_length() == 8
    assert torch.equal(decode(model, past_key_values=DynamicCache()).sequences, expected)


def test_caches_that_cannot_carry_positions_are_refused():
    model = small_model(lively=True)
    for implementation in ("static", "offloaded", "quantized", "offloaded_static"):
        with pytest.raises(ValueError, match=f"cache_implementation = '{implementation}' is not supported"):
            decode(model, cache_implementation=implementation)
    static = EncoderDecoderCache(*(StaticCache(model.config, max_cache_len=9) for _ in range(2)))
    with pytest.raises(ValueError, match="needs an EncoderDecoderCache of two DynamicCache"):
        decode(model, past_key_values=static)
    input_features, _ = features(batch=1)
    token = torch.tensor([[1]])
    full = small_model(cross_attention="full")
    foreign = full(input_features, decoder_input_ids=token).past_key_values
    with pytest.raises(ValueError, match="a filled DynamicLayer, not a MonotonicLayer"):
        model(input_features, decoder_input_ids=token, past_key_values=foreign)
    cache = DynamicCache()  # the returned cache is another object; this one knows the tokens but not the positions
    model(input_features, decoder_input_ids=token, past_key_values=cache)
    with pytest.raises(ValueError, match="holds 1 tokens but head positions for 0"):
        model(input_features, decoder_input_ids=token, past_key_values=cache)


def test_without_use_cache_a_cache_is_ignored():
    model = small_model(lively=True)
    cache, input_features, mask, tokens = filled_cache(model)
    inputs = {"input_features": input_features, "attention_mask": mask, "decoder_input_ids": tokens, "use_cache": False}
    with torch.no_grad():
        output = model(**inputs, past_key_values=cache)
        assert torch.equal(output.logits, model(**inputs).logits)
    assert output.past_key_values is None
    assert cache.get_seq_length() == 4


# Boundaries


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("rule", ["threshold", "cumulative"])
def test_boundaries_are_those_the_beams_were_scored_with(rule, chunk, strategy):
    model = small_model(lively=True, firing_rule=rule, monotonic_chunk_size=chunk, eos_token_id=None)
    steps = [[], []]  # for each layer, what every row's heads did at every step of the search
    hooks = [
        layer.encoder_attn.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output[2]))
        for layer, seen in zip(model.model.decoder.layers, steps, strict=True)
    ]
    output = decode(model, **STRATEGIES[strategy])
    for hook in hooks:
        hook.remove()
    rows = torch.arange(output.sequences.shape[0])[:, None].expand(-1, 8)
    if "beams" in strategy or "beam" in strategy:
        rows = output.beam_indices  # the row that each token was taken from
    assert len(output.boundaries) == 2
    for boundaries, seen in zip(output.boundaries, steps, strict=True):
        assert boundaries.shape == (output.sequences.shape[0], 4, 8)
        for step in range(8):
            assert torch.equal(boundaries[:, :, step], seen[step][rows[:, step], :, 0])
        assert (boundaries[:, :, 1:] >= boundaries[:, :, :-1]).all()
        assert boundaries.max() < 16
    assert len(output.boundaries[0].unique()) > 3  # the heads do walk
    repeats = output.sequences.shape[0] // 3
    input_features, mask = (x.repeat_interleave(repeats, 0) for x in features())
    recomputed = model.head_boundaries(output.sequences, input_features, mask)
    assert all(torch.equal(a, b) for a, b in zip(recomputed, output.boundaries, strict=True))


def test_boundaries_cost_no_second_encoding():
    model = small_model(lively=True).train()  # and leave the model as it was
    calls = []
    model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    output = decode(model.eval().train(), num_beams=2, num_return_sequences=2, output_attentions=True)
    assert len(calls) == 1
    assert model.training
    assert len(output.encoder_attentions) == 2
    assert output["boundaries"] is output.boundaries


def test_boundaries_where_asked_for():
    model = small_model(lively=True)
    assert torch.equal(decode(model, return_dict_in_generate=False, output_scores=False), decode(model).sequences)
    settings = GenerationConfig(max_new_tokens=8, return_dict_in_generate=True)
    input_features, mask = features()
    by_configuration = model.generate(
        generation_config=settings, input_features=input_features, attention_mask=mask
    ).boundaries
    assert all(torch.equal(a, b) for a, b in zip(by_configuration, decode(model).boundaries, strict=True))
    for options in ({"monotonic_decoding": "soft"}, {"cross_attention": "full"}):
        other = small_model(lively=True, **options)
        output = decode(other)
        assert "boundaries" not in output
        assert not other.head_boundaries(output.sequences, input_features, mask)


def test_no_boundary_beyond_the_audio():
    model = small_model(lively=True, energy_bias_init=-1e4)  # no head ever fires
    output = decode(model)
    lengths = [16, 13, 10]
    for boundaries in output.boundaries:
        assert torch.equal(boundaries.amax((1, 2)), torch.tensor(lengths) - 1)
        assert torch.equal(boundaries.amin((1, 2)), torch.tensor(lengths) - 1)


def test_the_cumulative_rule_stops_no_later():
    model = small_model(energy_bias_init=-1.0)  # stopping is not likely anywhere, but over several positions it is
    sequences = decode(model).sequences
    threshold = model.head_boundaries(sequences, *features())
    model.config.firing_rule = "cumulative"
    cumulative = model.head_boundaries(sequences, *features())
    assert (cumulative[0][:, :, 0] <= threshold[0][:, :, 0]).all()
    assert (cumulative[0][:, :, 0] < threshold[0][:, :, 0]).any()


# Inputs


def test_encoder_outputs_are_taken_and_left_alone():
    model = small_model(lively=True)
    input_features, mask = features()
    expected = decode(model, num_beams=3)
    states = model.get_encoder()(input_features, attention_mask=mask)
    for given in (states, (states.last_hidden_state,)):
        output = model.generate(
            encoder_outputs=given,
            attention_mask=mask,
            num_beams=3,
            max_new_tokens=8,
            return_dict_in_generate=True,
        )
        assert torch.equal(output.sequences, expected.sequences)
        assert torch.equal(output.boundaries[0], expected.boundaries[0])
        assert given[0].shape == (3, 16, 16)  # not repeated for the beams


def test_a_mask_of_three_dimensions_and_none_at_all():
    model = small_model(lively=True)
    input_features, mask = features()
    expected = decode(model).sequences
    wide = mask.unsqueeze(-1).expand_as(input_features)
    assert torch.equal(model.generate(input_features, attention_mask=wide, max_new_tokens=8), expected)
    unmasked = model.generate(input_features[:1], max_new_tokens=8)
    assert torch.equal(unmasked[0], expected[0, : unmasked.shape[1]])


def test_one_frame_of_audio():
    model = small_model(lively=True)
    output = decode(model, batch=1, frames=1)
    assert all((boundaries == 0).all() for boundaries in output.boundaries)

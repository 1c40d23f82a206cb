"""Layers that share a self-attention map: against a model whose layers are handed the map, and with every feature."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrForConditionalGeneration, EntmaxAsrProcessor
from hf_entmax_asr.model.cache import MonotonicLayer, ValueLayer, make_cache
from hf_entmax_asr.model.configuration_entmax_asr import TRANSFORMS
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.checkpoint_alone import examine, examine_apart
from support.small_models import features, small_config, small_model, targets

HERE = Path(__file__).parent
LAYERS = {"encoder_layers": 4, "decoder_layers": 3}
GROUPS = {**LAYERS, "encoder_map_groups": [1, 3], "decoder_map_groups": [2, 1]}
LENDERS = {  # by layer: the layer whose map it uses
    f"{side}.layers.{layer}.self_attn": f"{side}.layers.{source}.self_attn"
    for side, sources in (("encoder", "0111"), ("decoder", "002"))
    for layer, source in enumerate(sources)
}
BORROWERS = [name for name, source in LENDERS.items() if name != source]


def twin_of(model: EntmaxAsrForConditionalGeneration) -> EntmaxAsrForConditionalGeneration:
    """A model without groups and with the weights of `model`, into whose borrowing layers maps are put by hand."""
    options = model.config.to_dict() | {"encoder_map_groups": None, "decoder_map_groups": None}
    twin = EntmaxAsrForConditionalGeneration(type(model.config).from_dict(options))
    missing = twin.load_state_dict(model.state_dict(), strict=False)
    assert not missing.unexpected_keys
    modules = {name: twin.get_submodule(f"model.{name}") for name in LENDERS}
    maps = {}

    def by_hand(name):
        module, own_forward = modules[name], modules[name].forward

        def forward(hidden_states, attention_mask=None, **_):
            if name == LENDERS[name]:
                output, maps[name] = own_forward(hidden_states, attention_mask, need_weights=True)
                return output, maps[name]
            weights = F.dropout(maps[LENDERS[name]], module.dropout, module.training)
            value = module.v_proj(hidden_states).unflatten(-1, (module.num_heads, -1))  # (B, T, H, D)
            return module.out_proj(torch.einsum("bhts,bshd->bthd", weights, value).flatten(2)), None

        return forward

    for name, module in modules.items():
        module.forward = by_hand(name)
    return twin.train(model.training)


def gradients(model, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    input_features, mask = features()
    model(input_features, attention_mask=mask, labels=targets(), **options).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal to rounding, measured by the largest entry of each tensor."""
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-4 * float(theirs[name].abs().max()) + 1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_equals_a_model_that_is_handed_the_maps(transform):
    options = {"encoder_transform": transform, "decoder_transform": transform, "attention_topk": 3}
    model = small_model(lively=True, monotonic_decoding="soft", **options, **GROUPS)
    twin = twin_of(model)
    input_features, mask = features()
    inputs = {"input_features": input_features, "attention_mask": mask, "labels": targets()}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, twin(**inputs).logits)
    ours, theirs = gradients(model.train()), gradients(twin.train())
    assert ours.keys() == {name for name, _ in model.named_parameters()}
    assert_alike(ours, theirs)


def test_gradients_of_borrowers_reach_the_lender():
    model = small_model(lively=True, **GROUPS)
    alone = copy.deepcopy(model)
    for name in BORROWERS:
        module = alone.get_submodule(f"model.{name}")
        module.forward = lambda *args, own=module.forward, shared_map, **kwargs: own(
            *args, shared_map=shared_map.detach(), **kwargs
        )
    with_them, without = gradients(model), gradients(alone)
    for name in set(LENDERS.values()) - {"encoder.layers.0.self_attn", "decoder.layers.2.self_attn"}:
        for parameter in ("q_proj.weight", "k_proj.weight", "transform.alpha_logit"):
            key = f"model.{name}.{parameter}"
            assert not torch.allclose(with_them[key], without[key]), key


def test_the_weights_of_dropped_out_maps_differ_from_layer_to_layer():
    model = small_model(attention_dropout=0.5, **GROUPS).train()
    twin = twin_of(model)  # drops weights out anew in each layer, in the same order
    ours, theirs = gradients(model, output_attentions=True), gradients(twin)  # else native code draws other numbers
    assert_alike(ours, theirs)


def test_what_does_not_exist(tmp_path):
    model = small_model(**GROUPS)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for name, source in LENDERS.items():
        own = name == source
        for tensors in (model.state_dict(), saved):
            found = {key.removeprefix(f"model.{name}.") for key in tensors if key.startswith(f"model.{name}.")}
            wanted = {f"{p}_proj.{kind}" for p in (*("qk" if own else ""), "v", "out") for kind in ("weight", "bias")}
            assert found == wanted | ({"transform.alpha_logit"} if own else set())
    assert set(model.alphas()) == set(LENDERS.values())
    whole = small_model(**LAYERS)
    saved_weights = 2 * (16 * 16 + 16)  # of the queries and keys of one layer
    difference = whole.num_parameters() - model.num_parameters()
    assert difference == len(BORROWERS) * saved_weights + 2 * 2 + 1 * 4  # and an α of each head


def test_attention_maps_of_all_layers():
    model = small_model(lively=True, **GROUPS)
    input_features, mask = features()
    with torch.no_grad():
        output = model(input_features, attention_mask=mask, labels=targets(), output_attentions=True)
        states = model(input_features, attention_mask=mask, labels=targets(), output_hidden_states=True)
    assert len(output.encoder_attentions) == 4
    assert len(output.decoder_attentions) == len(output.cross_attentions) == 3
    assert torch.equal(output.encoder_attentions[1], output.encoder_attentions[3])
    assert not torch.equal(output.encoder_attentions[0], output.encoder_attentions[1])
    assert torch.equal(output.decoder_attentions[0], output.decoder_attentions[1])
    assert not torch.equal(output.decoder_attentions[0], output.decoder_attentions[2])
    assert len(states.encoder_hidden_states) == 5
    torch.testing.assert_close(states.logits, output.logits)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    found = []
    for checkpointing in (False, True):
        options = {"dropout": 0.2, "attention_dropout": 0.2, "energy_noise_std": 1.0}
        model = small_model(**options, **GROUPS).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert_alike(found[1], found[0])


def test_the_cache_holds_values_alone():
    model = small_model(lively=True, **GROUPS)
    input_features, mask = features()
    tokens = targets().clamp(min=0)
    with torch.no_grad():
        cache = model(input_features, attention_mask=mask, decoder_input_ids=tokens).past_key_values
    layers = cache.self_attention_cache.layers
    assert [type(layer) is ValueLayer for layer in layers] == [False, True, False]
    assert [tuple(layer.keys.shape) for layer in layers] == [(3, 4, 6, 4), (3, 4, 6, 0), (3, 4, 6, 4)]
    assert [tuple(layer.values.shape) for layer in layers] == [(3, 4, 6, 4)] * 3
    assert [layer.get_seq_length() for layer in layers] == [6, 6, 6]
    assert layers[1].keys.untyped_storage().nbytes() == 0
    cache.crop(-2)
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    assert [tuple(layer.values.shape) for layer in layers] == [(3, 4, 4, 4)] * 3
    layers[1].batch_repeat_interleave(2)
    assert layers[1].values.shape == (6, 4, 4, 4)
    layers[1].batch_select_indices(torch.tensor([0, 5]))
    assert layers[1].values.shape == (2, 4, 4, 4)
    layers[1].reset()
    assert layers[1].get_seq_length() == 0


def test_a_cache_of_another_model_is_refused():
    model = small_model(lively=True, **LAYERS)
    input_features, _ = features(batch=1)
    with torch.no_grad():
        cache = model(input_features, decoder_input_ids=torch.tensor([[1, 5]])).past_key_values
    with pytest.raises(ValueError, match="layer 1 of past_key_values is a filled DynamicLayer, not a ValueLayer"):
        make_cache(small_config(**GROUPS), cache)
    empty = make_cache(small_config(**LAYERS))
    assert type(make_cache(small_config(**GROUPS), empty).self_attention_cache.layers[1]) is ValueLayer
    assert isinstance(empty.cross_attention_cache.layers[1], MonotonicLayer)


@pytest.mark.parametrize("decoding", ["hard", "soft"])
def test_token_after_token_equals_all_at_once(decoding):
    model = small_model(lively=True, monotonic_decoding=decoding, **GROUPS)
    input_features, mask = features()
    tokens, cache, steps = targets().clamp(min=0), None, []
    with torch.no_grad():
        whole = model(input_features, attention_mask=mask, decoder_input_ids=tokens, use_cache=False).logits
        for token in tokens.split([1, 3, 1, 1], 1):
            output = model(input_features, attention_mask=mask, decoder_input_ids=token, past_key_values=cache)
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_and_without_cache(beams):
    model = small_model(lively=True, **GROUPS)
    input_features, mask = features()
    options = {"attention_mask": mask, "num_beams": beams, "max_new_tokens": 8, "suppress_tokens": [0, 2]}
    options["no_repeat_ngram_size"] = 2  # an untrained decoder repeats itself
    with_cache = model.generate(input_features, **options)
    assert torch.equal(with_cache, model.generate(input_features, use_cache=False, **options))
    assert len(set(with_cache[0].tolist())) > 4


def test_assisted_decoding():
    model, assistant = (small_model(seed, lively=True, **GROUPS) for seed in (0, 1))
    input_features, _ = features(batch=1)
    options = {"max_new_tokens": 8, "suppress_tokens": [0, 2], "do_sample": False}
    alone = model.generate(input_features, **options)
    assert torch.equal(model.generate(input_features, assistant_model=assistant, **options), alone)


@pytest.mark.filterwarnings("ignore")  # torch's own tracing touches what autograd warns of
def test_compiled_equals_eager():
    groups = {"encoder_map_groups": [2], "decoder_map_groups": [2]}
    model = small_model(decoder_transform="softmax", **groups).train()
    input_features, mask = features()
    inputs = {"input_features": input_features, "attention_mask": mask, "labels": targets()}
    eager, compiled = (form(**inputs) for form in (model, torch.compile(model, backend="aot_eager")))
    torch.testing.assert_close(compiled.loss, eager.loss)
    parts = (torch.autograd.grad(output.loss, list(model.parameters())) for output in (eager, compiled))
    for expected, gradient in zip(*parts, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, tmp_path):
    small_model(lively=True, **GROUPS).save_pretrained(tmp_path)
    model = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    input_features, mask = features()
    model.train()(input_features, attention_mask=mask, labels=targets()).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.generate(input_features, attention_mask=mask, max_new_tokens=4, num_beams=2).shape[0] == 3


def test_a_checkpoint_loads_where_the_package_is_not(tmp_path):
    folder, audio = tmp_path / "checkpoint", str(HERE / "speech.flac")
    tokenizer = train_character_tokenizer(["the quick brown fox jumps over the lazy dog"])
    EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(), tokenizer).save_pretrained(folder)
    small_model(lively=True, vocab_size=len(tokenizer), num_mel_bins=80, **GROUPS).save_pretrained(folder)
    here = examine(audio, str(folder))
    for report in examine_apart(audio, folder, tmp_path):
        assert report["text"] == here["text"]
        assert report["loss of model"] == pytest.approx(here["loss of model"], rel=1e-4)
        assert len(report["zeros of model"]) == 4
        assert len(report["gradient of model"]) == 4  # the layers with a map of their own
        assert report["gradient of model"] == pytest.approx(here["gradient of model"], rel=1e-3)
        assert min(report["gradient of model"][:2]) > 0  # of the encoder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_map_groups": [1, 2]}, r"encoder_map_groups = \[1, 2\] must be .* encoder_layers = 2, not to 3"),
        ({"encoder_map_groups": []}, "add up to encoder_layers = 2, not to 0"),
        ({"decoder_map_groups": [0, 2]}, r"decoder_map_groups = \[0, 2\] must be sizes of at least 1"),
        ({"decoder_map_groups": 2}, "decoder_map_groups"),
    ],
)
def test_refused(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        small_config(**options)


def test_a_borrowing_layer_needs_a_map():
    layer = small_model(**GROUPS).get_encoder().layers[2]
    with pytest.raises(ValueError, match="layer 2 has no map of its own"):
        layer(torch.zeros(1, 5, 16))

"""The model as a whole: every transform trains, generates, saves and loads; masks, outputs, dtypes, refusals."""

import copy
import math

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from hf_entmax_asr import EntmaxAsrForConditionalGeneration, EntmaxAsrModel
from hf_entmax_asr.model.configuration_entmax_asr import CROSS_HEAD_TRANSFORMS, TRANSFORMS
from hf_entmax_asr.model.layers import sinusoidal_positions
from hf_entmax_asr.model.modeling_entmax_asr import EntmaxAsrEncoder
from support.small_models import CHUNKS, features, small_config, small_model, targets


def check_step_generate_reload(folder, **options) -> EntmaxAsrForConditionalGeneration:
    """One training step that reaches every parameter; generate, save, load: the same outputs. Returns the model."""
    model = small_model(lively=True, dropout=0.1, energy_noise_std=1.0, **options).train()
    input_features, mask = features()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = model(input_features, attention_mask=mask, labels=targets()).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.endswith(("alpha_logit", "energy_bias", "gate", "_proj.weight", "fc1.weight", "head.weight")):
            assert parameter.grad.abs().max() > 0, name
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())

    model.eval()
    model.save_pretrained(folder)
    loaded = EntmaxAsrForConditionalGeneration.from_pretrained(folder)
    inputs = {"input_features": input_features, "attention_mask": mask}
    with torch.no_grad():
        logits, loaded_logits = (m(**inputs, labels=targets()).logits for m in (model, loaded))
    assert torch.equal(logits, loaded_logits)
    assert logits.isfinite().all()
    tokens = model.generate(**inputs, max_new_tokens=5)
    assert tokens.shape[0] == 3
    assert torch.equal(tokens, loaded.generate(**inputs, max_new_tokens=5))
    return model


@pytest.mark.parametrize("cross_attention", ["full", "monotonic"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_trains_generates_and_loads(transform, cross_attention, tmp_path):
    model = check_step_generate_reload(
        tmp_path,
        encoder_transform=transform,
        decoder_transform=transform,
        cross_transform=transform,
        cross_attention=cross_attention,
        attention_topk=3,
    )
    expected = {"encoder.layers.{}.self_attn", "decoder.layers.{}.self_attn"}
    if cross_attention == "full":
        expected.add("decoder.layers.{}.encoder_attn")
    names = {name.format(layer) for name in expected for layer in range(2)} if transform == "entmax" else set()
    assert set(model.alphas()) == names
    for alpha in model.alphas().values():
        assert ((alpha > 1) & (alpha < 2) & (alpha != 1.5)).all()  # one step away from where they start


@pytest.mark.parametrize(
    "options",
    [
        *({"monotonic_chunk_size": chunk} for chunk in CHUNKS[1:]),
        *({"cross_head_transform": transform} for transform in CROSS_HEAD_TRANSFORMS[1:]),
        {"cross_head_transform": "softmax", "cross_attention": "full"},
        {"first_monotonic_layer": 1},
        {"subsampling_layers": 1},
        {"ctc_loss_weight": 0.3},
        {"monotonic_straight_through": True, "monotonic_chunk_size": 4},
        {"head_drop": 0.5},
        {"firing_rule": "cumulative", "monotonic_decoding": "soft"},
        {"head_regularizer": "gate_l1", "head_regularizer_layers": [0], "head_regularizer_weight": 0.1},
    ],
    ids=str,
)
def test_every_option_trains_generates_and_loads(options, tmp_path):
    check_step_generate_reload(tmp_path, **options)


def test_layers_below_the_first_monotonic_one_read_everything():
    model = small_model(first_monotonic_layer=1)
    input_features, mask = features()
    with torch.no_grad():
        output = model(input_features, attention_mask=mask, labels=targets(), output_attentions=True)
        boundaries = model.model(input_features, decoder_input_ids=targets().clamp(min=0), output_boundaries=True)
    full, hard = output.cross_attentions
    assert ((full[0] > 0).sum(-1) == 16).all()
    assert ((hard > 0).sum(-1) == 1).all()
    assert [tuple(stops.shape) for stops in boundaries.boundaries] == [(3, 4, 6)]


def test_position_formula():
    width, positions = 6, torch.tensor([0, 3])
    rates = [10000 ** (-i / 2) for i in range(3)]
    expected = [[math.sin(p * r) for r in rates] + [math.cos(p * r) for r in rates] for p in (0, 3)]
    torch.testing.assert_close(sinusoidal_positions(positions, width), torch.tensor(expected))


def test_encoder_adds_positions_to_scaled_features():
    encoder = small_model().get_encoder()
    seen = {}
    encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    input_features, _ = features(batch=1)
    with torch.no_grad():
        encoder(input_features)
        x, _ = encoder.subsampling(input_features)
    torch.testing.assert_close(seen["x"], x * 4 + sinusoidal_positions(torch.arange(16), 16))  # 4 = √16


# Attention maps


def test_attention_maps():
    model = small_model(lively=True, monotonic_chunk_size=4)
    input_features, mask = features()
    labels = targets()
    with torch.no_grad():
        output = model(input_features, attention_mask=mask, labels=labels, output_attentions=True)
    encoder, decoder, cross = output.encoder_attentions, output.decoder_attentions, output.cross_attentions
    assert [tuple(maps.shape) for maps in encoder] == [(3, 2, 16, 16)] * 2
    assert [tuple(maps.shape) for maps in decoder] == [(3, 4, 6, 6)] * 2
    assert [tuple(maps.shape) for maps in cross] == [(3, 4, 6, 16)] * 2
    real = model.position_mask(mask)
    for maps in (*encoder, *decoder, *cross):
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    for maps in (*encoder, *cross):
        assert (maps.masked_select(~real[:, None, None, :].expand_as(maps)) == 0).all()
    for maps in decoder:
        assert (maps.triu(1) == 0).all()
    assert len(output.encoder_hidden_states or ()) == 0
    with torch.no_grad():
        states = model(input_features, attention_mask=mask, labels=labels, output_hidden_states=True)
    assert len(states.encoder_hidden_states) == len(states.decoder_hidden_states) == 3
    assert torch.equal(states.decoder_hidden_states[-1] @ model.lm_head.weight.T, states.logits)


def test_a_reloaded_model_is_sparse_and_its_alpha_learns(tmp_path):
    small_model(lively=True).save_pretrained(tmp_path)
    model = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path)
    input_features, _ = features()
    output = model(input_features, labels=targets(), output_attentions=True)
    for maps in (*output.encoder_attentions, *output.decoder_attentions):
        possible = maps[:, :, torch.ones(maps.shape[-2:]).tril().bool()]
        assert (possible == 0).float().mean() > 0.05  # softmax has no zeros
    output.loss.backward()
    alphas = {name: parameter.grad for name, parameter in model.named_parameters() if name.endswith("alpha_logit")}
    assert len(alphas) == 4
    for name, grad in alphas.items():
        assert (grad != 0).all(), name


@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2", "flex_attention"])
def test_fused_softmax_is_refused(implementation, tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    with pytest.raises((ValueError, ImportError)):
        EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=implementation)
    with pytest.raises((ValueError, ImportError)):
        model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == "eager"


# Masks


@pytest.mark.parametrize(
    "options", [{}, {"monotonic_decoding": "soft"}, {"monotonic_chunk_size": None}, {"cross_attention": "full"}]
)
def test_padding_changes_nothing(options):
    model = small_model(lively=True, **options)
    input_features, mask = features()
    noisy = torch.where(mask.bool().unsqueeze(-1), input_features, 100.0)  # what stands in the padding is not read
    labels = targets()
    with torch.no_grad():
        logits = model(noisy, attention_mask=mask, labels=labels).logits
        three_dimensional = model(noisy, attention_mask=mask.unsqueeze(-1).expand_as(noisy), labels=labels).logits
        for index in range(3):
            alone = model(input_features[index : index + 1, : mask[index].sum()], labels=labels[index : index + 1])
            torch.testing.assert_close(alone.logits[0], logits[index], rtol=1e-4, atol=1e-5)
    assert torch.equal(three_dimensional, logits)


@pytest.mark.parametrize("cross_attention", ["full", "monotonic"])
def test_the_decoder_is_causal(cross_attention):
    model = small_model(lively=True, cross_attention=cross_attention)
    input_features, _ = features(batch=1)
    tokens = torch.tensor([[1, 5, 6, 7, 8]])
    changed = torch.tensor([[1, 5, 6, 9, 10]])
    with torch.no_grad():
        first, second = (model(input_features, decoder_input_ids=ids).logits for ids in (tokens, changed))
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:])


def test_masked_decoder_tokens_are_not_read():
    model = small_model(lively=True, cross_attention="full")
    input_features, _ = features(batch=1)
    mask = torch.tensor([[1, 0, 1, 1]])
    with torch.no_grad():
        first, second = (
            model(input_features, decoder_input_ids=torch.tensor([[1, ignored, 6, 7]]), decoder_attention_mask=mask)
            for ignored in (5, 9)
        )
    assert torch.equal(first.logits[:, [0, 2, 3]], second.logits[:, [0, 2, 3]])


# Calling conventions


def test_encoder_outputs_in_three_forms():
    model = small_model(ctc_loss_weight=0.3)
    input_features, mask = features()
    with torch.no_grad():
        output = model(input_features, attention_mask=mask, labels=targets())
        states = model.get_encoder()(input_features, attention_mask=mask)
        for given in (states, (states.last_hidden_state,), BaseModelOutput(states.last_hidden_state)):
            again = model(encoder_outputs=given, attention_mask=mask, labels=targets())
            assert torch.equal(again.logits, output.logits)
            assert torch.equal(again.loss, output.loss)


def test_labels_make_no_cache_but_may_continue_one():
    model = small_model(lively=True)
    input_features, _ = features(batch=1)
    tokens, labels = torch.tensor([[1, 5, 6, 7]]), torch.tensor([[5, 6, 7, 2]])
    with torch.no_grad():
        whole = model(input_features, labels=labels)
        cache = model(input_features, decoder_input_ids=tokens[:, :2]).past_key_values
        rest = {"decoder_input_ids": tokens[:, 2:], "labels": labels[:, 2:]}
        continued = model(input_features, past_key_values=cache, **rest)
    assert whole.past_key_values is None
    torch.testing.assert_close(continued.logits, whole.logits[:, 2:])


def test_outputs_as_tuples():
    model = small_model()
    input_features, _ = features()
    with torch.no_grad():
        output = model(input_features, labels=targets())
        as_tuple = model(input_features, labels=targets(), return_dict=False)
        model.config.return_dict = False
        by_configuration = model(input_features, labels=targets())
    assert torch.equal(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits)
    assert torch.equal(by_configuration[1], output.logits)


def test_embeddings_instead_of_tokens():
    model = small_model(lively=True)
    input_features, _ = features()
    tokens = targets().clamp(min=0)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(tokens) * 4  # √16, as the decoder scales its tokens
        given = model(input_features, decoder_inputs_embeds=embedded).logits
        assert torch.equal(given, model(input_features, decoder_input_ids=tokens).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder_input_ids": torch.ones(1, 1, dtype=torch.long)}, "Give input_features"),
        ({"input_features": torch.zeros(1, 9, 12)}, "exactly one of decoder_input_ids"),
        ({"input_features": torch.zeros(1, 9, 13), "labels": targets(1)}, r"\(1, 9, 13\); it must be .*12\)"),
        ({"input_features": torch.zeros(9, 12), "labels": targets(1)}, r"input_features has shape \(9, 12\)"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model()(**arguments)


# Memory, dtypes, compilation


@pytest.mark.parametrize("options", [{}, {"head_drop": 0.4, "energy_noise_std": 1.0, "dropout": 0.2}])
def test_gradient_checkpointing_changes_nothing(options):
    gradients = []
    for checkpointing in (False, True):
        model = small_model(monotonic_chunk_size=4, **options).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        input_features, mask = features()
        torch.manual_seed(3)
        model(input_features, attention_mask=mask, labels=targets()).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_maps_and_boundaries_are_recorded_with_gradient_checkpointing():
    model = small_model(first_monotonic_layer=1)  # one layer of each kind of cross-attention
    model.activation_checkpointing_enable()
    input_features, mask = features()
    inputs = {"input_features": input_features, "attention_mask": mask, "labels": targets()}
    asked = {"output_attentions": True, "output_boundaries": True}
    outputs = model.train()(**inputs, **asked)
    outputs.loss.backward()
    for maps, shape in (
        (outputs.encoder_attentions, (3, 2, 16, 16)),
        (outputs.decoder_attentions, (3, 4, 6, 6)),
        (outputs.cross_attentions, (3, 4, 6, 16)),
    ):
        assert [weights.shape for weights in maps] == [shape] * 2
    with torch.no_grad():
        outputs = model.eval()(**inputs, **asked)
    assert [weights.shape for weights in outputs.cross_attentions] == [(3, 4, 6, 16)] * 2
    assert [stops.shape for stops in outputs.boundaries] == [(3, 4, 6)]  # of the monotonic layer


@pytest.mark.parametrize(
    "options", [{"monotonic_chunk_size": 4}, {"monotonic_decoding": "soft"}, {"cross_attention": "full"}]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, options, tmp_path):
    small_model(lively=True, ctc_loss_weight=0.3, **options).save_pretrained(tmp_path)
    model = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    input_features, mask = features()
    output = model(input_features, attention_mask=mask, labels=targets())  # float32 features, as extracted
    assert output.logits.dtype == dtype
    assert output.logits.isfinite().all()
    assert output.loss.isfinite()
    assert model.generate(input_features, attention_mask=mask, max_new_tokens=4, num_beams=2).shape[0] == 3
    model.train()(input_features, attention_mask=mask, labels=targets()).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore")  # torch's own tracing touches what autograd warns of
@pytest.mark.parametrize("training", [False, True])
def test_compiled_equals_eager(training):
    model = small_model(encoder_layers=1, decoder_layers=1, decoder_transform="softmax").train(training)
    input_features, mask = features()
    inputs = {"input_features": input_features, "attention_mask": mask, "labels": targets()}
    with torch.set_grad_enabled(training):
        eager, compiled = (form(**inputs) for form in (model, torch.compile(model, backend="aot_eager")))
    torch.testing.assert_close(compiled.loss, eager.loss)
    torch.testing.assert_close(compiled.logits, eager.logits)
    if training:
        gradients = (torch.autograd.grad(output.loss, list(model.parameters())) for output in (eager, compiled))
        for expected, gradient in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


# Loading and saving


def test_nothing_is_pickled(tmp_path):
    small_model().save_pretrained(tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*")}
    assert suffixes == {".json", ".py", ".safetensors"}


def test_parameters_missing_from_a_checkpoint_start_where_new_ones_do():
    options = {"head_regularizer": "gate_l1", "head_regularizer_layers": [1], "entmax_alpha_init": 1.2}
    with torch.device("meta"):
        empty = EntmaxAsrForConditionalGeneration(small_config(**options))
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    model = EntmaxAsrForConditionalGeneration.from_pretrained(None, config=small_config(**options), state_dict={})
    for alpha in model.alphas().values():
        torch.testing.assert_close(alpha, torch.full_like(alpha, 1.2))
    assert torch.equal(model.gates()["decoder.layers.1.encoder_attn"], torch.ones(4))
    assert torch.equal(model.model.decoder.layers[0].encoder_attn.energy_bias, torch.full((4,), -0.5))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert 0.2 < model.lm_head.weight.std() < 0.3  # 1/√16


def test_parts_load_from_the_whole(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    input_features, _ = features()
    expected = model.get_encoder()(input_features).last_hidden_state
    base = EntmaxAsrModel.from_pretrained(tmp_path)
    assert torch.equal(base.get_encoder()(input_features).last_hidden_state, expected)
    base.get_encoder().save_pretrained(tmp_path / "encoder")
    encoder = EntmaxAsrEncoder.from_pretrained(tmp_path / "encoder")
    assert torch.equal(encoder(input_features).last_hidden_state, expected)


def test_a_larger_vocabulary_reaches_the_ctc_head(tmp_path):
    model = small_model(ctc_loss_weight=0.3)
    model.resize_token_embeddings(30)
    assert (model.lm_head.out_features, model.ctc_head.out_features, model.config.vocab_size) == (30, 30, 30)
    model.save_pretrained(tmp_path)
    loaded = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path)
    input_features, _ = features()
    labels = targets().masked_fill(targets() == 4, 29)
    assert torch.equal(loaded(input_features, labels=labels).loss, model(input_features, labels=labels).loss)

"""Smaller models out of trained ones, and the programs that make them."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrForConditionalGeneration, EntmaxAsrProcessor
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.model.attention import MultiHeadAttention
from hf_entmax_asr.recognition import analyze, save_analysis
from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.recognition.report_examples import example_of
from hf_entmax_asr.recognition.surgery import HEAD_AXIS, attention_modules, remove_heads, share_maps
from hf_entmax_asr.tokenization import train_character_tokenizer
from hf_entmax_asr.training import RecipeError, load_recipe, train
from support.small_models import features, small_model, targets
from support.tones import tiny_recipe, weights, write_splits

LAYERS = {"encoder_layers": 4, "decoder_layers": 3}


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, test=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a model with four encoder layers that knows the letters of the tones."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tokenizer = train_character_tokenizer(["abc def"])
    EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(feature_size=12), tokenizer).save_pretrained(folder)
    small_model(lively=True, vocab_size=len(tokenizer), **LAYERS).save_pretrained(folder)
    return folder


def logits_of(model) -> torch.Tensor:
    input_features, mask = features()
    with torch.no_grad():
        return model(input_features, attention_mask=mask, labels=targets()).logits


# Shared maps


def test_what_is_kept_is_copied():
    model = small_model(lively=True, **LAYERS)
    smaller = share_maps(model, encoder_groups=[1, 3], decoder_groups=[2, 1])
    assert smaller.config.encoder_map_groups == [1, 3]
    assert model.config.encoder_map_groups is None
    assert not smaller.training
    before, after = model.state_dict(), smaller.state_dict()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
        assert name == "lm_head.weight" or tensor.data_ptr() != before[name].data_ptr()
    gone = {name.rsplit(".", 2)[0] for name in before.keys() - after.keys()}
    assert {name.removesuffix(".self_attn") for name in gone if "transform" not in name} == {
        f"model.{layer}" for layer in ("encoder.layers.2", "encoder.layers.3", "decoder.layers.1")
    }


def test_equal_layers_lose_nothing():
    """A layer whose queries and keys see what those of the lender see has the same map, and may as well borrow it."""
    model = small_model(lively=True, encoder_layers=2, ctc_loss_weight=0.3)
    first, second = model.get_encoder().layers
    with torch.no_grad():
        for layer in (first, second):
            layer.self_attn.q_proj.weight.zero_()  # uniform attention in both
        first.self_attn.q_proj.bias.zero_()
        second.self_attn.q_proj.bias.zero_()
    torch.testing.assert_close(logits_of(share_maps(model, encoder_groups=[2])), logits_of(model))


def test_heads_in_another_order():
    model = small_model(lively=True, **LAYERS)
    order = {"encoder.layers.2.self_attn": (1, 0), "decoder.layers.1.self_attn": (2, 0, 3, 1)}
    reordered = share_maps(model, head_order=order)
    torch.testing.assert_close(logits_of(reordered), logits_of(model))
    moved, kept = (m.model.decoder.layers[1].self_attn for m in (reordered, model))
    assert torch.equal(moved.v_proj.weight[:4], kept.v_proj.weight[8:12])  # head 2, of width 4, is now the first
    assert torch.equal(moved.out_proj.weight[:, 4:8], kept.out_proj.weight[:, :4])
    assert torch.equal(moved.transform.alpha_logit, kept.transform.alpha_logit[[2, 0, 3, 1]])


def test_groups_that_cannot_be():
    model = small_model(**LAYERS)
    with pytest.raises(StrictDataclassError, match="add up to encoder_layers = 4, not to 3"):
        share_maps(model, encoder_groups=[3])
    shared = share_maps(model, encoder_groups=[2, 2])
    assert share_maps(shared, encoder_groups=[4]).config.encoder_map_groups == [4]
    assert share_maps(shared, decoder_groups=[3]).config.encoder_map_groups == [2, 2]
    with pytest.raises(ValueError, match=r"encoder layer 1 cannot begin a group: .* uses the map of layer 0"):
        share_maps(shared, encoder_groups=[1, 1, 2])
    with pytest.raises(ValueError, match=r"is \[0, 0\]; it must name each of its heads, 0 to 1, once"):
        share_maps(model, head_order={"encoder.layers.0.self_attn": [0, 0]})
    with pytest.raises(ValueError, match="share maps already"):
        share_maps(shared, head_order={"encoder.layers.1.self_attn": [1, 0]})


# Parameters that surgery does not know


def with_extra_parameter(name: str) -> EntmaxAsrForConditionalGeneration:
    """A model of which one attention module holds a parameter that the others lack, two columns a head."""
    model = small_model(lively=True, **LAYERS)
    module = model.get_submodule(f"model.{name}")
    module.register_parameter("distance_bias", torch.nn.Parameter(torch.randn(4, 2 * module.num_heads)))
    return model


@pytest.mark.parametrize(
    ("name", "order"), [("encoder.layers.1.self_attn", [1, 0]), ("decoder.layers.0.self_attn", [1, 0, 2, 3])]
)
def test_heads_of_an_unknown_parameter_are_not_guessed(name, order):
    model = with_extra_parameter(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    message = rf"model\.{name} has a parameter distance_bias of shape \(4, \d\).*name it in HEAD_AXIS"
    with pytest.raises(ValueError, match=message):
        remove_heads(model, {name: [1]})
    with pytest.raises(ValueError, match=message):
        share_maps(model, head_order={name: order})
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_parameter_that_only_this_model_has_is_not_lost_in_silence():
    with pytest.raises(ValueError, match=r"model\.encoder\.layers\.1\.self_attn\.distance_bias would be lost"):
        remove_heads(with_extra_parameter("encoder.layers.1.self_attn"), {"encoder.layers.0.self_attn": [1]})


def test_a_line_in_the_table_is_enough(monkeypatch):
    """Heads along the second axis, two columns each; the model made anew has the parameter too."""
    monkeypatch.setitem(HEAD_AXIS, "distance_bias", 1)
    build = MultiHeadAttention.__init__

    def build_with_bias(self, *arguments):
        build(self, *arguments)
        self.distance_bias = torch.nn.Parameter(torch.randn(4, 2 * self.num_heads))

    monkeypatch.setattr(MultiHeadAttention, "__init__", build_with_bias)
    model = small_model(**LAYERS)
    smaller = remove_heads(model, {"decoder.layers.0.self_attn": [0, 2]})
    before, after = (m.model.decoder.layers[0].self_attn.distance_bias for m in (model, smaller))
    assert torch.equal(after, before[:, [2, 3, 6, 7]])


@pytest.mark.parametrize(
    "options",
    [
        {"cross_attention": "full", "cross_transform": "entmax", "cross_head_transform": "entmax"},
        {"monotonic_chunk_size": None, "cross_head_transform": "entmax"},
        {"monotonic_chunk_size": 4, "head_regularizer": "gate_l1", "head_regularizer_layers": [0, 1]},
    ],
)
def test_the_table_names_every_parameter_of_attention(options):
    model = small_model(**options)
    for name, module in attention_modules(model).items():
        assert module.state_dict().keys() <= HEAD_AXIS.keys(), name


def test_an_example_shows_the_alpha_of_the_lender(checkpoint, tones):
    model = share_maps(EntmaxAsrForConditionalGeneration.from_pretrained(checkpoint), encoder_groups=[1, 3])
    example = example_of(model, EntmaxAsrProcessor.from_pretrained(checkpoint), load_folder(str(tones))["test"][0])
    expected = [model.alphas()[f"encoder.layers.{layer}.self_attn"] for layer in (0, 1, 1, 1)]
    assert all(torch.equal(shown, alpha) for shown, alpha in zip(example.alphas, expected, strict=True))


# scripts/reuse.py, and training on


def test_reuse_by_hand(checkpoint, call, tmp_path):
    out = tmp_path / "shared"
    status, printed, _ = call("reuse", checkpoint, "--out", out, "--groups", 1, 3, "--decoder-groups", 3)
    assert status == 0
    assert "encoder: 2 maps for 4 layers, groups of 1, 3" in printed
    loaded = EntmaxAsrForConditionalGeneration.from_pretrained(out)
    assert (loaded.config.encoder_map_groups, loaded.config.decoder_map_groups) == ([1, 3], [3])
    original = load_file(checkpoint / "model.safetensors")
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor, original[name]), name
    assert EntmaxAsrProcessor.from_pretrained(out).tokenizer.get_vocab()
    status, _, said = call("reuse", checkpoint, "--out", out, "--groups", 4)
    assert (status, "exists already" in said) == (1, True)


def test_reuse_by_an_analysis(checkpoint, tones, call, tmp_path):
    model = EntmaxAsrForConditionalGeneration.from_pretrained(checkpoint)
    document = analyze(model, EntmaxAsrProcessor.from_pretrained(checkpoint), load_folder(str(tones))["test"])
    analysis = save_analysis(document, tmp_path / "analysis.json")
    budget = ["--budget", 3, "--decoder-budget", 2, "--analysis", analysis]
    status, printed, said = call("reuse", checkpoint, "--out", tmp_path / "shared", *budget)
    assert status == 0, said
    config = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path / "shared").config
    assert len(config.encoder_map_groups) == 3
    assert len(config.decoder_map_groups) == 2
    assert "by its new map a head changes its CAD by" in printed
    shared = EntmaxAsrForConditionalGeneration.from_pretrained(checkpoint)
    shared = share_maps(shared, encoder_groups=[1, 3])
    again = analyze(shared, EntmaxAsrProcessor.from_pretrained(checkpoint), load_folder(str(tones))["test"])
    alphas = [module.alpha for module in again.encoder]
    assert alphas == [alphas[0]] + [alphas[1]] * 3
    assert again.model.encoder_map_groups == [1, 3]
    other = dataclasses.replace(document, model=dataclasses.replace(document.model, d_model=99))
    status, _, said = call("reuse", checkpoint, "--out", tmp_path / "b", *budget[:-1], save_analysis(other, analysis))
    assert status == 1
    assert "is of another model: d_model is 99 there and 16 here" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "1", "2"], "encoder_map_groups = [1, 2]"),
        (["--budget", "2", "--analysis", "absent.json"], "absent.json is no analysis that can be read"),
    ],
)
def test_reuse_refuses(arguments, message, checkpoint, call, tmp_path):
    status, _, said = call("reuse", checkpoint, "--out", tmp_path / "new", *arguments)
    assert status == 1
    assert message in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "nothing to do"), (["--budget", "2"], "a budget needs --analysis")]
)
def test_reuse_wants_to_know_what(arguments, message, call, capsys):
    with pytest.raises(SystemExit):
        call("reuse", "any", "--out", "new", *arguments)
    assert message in capsys.readouterr().err


def test_training_starts_from_a_checkpoint(checkpoint, tones, tmp_path):
    model = EntmaxAsrForConditionalGeneration.from_pretrained(checkpoint)
    start = tmp_path / "start"
    share_maps(model, encoder_groups=[1, 3]).save_pretrained(start)
    EntmaxAsrProcessor.from_pretrained(checkpoint).save_pretrained(start)
    tree = {
        "data": {"path": str(tones), "validation_split": "test"},
        "schedule": {"max_steps": 2, "warmup_steps": 1000},
    }

    def recipe(**model_keys):
        made = tiny_recipe(tones, **tree)
        made.model, made.start_from, made.features = model_keys, str(start), {}
        return made

    result = train(recipe(dropout=0.3, monotonic_decoding="soft"), tmp_path / "run")
    config = json.loads((result.last / "config.json").read_text())
    assert (config["encoder_map_groups"], config["dropout"], config["d_model"]) == ([1, 3], 0.3, 16)
    before, after = weights(start), weights(result.last)
    assert before.keys() == after.keys()
    moved = [(after[name] - before[name]).abs().max() for name in before]
    assert 0 < max(moved) < 1e-3  # two small steps away
    with pytest.raises(RecipeError, match=r"start_from: .* does not go with model\.d_model: 32"):
        train(recipe(d_model=32), tmp_path / "wide")
    other = recipe()
    other.features = {"feature_size": 20}
    with pytest.raises(RecipeError, match=r"features\.feature_size is 20, but .* was trained with 12"):
        train(other, tmp_path / "features")
    absent = recipe()
    absent.start_from = "absent"
    with pytest.raises(CheckpointError, match="no folder absent"):
        train(absent, tmp_path / "absent")


def test_the_command_line_names_where_to_start():
    recipe = Path(__file__).parent.parent / "scripts" / "recipes" / "prompts_demo.yaml"
    assert load_recipe(recipe).start_from is None
    assert load_recipe(recipe, ["start_from=runs/reuse/start"]).start_from == "runs/reuse/start"

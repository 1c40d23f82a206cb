"""Heads removed for good: against the model in which their outputs are zero, and with every feature."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrForConditionalGeneration, EntmaxAsrProcessor
from hf_entmax_asr.analysis import redundant_heads
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.model.configuration_entmax_asr import TRANSFORMS
from hf_entmax_asr.recognition import analyze, load_analysis, save_analysis
from hf_entmax_asr.recognition.surgery import (
    attention_modules,
    gated_off,
    most_waited_for_heads,
    remove_heads,
    share_maps,
)
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.checkpoint_alone import examine, examine_apart
from support.small_models import CHUNKS, features, small_config, small_model, targets
from support.tones import write_splits

HERE = Path(__file__).parent
GATED = {"head_regularizer": "gate_l1", "head_regularizer_layers": [0, 1], "head_regularizer_weight": 0.1}
REMOVED = {
    "encoder.layers.0.self_attn": [1],
    "decoder.layers.0.self_attn": [0, 3],
    "decoder.layers.0.encoder_attn": [2],
    "decoder.layers.1.encoder_attn": [0, 1, 3],
}


def inputs() -> dict[str, torch.Tensor]:
    input_features, mask = features()
    return {"input_features": input_features, "attention_mask": mask}


def outputs_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(), labels=targets()).logits


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of the largest logit; those of lively models are larger than 1."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def silence(model, removed) -> EntmaxAsrForConditionalGeneration:
    """`model` itself, with the outputs of these heads made zero where the output projection reads them."""
    for name, heads in removed.items():
        module = attention_modules(model)[name]

        def without(_, args, module=module, heads=heads):
            by_head = args[0].unflatten(-1, (module.num_heads, -1)).clone()  # (B, T, H, D)
            by_head[:, :, heads] = 0
            return (by_head.flatten(2),)

        module.out_proj.register_forward_pre_hook(without)
    return model


def distinct(**options) -> EntmaxAsrForConditionalGeneration:
    """A lively model in which α, energy biases and gates differ from head to head."""
    model = small_model(lively=True, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("alpha_logit", "energy_bias", "gate")):
                parameter.add_(torch.linspace(-0.6, 0.6, len(parameter)))
    return model


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("cross_attention", ["full", "monotonic"])
def test_equals_the_model_in_which_they_are_silent(cross_attention, transform):
    options = {f"{part}_transform": transform for part in ("encoder", "decoder", "cross")}
    model = distinct(cross_attention=cross_attention, attention_topk=3, **options)
    pruned = remove_heads(model, REMOVED)
    before = outputs_of(model)
    expected = outputs_of(silence(model, REMOVED))
    assert_same(outputs_of(pruned), expected)
    assert not torch.allclose(outputs_of(pruned), before, atol=1e-2)
    assert pruned.config.encoder_heads_per_layer == [1, 2]
    assert pruned.config.decoder_heads_per_layer == [2, 4]
    assert pruned.config.cross_heads_per_layer == [3, 1]
    assert pruned.num_parameters() < model.num_parameters()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("decoding", [("hard", "threshold"), ("hard", "cumulative"), ("soft", "threshold")])
@pytest.mark.parametrize("shared", [False, True])
def test_gates_at_zero_go_unseen(chunk, decoding, shared):
    rules = dict(zip(("monotonic_decoding", "firing_rule"), decoding, strict=True))
    model = distinct(monotonic_chunk_size=chunk, monotonic_shared_stops=shared, **rules, **GATED)
    with torch.no_grad():
        model.model.decoder.layers[0].encoder_attn.gate[2] = 0
        model.model.decoder.layers[1].encoder_attn.gate[[0, 1, 3]] = 0
    off = gated_off(model)
    assert off == {"decoder.layers.0.encoder_attn": [2], "decoder.layers.1.encoder_attn": [0, 1, 3]}
    pruned = remove_heads(model, off)
    assert_same(outputs_of(pruned), outputs_of(model))
    assert gated_off(pruned) == {}
    for beams in (1, 3):
        options = {"max_new_tokens": 8, "num_beams": beams, "suppress_tokens": [0, 2], "no_repeat_ngram_size": 2}
        tokens = model.generate(**inputs(), **options)
        assert torch.equal(pruned.generate(**inputs(), **options), tokens)
        assert torch.equal(pruned.generate(**inputs(), use_cache=False, **options), tokens)
    if decoding[0] == "hard":
        stops, fewer = (m.head_boundaries(tokens, **inputs()) for m in (model, pruned))
        assert [layer.shape[1] for layer in fewer] == [3, 1]
        assert torch.equal(fewer[0], stops[0][:, [0, 1, 3]])
        assert torch.equal(fewer[1], stops[1][:, [2]])


def test_a_layer_without_open_gates_keeps_a_head_that_nobody_waits_for():
    model = distinct(**GATED)
    torch.nn.init.zeros_(model.model.decoder.layers[1].encoder_attn.gate)
    off = gated_off(model)
    assert off == {"decoder.layers.1.encoder_attn": [1, 2, 3]}
    pruned = remove_heads(model, off)
    assert_same(outputs_of(pruned), outputs_of(model))
    assert not pruned.model.decoder.layers[1].encoder_attn.active_heads().any()


def test_the_weights_are_gone(tmp_path):
    model = distinct(monotonic_chunk_size=4, **GATED)
    remove_heads(model, REMOVED).save_pretrained(tmp_path)
    saved, before = load_file(tmp_path / "model.safetensors"), model.state_dict()
    layer = "model.decoder.layers.1.encoder_attn"  # head 2 of 4, each 4 wide, is left
    for name in ("q", "k", "v", "window_q", "window_k"):
        assert torch.equal(saved[f"{layer}.{name}_proj.weight"], before[f"{layer}.{name}_proj.weight"][8:12])
        assert torch.equal(saved[f"{layer}.{name}_proj.bias"], before[f"{layer}.{name}_proj.bias"][8:12])
    assert torch.equal(saved[f"{layer}.out_proj.weight"], before[f"{layer}.out_proj.weight"][:, 8:12])
    assert torch.equal(saved[f"{layer}.out_proj.bias"], before[f"{layer}.out_proj.bias"])
    for name in ("energy_bias", "gate"):
        assert torch.equal(saved[f"{layer}.{name}"], before[f"{layer}.{name}"][[2]])
    name = "model.decoder.layers.0.self_attn.transform.alpha_logit"
    assert torch.equal(saved[name], before[name][[1, 2]])
    untouched = "model.encoder.layers.1.self_attn.q_proj.weight"
    assert torch.equal(saved[untouched], before[untouched])
    loaded = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(outputs_of(loaded), outputs_of(remove_heads(model, REMOVED)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pruned_model_trains_and_can_be_pruned_again(checkpointing):
    model = remove_heads(distinct(monotonic_chunk_size=4, head_drop=0.3, dropout=0.1, **GATED), REMOVED).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    model(**inputs(), labels=targets()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    optimizer.step()
    model.proximal_gate_step(optimizer)
    model.eval()
    again = {"decoder.layers.0.encoder_attn": [0, 1]}
    pruned = remove_heads(model, again)
    assert pruned.config.cross_heads_per_layer == [1, 1]
    assert_same(outputs_of(pruned), outputs_of(silence(model, again)))


def test_attention_maps_and_assisted_decoding():
    pruned, assistant = (remove_heads(distinct(seed=seed), REMOVED) for seed in (0, 1))
    with torch.no_grad():
        output = pruned(**inputs(), labels=targets(), output_attentions=True)
    assert [maps.shape[1] for maps in output.encoder_attentions] == [1, 2]
    assert [maps.shape[1] for maps in output.decoder_attentions] == [2, 4]
    assert [maps.shape[1] for maps in output.cross_attentions] == [3, 1]
    one = {name: value[:1] for name, value in inputs().items()}
    options = {"max_new_tokens": 8, "suppress_tokens": [0, 2], "do_sample": False}
    assert torch.equal(pruned.generate(**one, assistant_model=assistant, **options), pruned.generate(**one, **options))


def test_with_shared_maps():
    model = share_maps(distinct(), encoder_groups=[2], decoder_groups=[2])
    both = {f"decoder.layers.{layer}.self_attn": [0, 3] for layer in range(2)}
    pruned = remove_heads(model, both)
    assert_same(outputs_of(pruned), outputs_of(silence(model, both)))
    assert pruned.config.decoder_heads_per_layer == [2, 2]
    with pytest.raises(ValueError, match="share a map, so the same heads must be removed from each"):
        remove_heads(model, {"decoder.layers.1.self_attn": [0]})
    with pytest.raises(StrictDataclassError, match="differs within the groups of encoder_map_groups"):
        small_config(encoder_map_groups=[2], encoder_heads_per_layer=[1, 2])


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"encoder.layers.7.self_attn": [0]}, r"'encoder\.layers\.7\.self_attn' is no attention module of this model"),
        ({"encoder.layers.0.self_attn": [2]}, "has the heads 0 to 1, and no head 2"),
        ({"encoder.layers.0.self_attn": [-1]}, "and no head -1"),
        ({"encoder.layers.0.self_attn": [0, 1]}, "would lose all of its 2 heads; at least one must stay"),
    ],
)
def test_heads_that_cannot_go(removed, message):
    with pytest.raises(ValueError, match=message):
        remove_heads(small_model(), removed)


def test_cross_head_attention_is_refused():
    model = small_model(cross_head_transform="softmax")
    with pytest.raises(ValueError, match="cross_head_transform = 'softmax' weighs each"):
        remove_heads(model, {"decoder.layers.0.encoder_attn": [0]})
    assert remove_heads(model, {"encoder.layers.0.self_attn": [0]}).config.cross_heads_per_layer is None


def test_a_head_that_has_a_say_in_shared_stops_is_refused():
    model = small_model(monotonic_shared_stops=True)
    with pytest.raises(
        ValueError, match=r"head 1 of decoder.layers.0.encoder_attn cannot be removed: monotonic_shared"
    ):
        remove_heads(model, {"decoder.layers.0.encoder_attn": [1]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_heads_per_layer": [2]}, r"encoder_heads_per_layer = \[2\] must hold one number for each of"),
        ({"decoder_heads_per_layer": [5, 4]}, "between 1 and decoder_attention_heads = 4"),
        ({"cross_heads_per_layer": [0, 4]}, r"cross_heads_per_layer = \[0, 4\] must hold .* decoder_layers = 2"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        small_config(**options)


def test_redundant_heads():
    heads = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    js_bits = torch.tensor(
        [
            [0.0, 0.1, 0.5, 0.0, 0.0],
            [0.1, 0.0, 0.3, 0.0, 0.0],
            [0.5, 0.3, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.2],
            [0.0, 0.0, 0.0, 0.2, 0.0],
        ]
    )
    found = redundant_heads(heads, js_bits, 3)
    assert [(h.module, h.head, h.like) for h in found] == [("a", 1, 0), ("b", 1, 0), ("a", 2, 0)]
    assert [h.bits for h in found] == pytest.approx([0.1, 0.2, 0.5])
    assert redundant_heads(heads, js_bits, 0) == []
    with pytest.raises(ValueError, match="4 heads to remove must lie between 0 and 3"):
        redundant_heads(heads, js_bits, 4)


# scripts/prune.py


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tokenizer = train_character_tokenizer(["the quick brown fox jumps over the lazy dog"])
    EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(), tokenizer).save_pretrained(folder)
    model = distinct(vocab_size=len(tokenizer), num_mel_bins=80, encoder_layers=3, encoder_map_groups=[1, 2], **GATED)
    with torch.no_grad():
        model.model.decoder.layers[0].encoder_attn.gate[1] = 0
    model.save_pretrained(folder)
    return folder


def test_prune_removes_gated_and_named_heads(checkpoint, call, tmp_path):
    out = tmp_path / "pruned"
    chosen = ["decoder.layers.1.encoder_attn:0,2", "encoder.layers.0.self_attn:1"]
    status, printed, said = call("prune", checkpoint, "--out", out, "--heads", *chosen)
    assert status == 0, said
    assert "decoder.layers.0.encoder_attn: without 1; 3 left" in printed
    assert "4 of 22 heads removed" in printed
    config = json.loads((out / "config.json").read_text())
    assert (config["cross_heads_per_layer"], config["encoder_heads_per_layer"]) == ([3, 2], [1, 2, 2])
    assert (out / "model.safetensors").stat().st_size < (checkpoint / "model.safetensors").stat().st_size
    status, _, said = call("prune", checkpoint, "--out", out)
    assert (status, "exists already" in said) == (1, True)


def test_prune_removes_redundant_heads(checkpoint, call, tmp_path):
    tones = write_splits(tmp_path / "tones", test=3)
    model = EntmaxAsrForConditionalGeneration.from_pretrained(checkpoint)
    document = analyze(model, EntmaxAsrProcessor.from_pretrained(checkpoint), load_folder(str(tones))["test"])
    analysis = save_analysis(document, tmp_path / "analysis.json")
    redundant = ["--redundant", 2, "--analysis", analysis]
    status, printed, said = call("prune", checkpoint, "--out", tmp_path / "pruned", *redundant)
    assert status == 0, said
    assert printed.count("attends like head") == 2
    config = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path / "pruned").config
    assert config.encoder_heads_per_layer == [1, 1, 1]  # the layers of a group lose the same head
    assert config.cross_heads_per_layer == [3, 4]
    pruned = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path / "pruned")
    again = analyze(pruned, EntmaxAsrProcessor.from_pretrained(checkpoint), load_folder(str(tones))["test"])
    assert [module.heads for module in again.modules.values()] == [1, 1, 1, 4, 4, 3, 4]
    assert again.model.cross_heads_per_layer == [3, 4]
    assert len(again.monotonic.heads) == 7


@pytest.fixture(scope="module")
def analysis(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis")
    rows = load_folder(str(write_splits(folder / "tones", test=3)))["test"]
    model = EntmaxAsrForConditionalGeneration.from_pretrained(checkpoint)
    return save_analysis(analyze(model, EntmaxAsrProcessor.from_pretrained(checkpoint), rows), folder / "analysis.json")


def test_prune_removes_heads_that_decoding_waits_for(checkpoint, analysis, call, tmp_path):
    status, printed, said = call(
        "prune", checkpoint, "--out", tmp_path / "pruned", "--waited-for", 2, "--analysis", analysis
    )
    assert status == 0, said
    assert printed.count("is the last to stop for") == 2
    measured = load_analysis(analysis).monotonic
    ranked = sorted(zip(measured.last_share, measured.lag_seconds, measured.heads, strict=True), reverse=True)
    gone = [head for *_, head in ranked[:2]]  # no layer loses all, and the one whose gate is 0 is last for no token
    assert (0, 1) not in gone
    config = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path / "pruned").config
    assert config.cross_heads_per_layer == [4 - sum(head[0] == layer for head in [*gone, (0, 1)]) for layer in range(2)]
    assert config.encoder_heads_per_layer is None
    for layer, head in gone:
        assert f"decoder.layers.{layer}.encoder_attn head {head} is the last to stop for" in printed


def test_a_head_that_nobody_waits_for_does_not_count(checkpoint, analysis, call, tmp_path):
    words = ["--analysis", analysis, "--waited-for"]
    status, _, said = call("prune", checkpoint, "--out", tmp_path / "a", *words, 6)
    assert (status, "6 heads to remove must lie between 0 and 5" in said) == (1, True)  # 8, one silent, two layers
    status, printed, _ = call("prune", checkpoint, "--out", tmp_path / "b", *words, 5)
    assert status == 0
    assert "6 of 22 heads removed" in printed
    full = small_model(cross_attention="full")
    document = dataclasses.replace(load_analysis(analysis), monotonic=None)
    with pytest.raises(ValueError, match="nothing waits for the heads of full cross-attention"):
        most_waited_for_heads(full, document, 1)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--redundant", "1", "--redundant needs --analysis"),
        ("--waited-for", "1", "--waited-for needs --analysis"),
        ("--heads", "encoder.layers.0.self_attn", "must be of the form encoder.layers.0.self_attn:1,3"),
    ],
)
def test_prune_ends_when_an_option_is_wrong(option, value, message, call, capsys):
    with pytest.raises(SystemExit):
        call("prune", "any", "--out", "new", option, value)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "encoder.layers.0.self_attn:0,1"], "at least one must stay"),
        (["--redundant", "1", "--analysis", "absent.json"], "absent.json is no analysis that can be read"),
    ],
)
def test_prune_refuses(arguments, message, checkpoint, call, tmp_path):
    status, _, said = call("prune", checkpoint, "--out", tmp_path / "new", *arguments)
    assert status == 1
    assert message in said
    assert not (tmp_path / "new").exists()


def test_prune_with_nothing_to_remove(call, tmp_path):
    extractor = EntmaxAsrFeatureExtractor(feature_size=12)
    EntmaxAsrProcessor(extractor, train_character_tokenizer(["abc"])).save_pretrained(tmp_path / "a")
    small_model().save_pretrained(tmp_path / "a")
    status, _, said = call("prune", tmp_path / "a", "--out", tmp_path / "b")
    assert (status, "no gate is 0" in said) == (1, True)


def test_a_checkpoint_loads_where_the_package_is_not(checkpoint, call, tmp_path):
    folder, audio = tmp_path / "pruned", str(HERE / "speech.flac")
    assert call("prune", checkpoint, "--out", folder, "--heads", "encoder.layers.0.self_attn:0")[0] == 0
    here = examine(audio, str(folder))
    for report in examine_apart(audio, folder, tmp_path):
        assert report["text"] == here["text"]
        assert report["loss of model"] == pytest.approx(here["loss of model"], rel=1e-4)

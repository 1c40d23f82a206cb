"""Exported graphs and the decoding loop that is copied beside them, against the model's own greedy `generate`."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import script
from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrProcessor
from hf_entmax_asr.export import OnnxRecogniser, TorchRecogniser, export_recogniser, folder, greedy, greedy_decoding
from hf_entmax_asr.export.entmax_loop import entmax_loop, exportable_forms
from hf_entmax_asr.export.modules import ExportedDecoderStep, ExportedEncoder
from hf_entmax_asr.export.settings import decoding_settings
from hf_entmax_asr.model.entmax import entmax
from hf_entmax_asr.pretrained import convert_whisper
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.small_baselines import baseline
from support.small_models import features, small_model
from support.small_whisper import make_whisper

KINDS = {
    "single positions": {},
    "MoChA, heads that wait, gates": {
        "monotonic_chunk_size": 4,
        "firing_rule": "cumulative",
        "entmax_logit_scale": True,
        "monotonic_head_wait": 1,
        "head_regularizer": "gate_l1",
        "head_regularizer_weight": 0.1,
        "head_regularizer_layers": [1],
    },
    "infinite lookback, shared stops, rotary positions, shared maps": {
        "monotonic_chunk_size": None,
        "monotonic_shared_stops": True,
        "encoder_positions": "rotary",
        "encoder_map_groups": [2],
        "decoder_map_groups": [2],
    },
    "full": {"cross_attention": "full", "cross_transform": "entmax", "cross_head_transform": "entmax"},
    "full, then monotonic; a pattern": {
        "first_monotonic_layer": 1,
        "encoder_transform": "softmax",
        "encoder_pattern": "strided",
        "encoder_pattern_size": 3,
    },
    "heads removed, chunks, learned positions": {
        "decoder_heads_per_layer": [4, 2],
        "cross_heads_per_layer": [3, 4],
        "decoder_transform": "sparsemax",
        "encoder_chunk_size": 4,
        "encoder_positions": "learned",
    },
}
AUDIO = ((3, 61), (2, 3))  # utterances, frames; the latter shorter than two positions


def small_processor() -> EntmaxAsrProcessor:
    return EntmaxAsrProcessor(
        EntmaxAsrFeatureExtractor(feature_size=12), train_character_tokenizer(["one two", "four"])
    )


def as_graph(part):
    """A part called by names, as a graph of it is."""

    def run(**tensors):
        given = [torch.as_tensor(tensors[each.name]) for each in part.inputs]
        with torch.no_grad(), exportable_forms():
            return dict(zip(part.outputs, part(*given), strict=True))

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_both_parts_decode_as_the_model_does(kind):
    model = small_model(lively=True, **KINDS[kind])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha_logit"):
                parameter.copy_(torch.tensor([-9.0, -1.0, 1.0, 4.0])[: len(parameter)])
    encoder, decoder = ExportedEncoder(model), ExportedDecoderStep(model)
    settings = decoding_settings(model, encoder, decoder, "onnx")
    texts = set()
    for utterances, frames in AUDIO:
        input_features, mask = features(utterances, frames)
        expected = model.generate(input_features, attention_mask=mask).numpy()
        got = greedy(settings, as_graph(encoder), as_graph(decoder), input_features.numpy(), mask.numpy())
        assert np.array_equal(got, expected)
        texts |= {tuple(row) for row in expected.tolist()}
    assert max(len(set(text)) for text in texts) > 3  # tokens vary


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A random Whisper made sparse, its second decoder layer monotonic, and its ONNX graphs."""
    pytest.importorskip("onnxruntime", reason="runs ONNX graphs")
    place = tmp_path_factory.mktemp("whisper")
    model, processor = convert_whisper(
        make_whisper(place / "whisper", languages=("en", "de"), encoder_layers=1),
        min_seconds=0.0,
        encoder_transform="entmax",
        first_monotonic_layer=1,  # above one that attends fully
        cross_attention="monotonic",
        monotonic_chunk_size=None,
        firing_rule="cumulative",
        firing_probability=0.7,
    )
    model.config.max_tokens_per_position = 0.3
    export_recogniser(model, processor, place / "exported")
    return model, processor, place / "exported"


def speech(*seconds: float) -> list[np.ndarray]:
    """Noise that swells three times a second: one steady sound would be silence."""
    noise = np.random.default_rng(0)
    times = [np.arange(int(16000 * each)) / 16000 for each in seconds]
    return [(np.sin(3 * np.pi * t) ** 2 * noise.standard_normal(len(t))).astype(np.float32) / 10 for t in times]


def test_onnxruntime_gives_the_ids_of_generate(whisper):
    model, processor, exported = whisper
    assert EntmaxAsrProcessor.from_pretrained(exported).tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    recogniser = OnnxRecogniser(exported, threads=1)
    for seconds in ((1.3, 0.8, 1.01), (0.7,), (3.0,)):  # the last reaches max_target_positions
        inputs = processor(speech(*seconds), sampling_rate=16000, return_tensors="pt")
        expected = model.generate(**inputs).numpy()
        got = recogniser.generate(inputs["input_features"].numpy(), inputs["attention_mask"].numpy())
        assert np.array_equal(got, expected)
    assert got.shape[1] == model.config.max_target_positions


def test_logits_of_onnxruntime_are_those_of_the_model(whisper):
    model, processor, exported = whisper
    recogniser = OnnxRecogniser(exported, threads=1)
    inputs = processor(speech(1.0, 1.4), sampling_rate=16000, return_tensors="pt")
    input_features, mask = greedy_decoding.padded(
        recogniser.settings, inputs["input_features"].numpy(), inputs["attention_mask"].numpy()
    )
    heard = recogniser.encoder(input_features=input_features, attention_mask=mask)
    states = heard.pop("states")
    carried = {each["input"]: greedy_decoding.nothing_yet(each, 2) for each in recogniser.settings["carried"]}
    ids = torch.tensor([[5, 9, 40, 3], [7, 30, 2, 90]])
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=ids)
    real = heard["position_mask"][:, : expected.encoder_last_hidden_state.shape[1]]
    kept, real = torch.from_numpy(states[:, : real.shape[1]][real]), torch.from_numpy(real)
    torch.testing.assert_close(kept, expected.encoder_last_hidden_state[real], atol=1e-4, rtol=0)
    for place in range(ids.shape[1]):
        step = recogniser.decoder(token_ids=ids[:, place : place + 1].numpy(), **heard, **carried)
        carried = {each["input"]: step[each["output"]] for each in recogniser.settings["carried"]}
        torch.testing.assert_close(torch.from_numpy(step["logits"]), expected.logits[:, place], atol=1e-4, rtol=0)


def test_suppressed_tokens_prompt_and_end_are_written_down(whisper):
    model, _, exported = whisper
    settings = json.loads((exported / "decoding.json").read_text(encoding="utf-8"))
    generation = model.generation_config
    assert settings["start_ids"] == [model.config.decoder_start_token_id, *model.config.decoder_prompt_ids]
    assert len(settings["start_ids"]) == 4
    assert settings["suppressed_ids"] == generation.suppress_tokens != []
    assert settings["suppressed_at_start_ids"] == generation.begin_suppress_tokens != []
    assert settings["end_ids"] == [generation.eos_token_id]


def test_rules_of_the_loop():
    settings = {"suppressed_ids": [3], "suppressed_at_start_ids": [2], "end_ids": [1], "start_ids": [7]}
    settings |= {"max_repeats": 2, "longest_phrase": 2}
    logits = np.array([[0.0, 1.0, 3.0, 4.0]] * 2, np.float32)
    given, one_token = np.full((2, 1), 7), np.full((2, 2), 7)
    one_token[:, 1] = 0
    assert greedy_decoding.choose(settings, logits, given, np.array([5, 0])).tolist() == [1, 1]
    assert greedy_decoding.choose(settings, logits, one_token, np.array([5, 1])).tolist() == [2, 1]
    circles = np.array([[7, 0, 2, 0, 2], [7, 0, 0, 2, 2]])
    scores = logits.copy()
    greedy_decoding.forbid_circles(settings, scores, circles)
    assert np.isinf(scores).tolist() == [[True, False, False, False], [False, False, True, False]]
    greedy_decoding.forbid_circles(settings | {"max_repeats": 0}, logits, circles)
    assert np.isfinite(logits).all()
    lengths = {"start_ids": [1, 2], "max_new_tokens": None, "max_length": None}
    assert greedy_decoding.longest(lengths, np.array([4, 7])) == 10
    assert greedy_decoding.longest({**lengths, "max_new_tokens": 3}, np.array([7])) == 5
    assert greedy_decoding.longest({**lengths, "max_length": 8}, np.array([7])) == 8
    with pytest.raises(ValueError, match="9 frames of audio are more than the 8"):
        greedy_decoding.padded({"frames_per_position": 4, "most_frames": 8}, np.zeros((1, 9, 2)), None)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A monotonic model with single positions and its programs of torch.export, by way of the script."""
    place = tmp_path_factory.mktemp("small")
    processor = small_processor()
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "vocab_size": len(processor.tokenizer)}
    model = small_model(lively=True, encoder_transform="softmax", **sizes)
    model.save_pretrained(place / "checkpoint")
    processor.save_pretrained(place / "checkpoint")
    words = ["export.py", str(place / "checkpoint"), "--output", str(place / "exported"), "--format", "torch"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", words)
        assert script("export").main() == 0
    return model, place


def test_programs_of_torch_export_give_the_ids_of_generate(small):
    model, place = small
    recogniser = TorchRecogniser(place / "exported")
    for utterances, frames in AUDIO:
        input_features, mask = features(utterances, frames)
        expected = model.generate(input_features, attention_mask=mask).numpy()
        assert np.array_equal(recogniser.generate(input_features.numpy(), mask.numpy()), expected)


def test_the_loop_beside_the_graphs_needs_numpy_and_onnxruntime_alone(small):
    _, place = small
    copied = place / "exported" / "greedy_decoding.py"
    tree = ast.parse(copied.read_text(encoding="utf-8"))
    modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"collections.abc", "json", "numpy", "onnxruntime", "pathlib", "typing"}


@pytest.mark.parametrize("alpha", [1.0, 1.0001, 1.2, 1.5, 1.9, 2.0])
def test_the_loop_is_entmax(alpha):
    scores = 6 * torch.randn(2, 3, 5, 40, generator=torch.Generator().manual_seed(0))
    scores[0, 0, 0] = 0.5  # all equal
    scores[1, 2, 3, :30] = -torch.inf
    mask = torch.ones(2, 1, 5, 40, dtype=torch.bool)
    mask[0, :, 1] = False
    mask[1, :, :, 25:] = False
    got = entmax_loop(scores, torch.full((3, 1, 1), alpha), -1, mask)
    torch.testing.assert_close(got, entmax(scores.double(), alpha, mask=mask).float(), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"monotonic_decoding": "soft"}, "monotonic_decoding = 'soft' cannot be exported"),
        ({"encoder_transform": "topk"}, "encoder_transform = 'topk' cannot be exported"),
        ({"repetition_penalty": 1.2}, "sets repetition_penalty = 1.2"),
        ({"format": "tflite"}, "format = 'tflite' is not known"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, change, message):
    change = dict(change)
    form, penalty = change.pop("format", "torch"), change.pop("repetition_penalty", None)
    model = small_model(**change)
    model.generation_config.repetition_penalty = penalty
    with pytest.raises(ValueError, match=message):
        export_recogniser(model, small_processor(), tmp_path / "exported", form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("system", ["las", "wav2letter", "rnn_t"])
def test_the_systems_to_compare_with_are_refused(tmp_path, system):
    with pytest.raises(ValueError, match="cannot be exported"):
        export_recogniser(baseline(system), small_processor(), tmp_path / "exported", "torch")


def test_errors_of_the_script_are_one_line(small, call, monkeypatch, tmp_path):
    _, place = small
    status, _, said = call("export", place / "checkpoint", "--output", place / "exported")
    assert (status, said.count("\n")) == (1, 1)
    assert "exported exists; name another folder" in said
    found = importlib.util.find_spec
    monkeypatch.setattr(folder.importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name))
    status, _, said = call("export", place / "checkpoint", "--output", tmp_path / "other")
    assert (status, said.count("\n")) == (1, 1)
    assert "pip install 'hf_entmax_asr[export]'" in said
    assert not Path(tmp_path / "other").exists()


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "graph_of", lambda part, config: (_ for _ in ()).throw(RuntimeError("no room")))
    with pytest.raises(RuntimeError, match="no room"):
        export_recogniser(small_model(), small_processor(), tmp_path / "exported", "torch")
    assert list(tmp_path.iterdir()) == []

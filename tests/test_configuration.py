"""The configuration: the paper's defaults, saved and loaded, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hf_entmax_asr import EntmaxAsrConfig
from support.small_models import small_config


def test_defaults_are_the_papers_model():
    config = EntmaxAsrConfig()
    assert (config.encoder_layers, config.decoder_layers, config.d_model) == (12, 6, 512)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (8, 8)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim, config.dropout) == (1024, 1024, 0.1)
    assert (config.encoder_transform, config.decoder_transform) == ("entmax", "entmax")
    assert (config.cross_attention, config.num_mel_bins) == ("monotonic", 80)


def test_names_that_transformers_asks_for():
    config = small_config()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    assert config.is_encoder_decoder


@pytest.mark.parametrize(("layers", "positions"), [(1, [1, 1, 2, 4, 5, 31]), (2, [1, 1, 1, 2, 3, 16])])
def test_positions_of_frames(layers, positions):
    config, frames = small_config(subsampling_layers=layers), [1, 2, 4, 8, 9, 61]
    assert config.frames_per_position == 2**layers
    assert [config.positions_of(count) for count in frames] == positions
    assert config.positions_of(np.array(frames)).tolist() == positions
    assert config.positions_of(torch.tensor(frames)).tolist() == positions


def test_saved_and_loaded(tmp_path):
    config = small_config(
        monotonic_chunk_size=None, head_regularizer="gate_l1", head_regularizer_layers=[1], first_monotonic_layer=1
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is EntmaxAsrConfig
    about_the_file = {"_name_or_path", "auto_map", "transformers_version"}
    knobs = {name: value for name, value in config.to_dict().items() if name not in about_the_file}
    assert {name: value for name, value in loaded.to_dict().items() if name not in about_the_file} == knobs
    assert knobs["monotonic_chunk_size"] is None
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {"AutoConfig": "configuration_entmax_asr.EntmaxAsrConfig"}


def test_which_layers_are_monotonic_and_gated():
    config = small_config(first_monotonic_layer=1, head_regularizer="gate_l1", head_regularizer_layers=[1])
    assert [config.is_monotonic(layer) for layer in range(2)] == [False, True]
    assert [config.has_gates(layer) for layer in range(2)] == [False, True]
    assert not small_config(cross_attention="full").is_monotonic(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_transform": "relu"}, "'relu' is not known. Use one of: softmax, sparsemax, entmax15, entmax, topk"),
        ({"decoder_transform": ""}, "decoder_transform = ''"),
        ({"cross_transform": "none"}, "cross_transform = 'none'"),
        ({"cross_head_transform": "topk"}, "cross_head_transform = 'topk'"),
        ({"cross_attention": "local"}, "Use one of: full, monotonic"),
        ({"monotonic_decoding": "Hard"}, "'Hard' is not known. Use one of: hard, soft"),
        ({"firing_rule": "mean"}, "'mean' is not known. Use one of: threshold, cumulative"),
        ({"firing_probability": 1.0}, "1.0 must lie between 0 and 1"),
        ({"head_regularizer": "l1"}, "head_regularizer = 'l1'"),
        ({"activation_function": "square"}, "activation_function = 'square'"),
        ({"d_model": "16"}, "expected int, got str"),
        ({"d_model": 18, "decoder_attention_heads": 4, "encoder_attention_heads": 2}, "multiple of decoder_attention"),
        ({"d_model": 15, "decoder_attention_heads": 3, "encoder_attention_heads": 3}, "d_model = 15 must be even"),
        ({"attention_topk": 0}, "attention_topk = 0 must be at least 1"),
        ({"decoder_layers": 0, "cross_attention": "full"}, "decoder_layers = 0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout = 1.0 must lie in \[0, 1\)"),
        ({"ctc_loss_weight": -0.1}, "ctc_loss_weight = -0.1"),
        ({"subsampling_layers": 3}, "subsampling_layers = 3 must be 1 or 2"),
        ({"softmax_temperature": 0.0}, "softmax_temperature = 0.0 must be above 0"),
        ({"entmax_alpha_init": 2.0}, "entmax_alpha_init = 2.0 must lie strictly between 1 and 2"),
        ({"monotonic_chunk_size": 0}, "or None for infinite lookback"),
        ({"energy_noise_std": -1.0}, "energy_noise_std = -1.0 must not be negative"),
        ({"head_regularizer_weight": -1.0}, "head_regularizer_weight = -1.0 must not be negative"),
        ({"sparsity_weight": -1.0}, "sparsity_weight = -1.0 must not be negative"),
        ({"reference_window": [None, -2]}, r"reference_window = \[None, -2\] must be two numbers of positions"),
        ({"reference_window": [3]}, r"reference_window = \[3\] must be two numbers of positions"),
        ({"first_monotonic_layer": 2}, r"first_monotonic_layer = 2 must lie in \[0, 1\]"),
        ({"head_regularizer": "quantity"}, "needs head_regularizer_layers, for example"),
        (
            {"head_regularizer": "gate_l1", "head_regularizer_layers": [0], "first_monotonic_layer": 1},
            "names layer 0, which has no monotonic attention",
        ),
        (
            {"head_regularizer": "gate_l1", "head_regularizer_layers": [0], "cross_attention": "full"},
            "names layer 0, which has no monotonic attention",
        ),
    ],
)
def test_refused(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        small_config(**options)


@pytest.mark.parametrize("name", ["monotonic_decoding", "firing_rule"])
def test_a_misspelt_switch_is_refused_on_a_living_configuration(name):
    config = small_config()
    with pytest.raises(StrictDataclassError, match="is not known"):
        setattr(config, name, "sotf")
    assert getattr(config, name) in ("hard", "threshold")

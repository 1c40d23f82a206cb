"""Loading: the model first, ready to recognise; and folders that hold no recogniser."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_entmax_asr import EntmaxAsrForConditionalGeneration, EntmaxAsrProcessor, load_recogniser
from hf_entmax_asr.recognition import CheckpointError

CHECKPOINT = Path(__file__).parent / "checkpoint_of_0.1.0"


@pytest.mark.parametrize("place", [CHECKPOINT, str(CHECKPOINT)])
def test_a_recogniser_is_a_model_and_its_processor(place):
    model, processor = load_recogniser(place, "cpu")
    assert isinstance(model, EntmaxAsrForConditionalGeneration)
    assert isinstance(processor, EntmaxAsrProcessor)
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.device == torch.device("cpu")
    assert not model.training


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder nowhere; a Hub repository would be named owner/name"):
        load_recogniser("nowhere")
    with pytest.raises(CheckpointError, match=f"{tmp_path} is not a checkpoint of hf_entmax_asr"):
        load_recogniser(tmp_path)


@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors"]
)
def test_what_is_no_regular_file_is_named(copy, file):
    """Readers would wait for a pipe, and take defaults in the place of a folder."""
    (copy / file).unlink()
    os.mkfifo(copy / file)
    with pytest.raises(CheckpointError, match=f"{file} is a pipe or device"):
        load_recogniser(copy, "cpu")
    (copy / file).unlink()
    (copy / file).mkdir()
    with pytest.raises(CheckpointError, match=f"{file} is a folder"):
        load_recogniser(copy, "cpu")
    (copy / file).rmdir()
    (copy / file).symlink_to(file)
    with pytest.raises(CheckpointError, match=file):
        load_recogniser(copy, "cpu")


@pytest.fixture
def copy(tmp_path):
    """A copy of the checkpoint, to be damaged."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("expected.safetensors"))
    return folder


def change_json(file, path, value):
    tree = json.loads(file.read_text())
    *parents, leaf = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    file.write_text(json.dumps(tree))


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "path", "value", "said"),
    [
        ("config.json", "d_model", "x", "d_model"),
        ("config.json", "d_model", 10**9, "d_model = 1000000000"),
        ("config.json", "dropout", float("nan"), "dropout = nan"),
        ("config.json", "softmax_temperature", float("nan"), "must be a finite number"),
        ("config.json", "dtype", "float61", "float61"),
        ("config.json", "auto_map", 7, "auto_map is 7"),
        ("config.json", "decoder_start_token_id", 10**6, "decoder_start_token_id is 1000000"),
        ("config.json", "pad_token_id", -1, "pad_token_id"),
        ("generation_config.json", "eos_token_id", 3, "eos_token_id is 3, and the model ends with 2"),
        ("generation_config.json", "eos_token_id", "x", "eos_token_id is 'x'"),
        ("generation_config.json", "num_beams", 10**9, "num_beams is 1000000000"),
        ("generation_config.json", "max_new_tokens", -4, "max_new_tokens"),
        ("generation_config.json", "temperature", [], "temperature"),
        ("processor_config.json", "feature_extractor.feature_size", 13, "mel"),
        ("processor_config.json", "feature_extractor.sampling_rate", "x", "sampling_rate"),
        ("processor_config.json", "feature_extractor.hop_ms", "x", "hop_ms"),
        ("processor_config.json", "feature_extractor.cmvn_mean", None, "cmvn"),
        ("processor_config.json", "feature_extractor", [], "checkpoint"),
        ("tokenizer.json", "decoder", None, "it has no decoder"),
        ("tokenizer.json", "model.vocab", {"a": 0}, "checkpoint"),
        ("tokenizer_config.json", "unk_token", None, "it has no unk_token"),
        ("tokenizer_config.json", "eos_token", "<s>", "its end token is 1, and the model ends with 2"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_with_its_file(copy, file, path, value, said):
    change_json(copy / file, path, value)
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        load_recogniser(copy, "cpu")
    assert str(copy / file).replace("_config", "").removesuffix("json") in str(caught.value).replace("_config", "")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "processor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe\x00", b"[" * 100_000])
def test_a_damaged_file_is_named(copy, file, content):
    (copy / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=file):
        load_recogniser(copy, "cpu")


def test_weights_that_are_not_those_of_the_model_are_refused(copy):
    name = "model.decoder.layer_norm.weight"
    whole = (copy / "model.safetensors").read_bytes()
    for change, said in (
        (lambda t: t.pop(name), f"model.safetensors lacks {name}"),
        (lambda t: t.update(other=torch.ones(2)), "has no place for: other"),
        (lambda t: t.update({name: torch.ones(2)}), f"in other sizes than config.json says: {name}"),
        (lambda t: t.update({name: t[name].to(torch.int8)}), f"{name} holds numbers of type I8"),
        (lambda t: t.update({name: t[name].to(torch.int64)}), f"{name} holds numbers of type I64"),
        (lambda t: t[name].fill_(float("nan")), f"{name} holds NaN or infinite"),
        (lambda t: t[name].fill_(float("inf")), f"{name} holds NaN or infinite"),
        (lambda t: t[name].fill_(-1e30), f"{name} reaches 1e+30; no weight is above 1e+06"),
    ):
        (copy / "model.safetensors").write_bytes(whole)
        change_weights(copy, change)
        with pytest.raises(CheckpointError, match=re.escape(said)):
            load_recogniser(copy, "cpu")
    for damaged in (b"", whole[:-100], b"\xff" * 8 + whole[8:]):
        (copy / "model.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(copy / "model.safetensors"))):
            load_recogniser(copy, "cpu")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        load_recogniser(copy, "cpu")


def test_half_precision_and_a_missing_generation_config_are_fine(copy):
    change_weights(copy, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    (copy / "generation_config.json").unlink()
    model, _ = load_recogniser(copy, "cpu")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 2


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(CheckpointError, match="cannot be used on the device 'nowhere'"):
        load_recogniser(CHECKPOINT, "nowhere")

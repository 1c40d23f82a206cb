"""Writes a folder that transformers' Whisper classes load, from the weights that CTranslate2 keeps of it.

CTranslate2 stacks what transformers keeps apart: `self_attention/linear_0` is q | k | v, `linear_1` the output;
`attention` is the cross-attention, with `linear_0` q, `linear_1` k | v, `linear_2` the output. Keys have no bias in
Whisper; CTranslate2 stores zeros.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.real_speech.ctranslate2_model import Ctranslate2Model
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.modeling_whisper import sinusoids

HALF_PRECISION = 1e-3  # how far a value of at most 1 can be from its rounded form
TIMESTAMPS = 1501  # tokens from 0.00 to 30.00 s, behind all others
GELU = 3  # CTranslate2's number for it


class FolderError(ValueError):
    """The parts are not those of a Whisper; the message says which is wrong."""


def write_folder(
    folder: Path,
    model: Ctranslate2Model,
    settings: dict[str, Any],
    tokenizer: dict[str, Any],
    spelling: dict[str, str],
    multilingual: bool,
) -> None:
    """Write model, processor and settings of generation into an existing folder.

    Args:
        model: the weights.
        settings: config.json of faster-whisper: suppressed tokens and alignment heads.
        tokenizer: a tokenizer.json.
        spelling: British to American words, for WhisperTokenizer.normalize.
        multilingual: whether generation begins with a language and a task. English-only models keep these tokens in
            their vocabulary, but were not trained with them.

    Raises:
        FolderError: a variable is missing or of another shape, or tokens are.
    """
    ids = token_ids(tokenizer)
    config = whisper_config(model, ids, settings)
    network = WhisperForConditionalGeneration(config)
    network.load_state_dict(state_dict(model, config))
    network.generation_config = generation_config(ids, settings, config, multilingual)
    network.save_pretrained(folder)
    features = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(features, whisper_tokenizer(tokenizer, config)).save_pretrained(folder)
    features.save_pretrained(folder)  # once more under the name that programs of before transformers 5 read
    (folder / "normalizer.json").write_text(json.dumps(spelling, indent=1) + "\n", encoding="utf-8")


def token_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """The number of each special token, by its text."""
    try:
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    except (KeyError, TypeError) as error:
        raise FolderError(f"tokenizer.json has no list of added tokens ({error})") from error
    needed = [f"<|{name}|>" for name in ("endoftext", "startoftranscript", "startofprev", "notimestamps")]
    needed += ["<|transcribe|>", "<|translate|>"]
    if missing := [token for token in needed if token not in ids]:
        raise FolderError(f"tokenizer.json lacks {', '.join(missing)}; it is not a Whisper's")
    return ids


def whisper_config(model: Ctranslate2Model, ids: dict[str, int], settings: dict[str, Any]) -> WhisperConfig:
    """The configuration, read off the shapes.

    Raises:
        FolderError: it is another kind of model, or a variable that tells a size is missing.
    """
    if model.specification != "WhisperSpec":
        raise FolderError(f"the weights are of a {model.specification}, not of a WhisperSpec")
    fixed = {"activation": GELU, "pre_norm": 1, "scale_embeddings": 0}
    for name, value in fixed.items():
        if int(_variable(model, f"decoder/{name}", ())) != value:
            raise FolderError(f"decoder/{name} is {model.variables[f'decoder/{name}']}; in a Whisper it is {value}")
    width, mel_bins, _ = _variable(model, "encoder/conv1/weight", (None, None, 3)).shape
    vocabulary = len(_variable(model, "decoder/embeddings/weight", (None, width)))
    if vocabulary != ids["<|notimestamps|>"] + 1 + TIMESTAMPS:
        raise FolderError(
            f"the weights know {vocabulary:,} tokens, the tokenizer {ids['<|notimestamps|>'] + 1:,} and {TIMESTAMPS:,} "
            "timestamps"
        )
    end = ids["<|endoftext|>"]
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=mel_bins,
        d_model=width,
        encoder_layers=_layers(model, "encoder"),
        decoder_layers=_layers(model, "decoder"),
        encoder_attention_heads=int(_variable(model, "encoder/num_heads", ())),
        decoder_attention_heads=int(_variable(model, "decoder/num_heads", ())),
        encoder_ffn_dim=len(_variable(model, "encoder/layer_0/ffn/linear_0/weight", (None, width))),
        decoder_ffn_dim=len(_variable(model, "decoder/layer_0/ffn/linear_0/weight", (None, width))),
        max_source_positions=len(_variable(model, "encoder/position_encodings/encodings", (None, width))),
        max_target_positions=len(_variable(model, "decoder/position_encodings/encodings", (None, width))),
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
    )


def generation_config(
    ids: dict[str, int], settings: dict[str, Any], config: WhisperConfig, multilingual: bool
) -> GenerationConfig:
    """What generate begins with and suppresses, as in the Hub's generation_config.json."""
    several = {
        "lang_to_id": {t: i for t, i in ids.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", t)},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
    }
    return GenerationConfig(
        is_multilingual=multilingual,
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        return_timestamps=False,
        max_initial_timestamp_index=50,
        max_length=config.max_target_positions,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        **(several if multilingual else {}),
    )


def state_dict(model: Ctranslate2Model, config: WhisperConfig) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, in single precision."""
    width = config.d_model
    embeddings = _tensor(model, "decoder/embeddings/weight", (config.vocab_size, width))
    state = {"model.decoder.embed_tokens.weight": embeddings, "proj_out.weight": embeddings}
    for number, inputs in ((1, config.num_mel_bins), (2, width)):
        weight = _tensor(model, f"encoder/conv{number}/weight", (width, inputs, 3))
        state[f"model.encoder.conv{number}.weight"] = weight
        state[f"model.encoder.conv{number}.bias"] = _tensor(model, f"encoder/conv{number}/bias", (width,))
    positions = (("encoder", config.max_source_positions), ("decoder", config.max_target_positions))
    for side, count in positions:
        table = _tensor(model, f"{side}/position_encodings/encodings", (count, width))
        state[f"model.{side}.embed_positions.weight"] = _exact_positions(table) if side == "encoder" else table
        state |= _norm(model, f"{side}/layer_norm", f"model.{side}.layer_norm", width)
    for layer in range(config.encoder_layers):
        state |= _layer(model, "encoder", layer, width, config.encoder_ffn_dim)
    for layer in range(config.decoder_layers):
        state |= _layer(model, "decoder", layer, width, config.decoder_ffn_dim)
    return state


def whisper_tokenizer(tokenizer: dict[str, Any], config: WhisperConfig) -> WhisperTokenizer:
    """Whisper's tokenizer. Timestamps are added where the file has none, so that it names every output of the model."""
    known = {token["id"] for token in tokenizer["added_tokens"]}
    first = config.vocab_size - TIMESTAMPS
    timestamps = [
        {
            "id": first + n,
            "content": f"<|{n * 0.02:.2f}|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": True,
            "special": False,
        }
        for n in range(TIMESTAMPS)
        if first + n not in known
    ]
    whole = tokenizer | {"added_tokens": tokenizer["added_tokens"] + timestamps}
    special = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
        return WhisperTokenizer.from_pretrained(
            scratch,
            pad_token="<|endoftext|>",
            additional_special_tokens=special,
            model_max_length=config.max_target_positions,
        )


def _layers(model: Ctranslate2Model, side: str) -> int:
    found = {int(m[1]) for name in model.variables if (m := re.match(rf"{side}/layer_(\d+)/", name))}
    if not found or found != set(range(len(found))):
        raise FolderError(f"the layers of the {side} are numbered {sorted(found)}; some are missing")
    return len(found)


def _variable(model: Ctranslate2Model, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """A variable that has this shape; None stands for any size."""
    if name not in model.variables:
        raise FolderError(f"the weights lack {name}")
    array = model.variables[name]
    if len(array.shape) != len(shape) or any(w not in (None, s) for s, w in zip(array.shape, shape, strict=True)):
        wanted = "x".join("any" if size is None else str(size) for size in shape) or "a scalar"
        raise FolderError(f"{name} has shape {array.shape}, expected {wanted}")
    return array


def _tensor(model: Ctranslate2Model, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    array = _variable(model, name, shape)
    if array.dtype.kind != "f":
        raise FolderError(f"{name} is of type {array.dtype}: quantised weights are not read, only float16 and float32")
    return torch.from_numpy(array.astype(np.float32))


def _exact_positions(table: torch.Tensor) -> torch.Tensor:
    """Whisper's sinusoids in single precision, where the table is their rounded form."""
    exact = sinusoids(*table.shape)
    return exact if (exact - table).abs().max() < HALF_PRECISION else table


def _norm(model: Ctranslate2Model, source: str, target: str, width: int) -> dict[str, torch.Tensor]:
    return {
        f"{target}.weight": _tensor(model, f"{source}/gamma", (width,)),
        f"{target}.bias": _tensor(model, f"{source}/beta", (width,)),
    }


def _layer(model: Ctranslate2Model, side: str, number: int, width: int, inner: int) -> dict[str, torch.Tensor]:
    """The weights of one layer of the encoder or the decoder."""
    source, target = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
    state = _attention(model, f"{source}/self_attention", f"{target}.self_attn", width, (("q", "k", "v"), ("out",)))
    state |= _norm(model, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm", width)
    if side == "decoder":
        cross = (("q",), ("k", "v"), ("out",))
        state |= _attention(model, f"{source}/attention", f"{target}.encoder_attn", width, cross)
        state |= _norm(model, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm", width)
    state |= _norm(model, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm", width)
    for index, (outputs, inputs) in enumerate(((inner, width), (width, inner))):
        linear = f"{source}/ffn/linear_{index}"
        state[f"{target}.fc{index + 1}.weight"] = _tensor(model, f"{linear}/weight", (outputs, inputs))
        state[f"{target}.fc{index + 1}.bias"] = _tensor(model, f"{linear}/bias", (outputs,))
    return state


def _attention(
    model: Ctranslate2Model, source: str, target: str, width: int, stacks: tuple[tuple[str, ...], ...]
) -> dict[str, torch.Tensor]:
    """Projections of C x C each, stacked by their outputs."""
    state = {}
    for index, names in enumerate(stacks):
        rows = len(names) * width
        weight = _tensor(model, f"{source}/linear_{index}/weight", (rows, width))
        bias = _tensor(model, f"{source}/linear_{index}/bias", (rows,))
        for name, w, b in zip(names, weight.split(width), bias.split(width), strict=True):
            state[f"{target}.{name}_proj.weight"] = w.contiguous()
            if name != "k":
                state[f"{target}.{name}_proj.bias"] = b.contiguous()
            elif b.any():
                raise FolderError(f"{source} has a bias at its keys, which a Whisper has not")
    return state

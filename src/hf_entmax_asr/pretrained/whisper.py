"""A Whisper checkpoint of transformers' format as a recogniser of this package, with the same outputs.

With softmax, full cross-attention and audio padded to 30 seconds (the extractor's `min_seconds`, which training on
shorter windows sets to 0) the logits are Whisper's; every other setting of `EntmaxAsrConfig` starts from there. Source:
Radford et al. 2022, arXiv 2212.04356.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME

from hf_entmax_asr.error_messages import in_one_line
from hf_entmax_asr.input_files import InputFileError, check_fractions, check_model_folder, read_json
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.model.layers import sinusoidal_positions
from hf_entmax_asr.model.modeling_entmax_asr import EntmaxAsrForConditionalGeneration
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.model.prompts import prompt_ids

T = TypeVar("T")

EXACT_POSITIONS = 1e-6  # a table that differs from the sinusoids by more is kept as it is
WINDOW_SECONDS = 30.0  # what Whisper was trained on: without training on shorter windows it repeats itself in them
TOKENS_PER_POSITION = 448 / 1500  # of every Whisper's training: no text is denser
SAME_FIELDS = (
    "vocab_size",
    "num_mel_bins",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "activation_function",
    "max_target_positions",
    "scale_embedding",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
)
FIXED_FIELDS = ("front_end", "subsampling_layers", "decoder_positions", "max_source_positions", "tie_word_embeddings")
KEPT_GENERATION_FIELDS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "is_multilingual",
    "lang_to_id",
    "task_to_id",
    "no_timestamps_token_id",
    "alignment_heads",
)
WHISPERS_FEATURES = {"sampling_rate": 16000, "n_fft": 400, "hop_length": 160}  # what `kind="whisper"` computes
WINDOW_COPIES = {"window_q_proj": "q_proj", "window_k_proj": "k_proj"}


class NotWhisperError(ValueError):
    """A folder or repository that is no Whisper checkpoint, or a damaged one."""


def convert_whisper(
    name_or_folder: str | Path,
    *,
    language: str | None = None,
    task: str = "transcribe",
    min_seconds: float = WINDOW_SECONDS,
    **settings: Any,
) -> tuple[EntmaxAsrForConditionalGeneration, EntmaxAsrProcessor]:
    """A recogniser that starts as a Whisper.

    Args:
        name_or_folder: a folder or Hub repository that transformers' WhisperForConditionalGeneration loads, of any
            size, English or multilingual.
        language, task: what a multilingual one is asked for by default ("en", "zh", …; "transcribe" or "translate");
            English by default. `generate(language=…, task=…)` asks otherwise.
        min_seconds: what shorter audio is padded to. 0, windows as long as the audio, is for what is to be trained
            further: until then Whisper repeats itself in short windows.
        settings: of `EntmaxAsrConfig`; those of the architecture that Whisper fixes are refused. By default softmax
            and full cross-attention, so that nothing changes.

    Returns:
        model in evaluation mode, processor. With ``cross_attention="monotonic"`` the window that heads read is
        Whisper's attention, and their stopping energies start as a copy of its scores. A CTC head
        (``ctc_loss_weight``) starts untrained.

    Raises:
        NotWhisperError: it is no Whisper, or its files are damaged or not there.
        ValueError: a language or task that this checkpoint does not know, or a setting that does not fit.
    """
    source_config, source, generation = _load(str(name_or_folder))
    tokenizer = _load_tokenizer(str(name_or_folder), source_config)
    if fixed := sorted(settings.keys() & {*SAME_FIELDS, *FIXED_FIELDS}):
        raise ValueError(f"{', '.join(fixed)}: fixed by the Whisper checkpoint; leave out.")
    weights = source.state_dict()
    table = weights["model.encoder.embed_positions.weight"]
    formula = sinusoidal_positions(torch.arange(len(table)), table.shape[1])
    exact = bool((table - formula).abs().max() <= EXACT_POSITIONS)
    fields: dict[str, Any] = {
        **{name: getattr(source_config, name) for name in SAME_FIELDS},
        "front_end": "whisper",
        "subsampling_layers": 1,
        "encoder_positions": "sinusoidal" if exact else "learned",
        "decoder_positions": "learned",
        "max_source_positions": source_config.max_source_positions,
        "decoder_prompt_ids": prompt_ids(generation, language, task),
        "max_tokens_per_position": TOKENS_PER_POSITION,
        "tie_word_embeddings": True,
        "encoder_transform": "softmax",
        "decoder_transform": "softmax",
        "cross_attention": "full",
        "dropout": 0.0,
    }
    config = EntmaxAsrConfig(**fields | settings)
    model: Any = EntmaxAsrForConditionalGeneration(config).eval()
    _put_weights(model, rename_weights(weights, model.state_dict()))
    model.generation_config = _generation_config(generation, config)
    extractor = EntmaxAsrFeatureExtractor(
        kind="whisper", feature_size=config.num_mel_bins, cmvn="none", min_seconds=min_seconds
    )
    return model, EntmaxAsrProcessor(feature_extractor=extractor, tokenizer=text_tokenizer(tokenizer))


def rename_weights(whisper: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whisper's weights under this package's names; keys, which have no bias in Whisper, get one of 0.

    Args:
        whisper: state dict of WhisperForConditionalGeneration.
        wanted: of the model that is to take them: what it lacks (an exact table of positions) is left out, windows of
            monotonic heads are copies of their queries and keys, and what Whisper lacks keeps its own start.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in whisper.items():
        name = re.sub(r"encoder\.conv([12])\.", r"encoder.subsampling.conv\1.", name)
        name = name.replace(".final_layer_norm.", ".ffn_layer_norm.").replace("proj_out.", "lm_head.")
        name = re.sub(r"\.(fc[12])\.", r".ffn.\1.", name)
        renamed[name] = tensor
        if name.endswith("k_proj.weight"):
            renamed[name.replace(".weight", ".bias")] = tensor.new_zeros(len(tensor))
    for name in wanted:
        module, _, parameter = name.rpartition(".")
        owner, _, part = module.rpartition(".")
        if part in WINDOW_COPIES:
            renamed[name] = renamed[f"{owner}.{WINDOW_COPIES[part]}.{parameter}"]
    return {name: tensor for name, tensor in renamed.items() if name in wanted}


def text_tokenizer(whisper: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Whisper's tokenizer as one of texts alone: ids of the text and `<|endoftext|>`, without the prompt.

    A text begins with a space, as in Whisper's own transcripts, which decoding takes away again.
    """
    tokenizer = Tokenizer.from_str(whisper.backend_tokenizer.to_str())
    end = whisper.eos_token
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A $B:1 {end}:1", special_tokens=[(end, whisper.eos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=whisper.pad_token or end,
        bos_token=whisper.bos_token or end,
        eos_token=end,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _load(name: str) -> tuple[WhisperConfig, WhisperForConditionalGeneration, GenerationConfig]:
    _check_files(name)
    no_config = f"{name} holds no configuration that transformers knows"
    config = _read(no_config, name, CONFIG_NAME, lambda: AutoConfig.from_pretrained(name))
    if not isinstance(config, WhisperConfig):
        raise NotWhisperError(f"{name} is a {config.model_type!r} checkpoint, not a 'whisper' one.")
    generation = _read(
        f"the generation settings of {name} cannot be read",
        name,
        GENERATION_CONFIG_NAME,
        lambda: _read_generation(name),
    )
    loaded: Any = _read(
        f"the weights of {name} cannot be read",
        name,
        f"{SAFE_WEIGHTS_NAME} for {CONFIG_NAME}",
        lambda: WhisperForConditionalGeneration.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        ),
    )
    model, report = loaded
    if missing := sorted(set(report["missing_keys"]) - {"proj_out.weight"}):
        raise NotWhisperError(
            f"{_file(name, SAFE_WEIGHTS_NAME)} lacks {len(missing)} weights of a Whisper of its {CONFIG_NAME}: "
            f"{', '.join(missing[:5])} …"
        )
    if sizes := sorted(found if isinstance(found, str) else found[0] for found in report["mismatched_keys"]):
        raise NotWhisperError(
            f"{_file(name, SAFE_WEIGHTS_NAME)} has other sizes than its {CONFIG_NAME} says: {', '.join(sizes[:5])}"
        )
    for parameter, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            raise NotWhisperError(f"{_file(name, SAFE_WEIGHTS_NAME)}: {parameter} holds NaN or infinite numbers")
    generation = generation or model.generation_config
    _check_generation(name, generation, config.vocab_size)
    return config, model, generation


def _check_generation(name: str, generation: GenerationConfig, vocabulary: int) -> None:
    """NotWhisperError where what is kept of the generation settings names other things than tokens of the model."""

    def is_token(value: Any) -> bool:
        return type(value) is int and 0 <= value < vocabulary

    for key in KEPT_GENERATION_FIELDS:
        value = getattr(generation, key, None)
        if value is None:
            continue
        if key == "is_multilingual":
            good = type(value) is bool
        elif key == "no_timestamps_token_id":
            good = is_token(value)
        elif key in ("lang_to_id", "task_to_id"):
            good = isinstance(value, dict) and all(map(is_token, value.values()))
        else:
            good = isinstance(value, list) and (key == "alignment_heads" or all(map(is_token, value)))
        if not good:
            raise NotWhisperError(
                f"{_file(name, GENERATION_CONFIG_NAME)}: {key} is {str(value)[:80]!r}, not what a Whisper of "
                f"{vocabulary} tokens has there"
            )


def _check_files(name: str) -> None:
    """NotWhisperError where a file of a folder is no regular one, cannot be parsed, or asks for other features."""
    folder = Path(name)
    if not folder.is_dir():
        return  # of the Hub, which transformers fetches
    try:
        check_model_folder(folder)
        features = folder / FEATURE_EXTRACTOR_NAME
        settings = read_json(features) if features.exists() else {}
    except (OSError, InputFileError) as error:
        raise NotWhisperError(f"{name} is no Whisper checkpoint, or a damaged one: {error}") from error
    try:
        for file in folder.glob("model*.safetensors"):
            check_fractions(file)
    except InputFileError as error:
        raise NotWhisperError(f"the weights of {name} cannot be read: {error}") from error
    for key, value in WHISPERS_FEATURES.items():
        if settings.get(key, value) != value:
            raise NotWhisperError(f"{features}: {key} is {settings[key]!r}; the features of a Whisper have {value}")


def _read(problem: str, name: str, file: str, read: Callable[[], T]) -> T:
    """What `read` makes of a file of the checkpoint; a damaged one can raise anything."""
    try:
        return read()
    except Exception as error:
        raise NotWhisperError(f"{problem}: {_file(name, file)}: {in_one_line(error)}") from error


def _file(name: str, file: str) -> str:
    return f"{name}/{file}"


def _read_generation(name: str) -> GenerationConfig | None:
    """What a folder says of generation; None where it says nothing, and the model knows."""
    if Path(name).is_dir() and not (Path(name) / GENERATION_CONFIG_NAME).exists():
        return None
    return GenerationConfig.from_pretrained(name) if Path(name).is_dir() else None


def _load_tokenizer(name: str, config: WhisperConfig) -> PreTrainedTokenizerBase:
    tokenizer = _read(f"{name} has no tokenizer", name, "tokenizer.json", lambda: AutoTokenizer.from_pretrained(name))
    if len(tokenizer) > config.vocab_size:
        raise NotWhisperError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, its model {config.vocab_size}: they do not belong "
            "together."
        )
    return tokenizer


def _put_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    if wrong := [name for name, tensor in weights.items() if tensor.shape != own[name].shape]:
        raise NotWhisperError(
            f"{wrong[0]} is {tuple(weights[wrong[0]].shape)} in the Whisper, {tuple(own[wrong[0]].shape)} here."
        )
    model.load_state_dict({**own, **weights})


def _generation_config(whisper: GenerationConfig, config: EntmaxAsrConfig) -> GenerationConfig:
    kept = {name: getattr(whisper, name) for name in KEPT_GENERATION_FIELDS if hasattr(whisper, name)}
    return GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        **{name: value for name, value in kept.items() if value is not None},
    )

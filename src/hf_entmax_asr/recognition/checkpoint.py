"""A recogniser out of a folder or a Hub repository: loaded whole, its parts belonging together, or refused."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file, logging

from hf_entmax_asr.error_messages import in_one_line
from hf_entmax_asr.input_files import InputFileError, check_fractions, check_model_folder
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from hf_entmax_asr.model.modeling_entmax_asr_baselines import recogniser_class
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.model.speech_features import SpeechFeatureExtractor
from hf_entmax_asr.tokenization import writes_bytes

T = TypeVar("T")

PROCESSOR, TOKENIZER = "processor_config.json", "tokenizer.json"
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_SWITCHES = (
    *("do_sample", "use_cache", "renormalize_logits", "return_dict_in_generate", "remove_invalid_values"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "is_multilingual"),
)
_OR_BESIDE = " (or tokenizer_config.json beside it)"  # of which transformers does not say where a fault stands
_NAMES_SHOWN = 3
LARGEST_WEIGHT = 1e6  # far above what any training comes to


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, incomplete, damaged or of another run."""


def load_recogniser(
    checkpoint: str | Path, device: str | None = None, *, any_system: bool = False
) -> tuple[Any, EntmaxAsrProcessor]:
    """Model (in evaluation mode, on `device`, or the best there is) and processor of a folder or Hub repository: an
    `EntmaxAsrForConditionalGeneration`, and with `any_system` also one of the systems to compare with.

    Raises:
        CheckpointError: there is none, it is not a checkpoint of this package, or it is damaged; the message names the
            file.
    """
    folder = _folder_of(checkpoint)
    _check_files(folder)
    config = _read(folder, CONFIG_NAME, lambda: _read_config(folder))
    if isinstance(config, EntmaxAsrBaselineConfig) and not any_system:
        raise CheckpointError(
            f"{checkpoint} holds one of the systems to compare with (head = {config.head!r}), which is trained, "
            "evaluated and transcribed with, and nothing else: see docs/baselines.md"
        )
    auto_map = getattr(config, "auto_map", None) or {}
    if not isinstance(auto_map, dict) or not all(isinstance(name, str) for name in auto_map.values()):
        raise CheckpointError(f"{folder / CONFIG_NAME}: auto_map is {auto_map!r}; it must name a class for each role")
    processor = _read_processor(folder)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        _read(folder, GENERATION_CONFIG_NAME, lambda: GenerationConfig.from_pretrained(folder))
    with _silent():
        model = _read(folder, SAFE_WEIGHTS_NAME, lambda: _load_weights(folder, str(checkpoint), config))
    check_recogniser(model, processor, folder)
    try:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"{checkpoint} cannot be used on the device {device!r}: {error}") from error
    return model.eval(), processor


def check_recogniser(model: Any, processor: Any, folder: Path) -> None:
    """See that model, tokenizer, features and generation settings belong together, and that all weights are numbers.

    Raises:
        CheckpointError: they do not; the message names the file in `folder` that is to blame.
    """
    config, tokenizer, extractor = model.config, processor.tokenizer, processor.feature_extractor

    def refuse(file: str, what: str) -> None:
        raise CheckpointError(f"{folder / file}: {what}")

    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        largest = max(abs(end.item()) for end in tensor.aminmax())  # NaN where one is
        if not math.isfinite(largest):
            refuse(SAFE_WEIGHTS_NAME, f"{name} holds NaN or infinite numbers")
        if largest > LARGEST_WEIGHT:
            refuse(SAFE_WEIGHTS_NAME, f"{name} reaches {largest:.3g}; no weight is above {LARGEST_WEIGHT:.0e}")
    if not isinstance(extractor, SpeechFeatureExtractor):
        refuse(PROCESSOR, f"its feature extractor is a {type(extractor).__name__}, not one of this package")
    if extractor.feature_size != config.num_mel_bins:
        refuse(PROCESSOR, f"feature_size is {extractor.feature_size}, and the model takes {config.num_mel_bins}")
    if extractor.needs_statistics and extractor.cmvn_mean is None:
        refuse(PROCESSOR, "cmvn is 'global', and cmvn_mean and cmvn_std are missing")
    _check_tokenizer(config, tokenizer, refuse)
    vocabulary = config.vocab_size
    for file, settings in ((CONFIG_NAME, config), (GENERATION_CONFIG_NAME, model.generation_config)):
        for name in _TOKEN_IDS:
            if wrong := [i for i in ids_of(getattr(settings, name, None)) if not _is_token(i, vocabulary)]:
                refuse(file, f"{name} is {wrong[0]!r}, and the model knows the tokens 0 to {vocabulary - 1}")
    if set(ids_of(config.eos_token_id)) != set(ids_of(model.generation_config.eos_token_id)):
        ends = (model.generation_config.eos_token_id, config.eos_token_id)
        refuse(GENERATION_CONFIG_NAME, f"eos_token_id is {ends[0]}, and the model ends with {ends[1]}")
    _check_generation(model.generation_config, vocabulary, refuse)


def _check_tokenizer(config: EntmaxAsrConfig, tokenizer: Any, refuse: Callable[[str, str], None]) -> None:
    """The tokens that the model speaks of are there, and texts can be made of them."""
    ids = tokenizer.get_vocab().values()
    if not ids or min(ids) < 0 or max(ids) >= config.vocab_size:
        reach = f"its ids reach {max(ids, default=None)}, and the model knows {config.vocab_size} tokens"
        refuse(TOKENIZER, f"{reach}{_OR_BESIDE}")
    for name in ("pad_token_id", "eos_token_id", *(() if writes_bytes(tokenizer) else ("unk_token_id",))):
        if getattr(tokenizer, name) is None:
            refuse(TOKENIZER, f"it has no {name.removesuffix('_id')}, which the model needs{_OR_BESIDE}")
    if tokenizer.eos_token_id not in ids_of(config.eos_token_id):
        refuse(
            TOKENIZER,
            f"its end token is {tokenizer.eos_token_id}, and the model ends with {config.eos_token_id}{_OR_BESIDE}",
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.decoder is None:
        refuse(TOKENIZER, "it has no decoder, so that no text can be made of tokens")


def _check_generation(settings: GenerationConfig, vocabulary: int, refuse: Callable[[str, str], None]) -> None:
    """Numbers of the generation settings are numbers, within what can be meant."""
    limits = {"num_beams": 1000, "num_return_sequences": 1000, "max_length": 10**6, "max_new_tokens": 10**6}
    for name, most in limits.items():
        value = getattr(settings, name, None)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            refuse(GENERATION_CONFIG_NAME, f"{name} is {value!r}; it must be a whole number from 1 to {most:,}")
    for name in ("min_length", "min_new_tokens", "no_repeat_ngram_size", "top_k", "max_repeats"):
        value = getattr(settings, name, None)
        if value is not None and (type(value) is not int or value < 0):
            refuse(GENERATION_CONFIG_NAME, f"{name} is {value!r}; it must be a whole number of at least 0")
    for name in ("temperature", "length_penalty", "repetition_penalty", "top_p", "diversity_penalty", "max_time"):
        value = getattr(settings, name, None)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            refuse(GENERATION_CONFIG_NAME, f"{name} is {value!r}; it must be a finite number")
    for name in _SWITCHES:
        value = getattr(settings, name, None)
        if value is not None and type(value) is not bool:
            refuse(GENERATION_CONFIG_NAME, f"{name} is {value!r}; it must be true or false")
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if wrong := [i for i in ids_of(getattr(settings, name, None)) if not _is_token(i, vocabulary)]:
            refuse(GENERATION_CONFIG_NAME, f"{name} holds {wrong[0]!r}, and the model knows {vocabulary} tokens")


def ids_of(value: Any) -> list[Any]:
    """Token ids given as one, as a list, or as none."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_token(value: Any, vocabulary: int) -> bool:
    return type(value) is int and 0 <= value < vocabulary


def _folder_of(checkpoint: str | Path) -> Path:
    """The folder itself, or where the cache of the Hub keeps the repository."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if Path(checkpoint).exists():
        raise CheckpointError(f"{checkpoint} is a file; a checkpoint is a folder")
    if str(checkpoint).count("/") != 1:
        raise CheckpointError(f"there is no folder {checkpoint}; a Hub repository would be named owner/name")
    try:
        return Path(str(cached_file(str(checkpoint), CONFIG_NAME))).parent
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint of hf_entmax_asr (there is no such folder; as a Hub repository:) {error}"
        ) from error


def _check_files(folder: Path) -> None:
    """CheckpointError where a file is no regular one or cannot be parsed: its readers would wait, or leave it out."""
    if not os.path.lexists(folder / CONFIG_NAME):
        raise CheckpointError(f"{folder} is not a checkpoint of hf_entmax_asr: it has no {CONFIG_NAME}")
    try:
        check_model_folder(folder)
    except (OSError, InputFileError) as error:
        raise CheckpointError(f"{folder} is not a checkpoint of hf_entmax_asr, or is damaged: {error}") from error


def _read(folder: Path, file: str, read: Callable[[], T]) -> T:
    """What `read` makes of `file`; a file out of a damaged checkpoint can raise anything."""
    try:
        return read()
    except CheckpointError:
        raise
    except Exception as error:
        if not any(folder.glob(f"{Path(file).stem}*")):
            raise CheckpointError(f"{folder} is not a checkpoint of hf_entmax_asr: it has no {file}") from error
        where = f"{folder / file}{_OR_BESIDE if file == TOKENIZER else ''}"
        raise CheckpointError(
            f"{folder} is not a checkpoint of hf_entmax_asr, or is damaged: {where}: {in_one_line(error)}"
        ) from error


def _read_config(folder: Path) -> EntmaxAsrConfig:
    settings, _ = EntmaxAsrConfig.get_config_dict(folder)
    of_baseline = settings.get("model_type") == EntmaxAsrBaselineConfig.model_type
    return (EntmaxAsrBaselineConfig if of_baseline else EntmaxAsrConfig).from_pretrained(folder)


def _read_processor(folder: Path) -> EntmaxAsrProcessor:
    tokenizer: Any = _read(folder, TOKENIZER, lambda: AutoTokenizer.from_pretrained(folder))
    processor = _read(folder, PROCESSOR, lambda: AutoProcessor.from_pretrained(folder))
    if not isinstance(processor, EntmaxAsrProcessor) or tokenizer is None:
        raise CheckpointError(f"{folder / PROCESSOR} describes a {type(processor).__name__}, not an EntmaxAsrProcessor")
    return processor


def _load_weights(folder: Path, checkpoint: str, config: EntmaxAsrConfig) -> Any:
    """The model with its weights, each of them read and none made up."""
    quantized = getattr(config, "quantization_config", None) is not None
    for file in folder.glob("model*.safetensors") if not quantized else ():
        try:
            check_fractions(file)
        except InputFileError as error:
            raise CheckpointError(str(error)) from error
    loaded: Any = recogniser_class(config).from_pretrained(
        checkpoint, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, found = loaded
    for kind, what in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "holds what the model of config.json has no place for:"),
        ("mismatched_keys", "holds in other sizes than config.json says:"),
    ):
        if names := sorted(name if isinstance(name, str) else name[0] for name in found[kind]):
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(names[:_NAMES_SHOWN])
            of_it = f" of the model of {CONFIG_NAME}" if kind == "missing_keys" else ""
            raise CheckpointError(f"{folder / SAFE_WEIGHTS_NAME} {what} {shown}{more}{of_it}")
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Without the report of transformers about weights, whose findings become errors."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)

"""What decoding has to know beside the graphs, as decoding.json holds it."""

from typing import Any

from hf_entmax_asr.export.modules import ExportedDecoderStep, ExportedEncoder, output_name
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from hf_entmax_asr.model.generation_inputs import LONGEST_PHRASE, NO_LIMIT, no_circles
from hf_entmax_asr.model.modeling_entmax_asr import EntmaxAsrForConditionalGeneration

# Of a generation configuration: what changes greedy decoding and is not written here, and what changes nothing.
NOT_APPLIED = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1,
    "ctc_weight": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
}


def check_exportable(model: Any) -> None:
    """
    Raises:
        ValueError: a model of which no graph is made, or whose generation configuration asks for more than greedy
            decoding with an export does.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, EntmaxAsrForConditionalGeneration) or isinstance(config, EntmaxAsrBaselineConfig):
        raise ValueError(
            f"a {type(model).__name__} cannot be exported; an EntmaxAsrForConditionalGeneration can, not the "
            "systems to compare with."
        )
    if model.config.cross_attention == "monotonic" and model.config.monotonic_decoding != "hard":
        raise ValueError(
            "monotonic_decoding = 'soft' cannot be exported: its alignment is a loop over tokens and audio. Set "
            "model.config.monotonic_decoding = 'hard', in a checkpoint in its config.json."
        )
    for name in ("encoder_transform", "decoder_transform", "cross_transform"):
        if getattr(model.config, name) == "topk":
            raise ValueError(f"{name} = 'topk' cannot be exported: its graph would be bound to a length of the audio.")
    for name, neutral in NOT_APPLIED.items():
        if (value := getattr(model.generation_config, name, None)) not in (None, neutral):
            raise ValueError(
                f"the generation configuration sets {name} = {value!r}, which decoding with an export does not apply. "
                f"Set model.generation_config.{name} = {neutral!r}, in a checkpoint in its generation_config.json."
            )


def decoding_settings(
    model: EntmaxAsrForConditionalGeneration, encoder: ExportedEncoder, decoder: ExportedDecoderStep, ending: str
) -> dict[str, Any]:
    """For `greedy_decoding.greedy`; `ending` of the files."""
    config, generation = model.config, model.generation_config
    ends = _ids(generation.eos_token_id)
    return {
        "encoder": _graph(f"encoder.{ending}", encoder),
        "decoder": _graph(f"decoder.{ending}", decoder),
        "carried": [
            {
                "input": given.name,
                "output": output_name(given),
                "shape": [0 if size == "past" else size for size in given.axes],
                "dtype": str(given.dtype).removeprefix("torch."),
            }
            for given in decoder.carried
        ],
        "start_ids": [config.decoder_start_token_id, *config.decoder_prompt_ids],
        "end_ids": ends,
        "pad_id": next(iter([*_ids(generation.pad_token_id), *ends]), config.pad_token_id),
        "suppressed_ids": _ids(generation.suppress_tokens),
        "suppressed_at_start_ids": _ids(generation.begin_suppress_tokens),
        "max_repeats": next((guard.max_repeats for guard in no_circles(generation, {})), 0),
        "longest_phrase": LONGEST_PHRASE,
        "frames_per_position": config.frames_per_position,
        "most_frames": most_frames(config),
        "max_tokens_per_position": config.max_tokens_per_position,
        "max_new_tokens": generation.max_new_tokens,
        "max_length": _max_length(model),
    }


def most_frames(config: EntmaxAsrConfig) -> int | None:
    """As many as a learned table of positions has room for; None: any number."""
    learned = config.encoder_positions == "learned"
    return config.max_source_positions * config.frames_per_position if learned else None


def _graph(file: str, part: ExportedEncoder | ExportedDecoderStep) -> dict[str, Any]:
    return {"file": file, "inputs": [given.name for given in part.inputs], "outputs": list(part.outputs)}


def _max_length(model: EntmaxAsrForConditionalGeneration) -> int | None:
    """As `generate` has it: a learned table always ends a text, max_length where there is no max_new_tokens."""
    limits = []
    if model.config.decoder_positions == "learned":
        limits.append(model.config.max_target_positions)
    asked = model.generation_config.max_length
    if model.generation_config.max_new_tokens is None and asked is not None and asked < NO_LIMIT:
        limits.append(asked)
    return min(limits, default=None)


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]

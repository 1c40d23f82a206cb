"""How `generate` takes CTC in: beside the decoder, as a processor of its scores, or in its place.

Axes: B utterances, S positions, C width, U tokens, P tokens before the text, V vocabulary.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import GenerateBeamEncoderDecoderOutput
from transformers.utils import ModelOutput

from .ctc_prefix import CtcPrefixScorer
from .ctc_search import CtcTexts, additions_of, likeliest_texts

# Processors that scale scores, or know the rows of a batch, say nothing about what a token adds.
RESCALING = ("repetition_penalty", "guidance_scale", "exponential_decay_length_penalty", "watermarking_config")
KNOWN_ARGUMENTS = {"input_features", "attention_mask", "encoder_outputs", "decoder_input_ids", "logits_processor"}


def weight_of_ctc(model: Any, settings: GenerationConfig, asked: dict[str, Any]) -> float:
    """The weight that is asked for, taken out of `asked`, else that of the settings.

    Raises:
        ValueError: a weight outside [0, 1], or one that the model or the other arguments have no place for.
    """
    weight = asked.pop("ctc_weight", None)
    weight = getattr(settings, "ctc_weight", None) if weight is None else weight
    if not weight:
        return 0.0
    if not 0 <= weight <= 1:
        raise ValueError(f"ctc_weight = {weight} must lie in [0, 1]: 0 is the decoder alone, 1 CTC alone.")
    if not hasattr(model, "ctc_head"):
        raise ValueError(
            f"ctc_weight = {weight}: this model has no CTC head. Train one (ctc_loss_weight), or leave it out."
        )
    if settings.do_sample or asked.get("assistant_model") is not None:
        raise ValueError(f"ctc_weight = {weight} is for greedy and beam search, not for sampling or an assistant.")
    return float(weight)


def with_ctc(
    model: Any, weight: float, settings: GenerationConfig, states: Tensor, asked: dict[str, Any]
) -> dict[str, LogitsProcessorList]:
    """CTC before the other processors of the scores; encoder states are (B, S, C)."""
    prompt, ends = asked.get("decoder_input_ids"), model.config.eos_token_id
    scorer = CtcPrefixScorer(
        *ctc_scores(model, states, asked.get("attention_mask")),
        weight,
        blank=model.config.pad_token_id,
        end=ends if isinstance(ends, list) else [int(ends or 0)],
        given=1 if prompt is None else prompt.shape[1],
        beams=settings.num_beams or 1,
    )
    return {"logits_processor": LogitsProcessorList([scorer, *(asked.get("logits_processor") or [])])}


def ctc_scores(model: Any, states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Encoder states (B, S, C) -> log probabilities of CTC (B, S, V), and the positions of each utterance (B,)."""
    mask = model.position_mask(attention_mask)
    lengths = torch.full((len(states),), states.shape[1], device=states.device) if mask is None else mask.sum(1)
    return model.ctc_head(states).float().log_softmax(-1), lengths


def generate_with_ctc_alone(
    model: Any,
    settings: GenerationConfig,
    encoder_outputs: Any,
    asked: dict[str, Any],
    limits: Tensor | None,
    longest: int,
) -> ModelOutput | Tensor:
    """`generate` without the decoder: texts that CTC finds likeliest, or that are best with what logits processors add
    to them.

    Args:
        asked: arguments of `generate` besides the settings.
        limits: (B,) tokens that the text of each utterance can have.
        longest: tokens of a sequence, start and end among them.
    """
    check_alone(settings, asked)
    model._prepare_special_tokens(settings, device=model.device)
    scores, lengths = ctc_scores(model, encoder_outputs[0], asked.get("attention_mask"))
    start = torch.tensor([[model.config.decoder_start_token_id]], device=scores.device).expand(len(scores), -1)
    given = start if asked.get("decoder_input_ids") is None else asked["decoder_input_ids"]
    room = max(0, longest - given.shape[1] - 1)
    limits = lengths.clamp(max=room) if limits is None else torch.minimum(limits, lengths).clamp(max=room)
    processors = model._get_logits_processor(
        generation_config=settings,
        input_ids_seq_length=given.shape[1],
        logits_processor=asked.get("logits_processor"),
        device=scores.device,
    )
    ends: Any = settings._eos_token_tensor
    end, blank = int(ends[0]), model.config.pad_token_id
    additions = additions_of(processors, given[0], scores.shape[2])
    texts = likeliest_texts(scores, lengths, limits, end, blank, settings.num_beams or 1, additions)
    sequences, totals = sequences_of(texts, settings.num_return_sequences or 1, given, end, blank)
    if not settings.return_dict_in_generate:
        return sequences
    return GenerateBeamEncoderDecoderOutput(
        sequences=sequences,  # type: ignore[arg-type]
        sequences_scores=totals,
        encoder_hidden_states=encoder_outputs.get("hidden_states"),
        encoder_attentions=encoder_outputs.get("attentions"),
    )


def check_alone(settings: GenerationConfig, asked: Iterable[str]) -> None:
    """
    Raises:
        ValueError: options of `generate` that CTC alone has no place for.
    """
    rescaling = [name for name in RESCALING if getattr(settings, name, None) not in (None, 1.0)]
    if refused := [*rescaling, *(set(asked) - KNOWN_ARGUMENTS)]:
        raise ValueError(
            f"ctc_weight = 1 is CTC alone, in which {', '.join(sorted(refused))} mean nothing: leave them out, or take "
            "a smaller ctc_weight."
        )


def sequences_of(texts: CtcTexts, count: int, given: Tensor, end: int, pad: int) -> tuple[Tensor, Tensor]:
    """The `count` best texts of each utterance as `generate` returns them, behind the tokens given (B, P): (B·count,
    P + U + 1), and their scores (B·count,)."""
    tokens, lengths = texts.tokens[:, :count].flatten(0, 1), texts.lengths[:, :count].flatten()
    tokens = torch.cat([tokens, torch.full_like(lengths, pad)[:, None]], 1)
    index = torch.arange(tokens.shape[1], device=tokens.device)
    tokens = tokens.masked_fill(index > lengths[:, None], pad).masked_fill(index == lengths[:, None], end)
    sequences = torch.cat([given.repeat_interleave(count, 0), tokens[:, : int(lengths.max()) + 1]], 1)
    return sequences, texts.scores[:, :count].flatten().float()

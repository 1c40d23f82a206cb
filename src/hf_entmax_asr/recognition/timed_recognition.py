"""Texts of many stretches of audio and, where asked for, their words with times: in batches of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_entmax_asr.model.configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from hf_entmax_asr.model.times import check_settings, default_settings, token_times
from hf_entmax_asr.model.words import TimedText, text_mask, timed_texts
from hf_entmax_asr.recognition.batches import cut_batches
from hf_entmax_asr.recognition.collating import pad_features
from hf_entmax_asr.recognition.utterances import seconds_per_position

FRAMES_PER_BATCH = 16_000


@dataclass(frozen=True)
class Recognised:
    """The text of one stretch of audio; its words, with seconds from its start, where they were asked for."""

    text: str
    words: tuple[TimedText, ...] | None = None


def time_settings(model: Any) -> dict[str, Any]:
    """Where word times come from: what the checkpoint says where the model decodes so that it has them, else what any
    model has."""
    settings = getattr(model.generation_config, "word_times", None)
    if settings is None:
        return default_settings(model)
    try:
        check_settings(model, settings)
    except ValueError:
        return default_settings(model)
    return settings


@torch.no_grad()
def recognise_timed(
    model: Any,
    processor: Any,
    features: Sequence[torch.Tensor],
    *,
    words: bool,
    num_beams: int = 1,
    frames_per_batch: int = FRAMES_PER_BATCH,
) -> list[Recognised]:
    """What was said, in the order of `features` (T_i, F).

    Args:
        words: whether to tell words with their times too, which takes one more pass of the decoder.
        frames_per_batch: padded frames of a batch; a longer stretch is a batch of its own.

    Raises:
        ValueError: words of a model that cannot tell their times.
    """
    if words and isinstance(model.config, EntmaxAsrBaselineConfig):
        raise ValueError("the times of words are not known of a system to compare with (docs/baselines.md)")
    results: list[Recognised | None] = [None] * len(features)
    lengths = np.array([len(of_one) for of_one in features])
    if not len(lengths):
        return []
    was_training = model.training
    model.eval()
    try:
        order = np.argsort(-lengths, kind="stable").tolist()
        for indices in cut_batches(order, lengths, max(frames_per_batch, int(lengths.max()))):
            padded, mask = (part.to(model.device) for part in pad_features([features[i] for i in indices]))
            of_batch = _recognise_batch(model, processor, padded, mask, words, num_beams)
            for index, result in zip(indices, of_batch, strict=True):
                results[index] = result
    finally:
        model.train(was_training)
    return [result for result in results if result is not None]


def _recognise_batch(
    model: Any, processor: Any, features: torch.Tensor, mask: torch.Tensor, words: bool, num_beams: int
) -> list[Recognised]:
    """features (B, T, F), mask (B, T)."""
    encoder_outputs = model.get_encoder()(features, attention_mask=mask, return_dict=True)
    tokens = model.generate(
        input_features=features,  # tell where something sounds
        encoder_outputs=encoder_outputs,
        attention_mask=mask,
        num_beams=num_beams,
        do_sample=False,
    )
    texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    if not words:
        return [Recognised(text) for text in texts]
    ids = tokens[:, 1:].tolist()
    is_text = torch.tensor([text_mask(processor.tokenizer, row) for row in ids], device=tokens.device)
    seconds = seconds_per_position(model, processor)
    times = token_times(model, tokens, is_text, encoder_outputs, mask, seconds, time_settings(model))
    columns = zip(times.start.tolist(), times.end.tolist(), times.confidence.tolist(), strict=True)
    return [
        Recognised(text, tuple(timed_texts(processor.tokenizer, row, *values)))
        for text, row, values in zip(texts, ids, columns, strict=True)
    ]

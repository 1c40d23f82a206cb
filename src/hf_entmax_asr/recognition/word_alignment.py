"""Forced alignment of transcripts with a recogniser's own cross-attention."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_entmax_asr.analysis.phonemes import Interval
from hf_entmax_asr.analysis.word_alignment import word_intervals
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.model.times import map_spans
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.utterances import Utterances, extract_in_batches, seconds_per_position

CHOSEN_HEADS = 6
_TRIED_UTTERANCES = 16


def align_words(
    model: Any, processor: Any, utterances: Utterances, heads: Sequence[tuple[int, int]] | None = None
) -> Iterator[tuple[str, list[Interval]]]:
    """(id, words with their times) of each utterance, shortest first; without those of more tokens than positions.

    Args:
        model: with full cross-attention, in evaluation mode.
        heads: (layer, head) pairs to follow; by default those that the generation configuration of a Whisper names, or
            the ones that `following_heads` chooses.

    Raises:
        ValueError: the model's cross-attention is not full, or a head does not exist.
    """
    config = model.config
    if config.cross_attention != "full":
        raise ValueError(
            f"cross_attention = {config.cross_attention!r}: words are aligned by full cross-attention. Take the "
            "checkpoint that the monotonic one started from, converted with cross_attention=full."
        )
    heads = (
        heads
        or getattr(model.generation_config, "alignment_heads", None)
        or following_heads(model, processor, utterances)
    )
    for layer, head in heads:
        if not (0 <= layer < config.decoder_layers and 0 <= head < config.heads("cross", layer)):
            raise ValueError(f"there is no head {head} in layer {layer} of the decoder; heads are layer.head")
    seconds = seconds_per_position(model, processor)
    for index, maps in cross_attention_maps(model, processor, utterances):
        weights = torch.stack([maps[layer][head] for layer, head in heads])  # (H, U, S)
        if weights.shape[1] > weights.shape[2]:
            continue
        text = utterances.texts[index]
        offsets = processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        times = (_token_spans(weights)[:, 1] * seconds).tolist()
        yield utterances.ids[index], word_intervals(text, offsets, times)


def following_heads(model: Any, processor: Any, utterances: Utterances) -> list[tuple[int, int]]:
    """The (layer, head) pairs that follow the speech best: those with most weight on a monotonic path of their own."""
    few = utterances.select(evenly_spaced(len(utterances), _TRIED_UTTERANCES))
    weight: dict[tuple[int, int], float] = {}
    for _, maps in cross_attention_maps(model, processor, few):
        for layer, of_layer in enumerate(maps):
            for head, weights in enumerate(of_layer):
                if weights.shape[0] <= weights.shape[1]:
                    on_path = _weight_on_path(weights)
                    weight[layer, head] = weight.get((layer, head), 0.0) + on_path
    return sorted(weight, key=lambda pair: -weight[pair])[:CHOSEN_HEADS]


def _token_spans(weights: Tensor) -> np.ndarray:
    """Maps (H, U, S) of labels, the last of which is the end -> (U − 1, 2) positions of the others, as `map_spans`."""
    return map_spans(weights.float(), torch.arange(weights.shape[1]) < weights.shape[1] - 1)


def _weight_on_path(weights: Tensor) -> float:
    """Mean weight (U, S) that tokens put on the positions which the path through these weights gives them."""
    starts, ends = torch.from_numpy(_token_spans(weights[None])).unbind(1)
    index = torch.arange(weights.shape[1])
    own = (index >= starts[:, None]) & (index < ends[:, None])
    return float((weights[:-1] * own).sum(1).mean())


@torch.no_grad()
def cross_attention_maps(model: Any, processor: Any, utterances: Utterances) -> Iterator[tuple[int, list[Tensor]]]:
    """(index, (H, U, S) weights of each decoder layer) of each utterance: how its labels are read, padding left out."""
    collate = SpeechSeq2SeqCollator(processor)
    for indices, features, lengths in extract_in_batches(utterances, processor.feature_extractor):
        examples = [
            {"input_features": features[row, : lengths[row]], "labels": utterances.labels[index]}
            for row, index in enumerate(indices)
        ]
        batch = {name: value.to(model.device) for name, value in collate(examples).items()}
        mask = batch["attention_mask"]
        states = model.get_encoder()(batch["input_features"], attention_mask=mask)  # apart: its maps are not needed
        read = model(encoder_outputs=states, attention_mask=mask, labels=batch["labels"], output_attentions=True)
        maps = read.cross_attentions
        for row, index in enumerate(indices):
            tokens = len(utterances.labels[index])
            first = maps[0].shape[2] - batch["labels"].shape[1]  # behind the prompt
            positions = int(model.config.positions_of(lengths[row]))
            yield index, [of_layer[row, :, first : first + tokens, :positions].cpu() for of_layer in maps]

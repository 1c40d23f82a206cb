"""How far the stops of monotonic heads lie behind the true ends of tokens."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_entmax_asr.analysis.phonemes import Interval
from hf_entmax_asr.analysis.word_alignment import label_ends
from hf_entmax_asr.recognition import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.utterances import Utterances, extract_in_batches, seconds_per_position


@torch.no_grad()
def stops_behind_words(
    model: Any, processor: Any, utterances: Utterances, words: Mapping[str, Sequence[Interval]]
) -> dict[str, float | int]:
    """Seconds of stops behind the ends of tokens, the decoder reading the reference transcripts hard.

    A token's text can come out when its last head has stopped (`last_head`); `mean_head` is the mean over heads.

    Args:
        words: of each utterance, by a forced aligner; a token inside a word has its share of it.

    Returns:
        mean, median and 90th percentile of both, the share of stops at the last position, and the counts.
    """
    seconds = seconds_per_position(model, processor)
    collate = SpeechSeq2SeqCollator(processor)
    last_head: list[float] = []
    mean_head: list[float] = []
    at_end = stops = 0
    for indices, features, lengths in extract_in_batches(utterances, processor.feature_extractor):
        examples = [
            {"input_features": features[row, : lengths[row]], "labels": utterances.labels[index]}
            for row, index in enumerate(indices)
        ]
        batch = {name: value.to(model.device) for name, value in collate(examples).items()}
        boundaries = torch.cat(model(**batch, output_boundaries=True).boundaries, 1)  # (B, all heads, P + U)
        boundaries = boundaries[..., -batch["labels"].shape[1] :].cpu()
        for row, index in enumerate(indices):
            text, positions = utterances.texts[index], int(model.config.positions_of(lengths[row]))
            offsets = processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            ends = label_ends(text, offsets, words.get(utterances.ids[index], ()))
            tokens = len(utterances.labels[index]) - 1  # the end of the sentence ends with the audio
            stopped = boundaries[row, :, :tokens]
            at_end += int((stopped >= positions - 1).sum())
            stops += stopped.numel()
            if ends is None:
                continue
            behind = (stopped + 1).double() * seconds - torch.tensor(ends[:tokens], dtype=torch.float64)  # (heads, U)
            known = behind[:, [not math.isnan(end) for end in ends[:tokens]]]
            last_head += known.amax(0).tolist()
            mean_head += known.mean(0).tolist()
    if not last_head:
        raise ValueError("no utterance has word times that are the words of its text")
    return {
        "tokens": len(last_head),
        "share_at_last_position": round(at_end / max(1, stops), 4),
        **_summary("last_head", last_head),
        **_summary("mean_head", mean_head),
    }


def _summary(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_mean": round(float(np.mean(values)), 3),
        f"{name}_median": round(float(np.median(values)), 3),
        f"{name}_p90": round(float(np.percentile(values, 90)), 3),
    }

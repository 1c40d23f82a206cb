"""Recognition of many utterances in batches, and its score: in training, and for the scripts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hf_entmax_asr.metrics import Scores
from hf_entmax_asr.recognition.batches import cut_batches
from hf_entmax_asr.recognition.utterances import Utterances

Batch = dict[str, torch.Tensor]


@contextmanager
def decoding_as(
    model: Any,
    decoding: str | None = None,
    firing_rule: str | None = None,
    ctc_weight: float | None = None,
    firing_probability: float | None = None,
) -> Iterator[None]:
    """Decode in another way inside the block: "hard" or "soft"; "threshold" or "cumulative"; the weight of CTC, from 0
    to 1; the probability at which a hard head stops. None leaves as it is.

    Raises:
        ValueError: a name that the model does not know.
    """
    chosen = {
        "monotonic_decoding": decoding,
        "firing_rule": firing_rule,
        "firing_probability": firing_probability,
    }
    before = {name: getattr(model.config, name) for name in chosen}
    weight_before = getattr(model.generation_config, "ctc_weight", None)
    try:
        if ctc_weight is not None:
            model.generation_config.ctc_weight = ctc_weight
        for name, value in chosen.items():
            if value is not None:
                setattr(model.config, name, value)
        model.config.validate_choices()
        yield
    finally:
        for name, value in before.items():
            setattr(model.config, name, value)
        if ctc_weight is not None:
            model.generation_config.ctc_weight = weight_before


def is_monotonic(model: Any) -> bool:
    """Whether hard and soft decoding differ for this model."""
    return model.config.cross_attention == "monotonic"


@torch.no_grad()
def recognise(
    model: Any,
    tokenizer: Any,
    frames: Sequence[int] | np.ndarray,
    load: Callable[[Sequence[int]], Batch],
    *,
    frames_per_batch: int = 16000,
    num_beams: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Texts of utterances, in their order, recognised in batches of similar length.

    Args:
        frames: feature frames of each utterance, to batch by.
        load: gives `input_features` and `attention_mask` of the utterances with these indices.
        frames_per_batch: padded frames of a batch; an utterance above it is a batch of its own.
        progress: called with the number of utterances of each finished batch.

    No hypothesis has more tokens than speech of its length can have (see `generate` of the model): a model that does
    not stop yet costs little more than one that does, and the batch an utterance is in changes nothing.
    """
    frames = np.asarray(frames)
    if len(frames) == 0:
        return []
    was_training = model.training
    model.eval()
    most_frames = max(frames_per_batch, int(frames.max()))
    texts = [""] * len(frames)
    try:
        for indices in cut_batches(np.argsort(-frames, kind="stable").tolist(), frames, most_frames):
            batch = {key: value.to(model.device) for key, value in load(indices).items() if key != "labels"}
            tokens = model.generate(**batch, num_beams=num_beams, do_sample=False)
            for index, text in zip(indices, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                texts[index] = text
            if progress is not None:
                progress(len(indices))
    finally:
        model.train(was_training)
    return texts


def score_decodings(
    model: Any,
    tokenizer: Any,
    utterances: Utterances,
    collate: Callable[[Sequence[dict[str, Any]]], Batch],
    *,
    frames_per_batch: int = 16000,
    num_beams: int = 1,
    compare: bool = True,
    accelerator: Any = None,
) -> dict[str, Scores]:
    """Scores by decoding: "full" for full cross-attention, else the model's own and, with `compare`, the other one.

    With an Accelerate `accelerator` the processes share the work, and each gets all scores. The random state is left as
    it was.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)
    mine = range(rank, len(utterances), world)
    own = model.config.monotonic_decoding if is_monotonic(model) else "full"
    decodings = [own] + [other for other in ("hard", "soft") if compare and own not in ("full", other)]
    scores = {}
    for decoding in decodings:
        with decoding_as(model, None if decoding == "full" else decoding), torch.random.fork_rng(devices=[]):
            texts = recognise(
                model,
                tokenizer,
                utterances.frames[mine],
                lambda indices: collate([utterances.example(mine[i]) for i in indices]),
                frames_per_batch=frames_per_batch,
                num_beams=num_beams,
            )
        pairs = list(zip(mine, texts, strict=True))
        if world > 1:
            from accelerate.utils import gather_object  # only here: one process alone need not have accelerate

            pairs = gather_object(pairs)
        hypotheses = [text for _, text in sorted(pairs)]
        scores[decoding] = Scores.of(utterances.texts, hypotheses)
    return scores

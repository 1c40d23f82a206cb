"""Whether a split can be trained on, found out before any work is spent."""

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_entmax_asr.recognition.utterances import DataError, Utterances
from hf_entmax_asr.training.recipe import DataSection

logger = logging.getLogger(__name__)


def usable_utterances(
    split: str, utterances: Utterances, section: DataSection, tokenizer: Any, ctc_positions: np.ndarray | None
) -> Utterances:
    """The utterances, if all can be trained on; without the bad ones where the recipe says so.

    Args:
        split: its name, for messages.
        tokenizer: the one that made the labels.
        ctc_positions: (utterances,) encoder positions of each, where the model is trained with CTC, else None.

    Raises:
        DataError: bad utterances (and `bad_utterances` is "refuse"), none left, or too many unknown characters.
    """
    if len(utterances) == 0:
        raise DataError(f"the split {split!r} has no utterances")
    problems = _problems(utterances, section, ctc_positions)
    if problems:
        report = f"the split {split!r} has utterances that cannot be trained on:\n" + "\n".join(
            f"  {len(ids)} {reason}: {', '.join(ids[:5])}{', …' if len(ids) > 5 else ''}"
            for reason, ids in problems.items()
        )
        if section.bad_utterances == "refuse":
            raise DataError(f"{report}\nCorrect them, or leave them out with data.bad_utterances=drop.")
        logger.warning("%s\nThey are left out.", report)
        bad = {name for ids in problems.values() for name in ids}
        utterances = utterances.select([i for i, name in enumerate(utterances.ids) if name not in bad])
        if len(utterances) == 0:
            raise DataError(f"no utterance of the split {split!r} is left")
    _check_unknown(split, utterances, section.max_unknown_share, tokenizer)
    return utterances


def _problems(utterances: Utterances, section: DataSection, ctc_positions: np.ndarray | None) -> dict[str, list[str]]:
    """Ids by the reason for which they cannot be used."""
    problems: dict[str, list[str]] = {}
    durations = utterances.rows["duration"]
    for index, (name, text, labels) in enumerate(zip(utterances.ids, utterances.texts, utterances.labels, strict=True)):
        reason = None
        if not text.strip():
            reason = "with an empty text"
        elif durations[index] < section.min_duration:
            reason = f"shorter than {section.min_duration} s (data.min_duration)"
        elif durations[index] > section.max_duration:
            reason = f"longer than {section.max_duration} s (data.max_duration)"
        elif ctc_positions is not None and ctc_length(labels) > ctc_positions[index]:
            reason = "with more tokens than encoder positions, which CTC cannot align (is the text that of the audio?)"
        if reason:
            problems.setdefault(reason, []).append(name)
    return problems


def ctc_length(labels: Sequence[int]) -> int:
    """Positions that CTC needs for labels with a final `</s>`: one per token, one blank between equal neighbours."""
    tokens = labels[:-1]
    return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))


def _check_unknown(split: str, utterances: Utterances, limit: float, tokenizer: Any) -> None:
    unknown = [labels.count(tokenizer.unk_token_id) for labels in utterances.labels]
    total = int(utterances.tokens.sum())
    if sum(unknown) <= limit * total:
        return
    names = [name for name, count in zip(utterances.ids, unknown, strict=True) if count]
    texts = [text for text, count in zip(utterances.texts, unknown, strict=True) if count]
    counts = Counter("".join(texts)).most_common()
    characters = [c for c, _ in counts if tokenizer.unk_token_id in tokenizer(c).input_ids]
    raise DataError(
        f"{sum(unknown) / total:.1%} of the tokens of the split {split!r} are unknown to the tokenizer "
        f"({sum(unknown)} of {total}; limit {limit:.1%}), in {len(names)} utterances: {', '.join(names[:5])}. "
        f"Unknown characters: {' '.join(characters[:40])}. Normalise the text, "
        "train the tokenizer on text that has them, or raise data.max_unknown_share."
    )

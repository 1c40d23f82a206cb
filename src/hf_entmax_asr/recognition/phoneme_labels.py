"""Phonemes of the utterances of a data set, at the positions of the encoder."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_entmax_asr.analysis.phoneme_aligner import AlignmentError, PocketsphinxAligner
from hf_entmax_asr.analysis.phonemes import (
    NO_CLASS,
    Interval,
    labels_at_positions,
    labels_of,
    phoneme,
    phoneme_classes,
)
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.recognition.utterances import Utterances

ALIGNER_RATE = 16_000
LABEL_SLACK_SECONDS = 0.5  # labels may end so much after the audio

Labels = Mapping[str, Sequence[Interval]] | PocketsphinxAligner  # intervals by utterance id, or what finds them


class PhonemeLabels:
    """Labels of a data set, read or aligned when they are asked for.

    Attributes:
        source: "files" or "pocketsphinx".
        classes: the phonemes, in the order of `phoneme_classes`; of an aligner, all of ARPAbet.
        refused: {reason: ids} of utterances that could not be labelled, with what was missing in brackets.
    """

    def __init__(self, labels: Labels, seconds_per_position: float) -> None:
        """
        Raises:
            LabelError: see `phoneme_classes`.
        """
        self.labels, self.seconds_per_position = labels, seconds_per_position
        self.source, found = "pocketsphinx", None
        if isinstance(labels, Mapping):
            self.source = "files"
            found = {phoneme(interval.label) for intervals in labels.values() for interval in intervals}
        self.classes = phoneme_classes(found)
        self.refused: dict[str, list[str]] = {}

    def may_have(self, utterance: str) -> bool:
        """Whether the utterance of this id is labelled; of an aligner, it is not known before it tries."""
        return not isinstance(self.labels, Mapping) or labels_of(self.labels, utterance) is not None

    def at_positions(self, utterances: Utterances, indices: Sequence[int], positions: int) -> Tensor:
        """(B, positions) classes of these utterances; those that cannot be labelled are NO_CLASS (−1) throughout."""
        result = torch.full((len(indices), positions), NO_CLASS)
        for row, index in enumerate(indices):
            intervals, reason = self._intervals(utterances, index)
            if reason is not None:
                reason, _, detail = reason.partition(": ")
                name = utterances.ids[index] + (f" ({detail})" if detail else "")
                self.refused.setdefault(f"no phonemes: {reason}", []).append(name)
            else:
                result[row] = labels_at_positions(intervals, positions, self.seconds_per_position, self.classes)
        return result

    def _intervals(self, utterances: Utterances, index: int) -> tuple[Sequence[Interval], str | None]:
        """Phonemes of one utterance, or why there are none."""
        row = utterances.rows[index]
        if isinstance(self.labels, Mapping):
            intervals = labels_of(self.labels, row["id"])
            if intervals is None:
                return (), "not labelled"
            if intervals and intervals[-1].end > row["duration"] + LABEL_SLACK_SECONDS:
                return (), "labelled beyond the end of the audio"
            return intervals, None
        try:
            return self.labels.align(read_audio(row["audio"], sampling_rate=ALIGNER_RATE), row["text"]), None
        except AlignmentError as error:
            return (), str(error)

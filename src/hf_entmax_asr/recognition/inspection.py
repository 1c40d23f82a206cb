"""What the attention of a model does on a data set, as one document: `analyze(model, processor, rows)`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_entmax_asr.analysis.document import (
    AnalysedModel,
    AnalysisDocument,
    ProbeFailure,
    RoleRule,
    WeightHistograms,
    rounded,
)
from hf_entmax_asr.analysis.locality import CURVE_POINTS
from hf_entmax_asr.analysis.phonemes import NO_CLASS
from hf_entmax_asr.analysis.probe import PhonemeProbe, split_disjoint
from hf_entmax_asr.model.losses import IGNORED_LABEL
from hf_entmax_asr.recognition.attention_meters import AttentionMeters, Part
from hf_entmax_asr.recognition.batches import cut_batches
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.document_parts import (
    head_agreement,
    module_measures,
    monotonic_measures,
    phoneme_measures,
    probe_measures,
    weight_histogram,
)
from hf_entmax_asr.recognition.evaluation import decoding_as, is_monotonic
from hf_entmax_asr.recognition.phoneme_labels import Labels, PhonemeLabels
from hf_entmax_asr.recognition.utterances import DataError, Utterances, prepare_split, seconds_per_position


@torch.no_grad()
def analyze(
    model: Any,
    processor: Any,
    rows: Any,
    *,
    labels: Labels | None = None,
    frames_per_batch: int = 6000,
    max_seconds: float = 30.0,
    diagonal_from: float = 0.5,
    phonetic_from: float = 1.5,
    progress: Callable[[int], None] | None = None,
) -> AnalysisDocument:
    """Every measure of `hf_entmax_asr.analysis` over a data set.

    The decoder reads the reference texts (teacher forcing); monotonic heads stop hard. Memory is bounded by one batch
    and a few numbers per head, however long the data set.

    Args:
        rows: data set with the columns id, audio, text, speaker and duration, as `load_folder` gives them.
        labels: phonemes in time: intervals by utterance id (`read_label_folder`; see `labels_of`), or an aligner.
            None: no PAR, no probe.
        frames_per_batch: padded frames in a batch.
        max_seconds: longer utterances are left out, since maps grow with the square of the length.
        diagonal_from, phonetic_from: of the rule in `head_roles`.
        progress: called with the number of utterances of each finished batch.

    Raises:
        DataError: no utterance is left.
        LabelError: the labels have more classes than there are phonemes.
    """
    inspection = _Inspection(model, processor, labels)
    utterances = inspection.choose(prepare_split(rows, processor), max_seconds)
    plan = inspection.plan_probe(utterances)
    most_frames = max(frames_per_batch, int(utterances.frames.max()))
    was_training = model.training
    model.eval()
    try:
        with decoding_as(model, "hard" if is_monotonic(model) else None):
            for part, members in plan.parts.items():
                by_length = sorted(members, key=lambda i: (-utterances.frames[i], i))
                for indices in cut_batches(by_length, utterances.frames, most_frames):
                    inspection.update(utterances, indices, part)
                    if progress is not None:
                        progress(len(indices))
    finally:
        model.train(was_training)
    rule = RoleRule(diagonal_from=rounded(diagonal_from), phonetic_from=rounded(phonetic_from))
    return inspection.document(utterances, plan, rule)


@dataclass(frozen=True)
class _ProbePlan:
    """Who trains the probe and who tests it.

    Attributes:
        parts: numbers of utterances by what the probe does with them.
        disjoint_by: what those to train on and those to test on do not share; None without a probe.
        failure: why there is none though there are labels.
    """

    parts: Mapping[Part, list[int]]
    disjoint_by: str | None = None
    failure: ProbeFailure | None = None


class _Inspection:
    """One analysis: a model, the labels, and the meters between them."""

    def __init__(self, model: Any, processor: Any, labels: Labels | None) -> None:
        self.model, self.collate = model, SpeechSeq2SeqCollator(processor)
        self.seconds_per_position = seconds_per_position(model, processor)
        self.labels = None if labels is None else PhonemeLabels(labels, self.seconds_per_position)
        self.meters = AttentionMeters(model, None if self.labels is None else self.labels.classes)
        self.too_long: dict[str, list[str]] = {}

    def choose(self, utterances: Utterances, max_seconds: float) -> Utterances:
        """Those short enough.

        Raises:
            DataError: there are none.
        """
        durations = utterances.rows["duration"] if len(utterances) else []
        long = [i for i, seconds in enumerate(durations) if seconds > max_seconds]
        if long:
            self.too_long[f"longer than {max_seconds:g} s"] = [utterances.ids[i] for i in long]
        if len(long) == len(utterances):
            raise DataError(f"none of the {len(utterances)} utterances is at most {max_seconds:g} s long")
        return utterances.select(sorted(set(range(len(utterances))) - set(long))) if long else utterances

    def plan_probe(self, utterances: Utterances) -> _ProbePlan:
        """Splits the labelled utterances, and sets up the probe where that can be done."""
        everything = list(range(len(utterances)))
        if self.labels is None:
            return _ProbePlan({"unused": everything})
        usable = [i for i in everything if self.labels.may_have(utterances.ids[i])]
        speakers = list(utterances.rows["speaker"]) if "speaker" in utterances.rows.column_names else None
        try:
            train, test, disjoint_by = split_disjoint(
                [speakers[i] if speakers else None for i in usable], [utterances.texts[i] for i in usable]
            )
        except ValueError as error:
            return _ProbePlan({"unused": everything}, failure=ProbeFailure(error=str(error)))
        layers, width = self.model.config.encoder_layers + 1, self.model.config.d_model
        self.meters.probe = PhonemeProbe(layers, width, len(self.labels.classes))
        parts: dict[Part, list[int]] = {
            "train": [usable[i] for i in train],
            "test": [usable[i] for i in test],
            "unused": sorted(set(everything) - set(usable)),
        }
        return _ProbePlan({part: members for part, members in parts.items() if members}, disjoint_by)

    def update(self, utterances: Utterances, indices: Sequence[int], part: Part) -> None:
        """Runs one batch through the model and adds what it did."""
        model = self.model
        batch = {k: v.to(model.device) for k, v in self.collate([utterances.example(i) for i in indices]).items()}
        asked = {"output_attentions": True, "output_hidden_states": True, "output_boundaries": True}
        output = model(**batch, **asked, use_cache=False, return_dict=True)
        positions = model.position_mask(batch["attention_mask"])  # (B, S)
        tokens = batch["labels"] != IGNORED_LABEL  # (B, U)
        phonemes = None
        if self.labels is not None:
            phonemes = self.labels.at_positions(utterances, indices, positions.shape[1])
            phonemes = phonemes.masked_fill(~positions.cpu(), NO_CLASS)
        self.meters.update(output, tokens, positions, phonemes, part)

    def document(self, utterances: Utterances, plan: _ProbePlan, rule: RoleRule) -> AnalysisDocument:
        """What was measured."""
        meters, config = self.meters, self.model.config
        phonemes = probe = None
        if self.labels is not None and meters.phonemes is not None:
            phonemes = phoneme_measures(meters.phonemes, self.labels.source)
        if meters.probe is not None and plan.disjoint_by is not None:
            probe = probe_measures(meters.probe, plan.disjoint_by)
        return AnalysisDocument(
            checkpoint=config.name_or_path or None,
            data=None,
            model=AnalysedModel.of(config),
            utterances=len(utterances),
            audio_seconds=rounded(float(np.sum(utterances.rows["duration"]))),
            skipped=self.too_long | (self.labels.refused if self.labels is not None else {}),
            seconds_per_position=rounded(self.seconds_per_position),
            curve_r=[rounded(r) for r in torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64).tolist()],
            modules={name: module_measures(meters, self.model, name, rule) for name in meters.means.names()},
            role_rule=rule,
            agreement=head_agreement(meters.agreement),
            histogram=WeightHistograms(
                encoder=weight_histogram(meters.histograms["encoder"]),
                decoder=weight_histogram(meters.histograms["decoder"]),
            ),
            monotonic=monotonic_measures(meters.monotonic, self.seconds_per_position),
            phonemes=phonemes,
            probe=plan.failure or probe,
        )

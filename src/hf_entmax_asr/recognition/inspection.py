"""What the attention of a model does on a data set, as one JSON document: `analyze(model, processor, rows)`.

The document (version 1). Lists over heads are in the order of the heads; null is "not measured"; means are over
utterances where nothing else is said.

    version, checkpoint, data, model            what was analysed; `model` holds the fields of its configuration
    step                                        of training, where it was analysed during training
    utterances, audio_seconds, skipped          how many, how long, and {reason: [ids]} of those left out, with what was
                                                missing in brackets
    seconds_per_position                        duration of one encoder position
    curve_r                                     r of the curves D(r)
    modules: {name: ...}                        by module, such as encoder.layers.0.self_attn
        kind                                    "encoder", "decoder" (both self-attention), "cross" or "monotonic"
        layer, heads                            its number; how many heads
        zero_share, support_size                share of weights exactly 0; keys above 0 per query (means over queries)
        entropy_nats, verticality               see analysis.locality
        cad, relative_cad, distance_positions   self-attention only; mean |i−j|
        curve                                   self-attention only: D(r) of each head
        uniform                                 {measure: value} of uniform attention under the same masks
        alpha, gate                             where the module has them; alpha is that of the map it uses
        role                                    encoder: "linguistic", "phonetic", "neither" or null (see head_roles)
        same_phoneme_lift, same_place_lift      encoder, with phoneme labels
    role_rule                                   {diagonal_from, phonetic_from}
    agreement                                   of all encoder heads: heads [[module, head]], js_bits (a square); from
                                                at most 64 evenly spaced queries of each utterance
    histogram                                   {"encoder", "decoder"}: edges, counts, zeros, below, total of weights
    monotonic                                   null, or heads [[layer, head]] and the rest of MonotonicSummary, with
                                                lag_seconds and waiting_seconds (a square: row waits for column)
    phonemes                                    null, or source, classes, places (of each class), frames, pairs, and
                                                attention: {module: {mass, lift}}, a square for each head, query in rows
    probe                                       null, or error, or disjoint_by ("speaker" or "sentence"), accuracy (of
                                                the input of layer 0, then of each layer's output), majority_rate,
                                                train_frames, test_frames, classes
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_entmax_asr.analysis.locality import (
    CURVE_POINTS,
    AgreementMeter,
    MeanMeter,
    cross_attention_measures,
    self_attention_measures,
)
from hf_entmax_asr.analysis.monotonic_heads import MonotonicMeter
from hf_entmax_asr.analysis.phoneme_aligner import AlignmentError, PocketsphinxAligner
from hf_entmax_asr.analysis.phoneme_attention import PhonemeAttentionMeter, head_roles, relative_diagonality
from hf_entmax_asr.analysis.phonemes import (
    NO_CLASS,
    SILENCE,
    Interval,
    labels_at_positions,
    labels_of,
    phoneme,
    phoneme_classes,
    place_of,
)
from hf_entmax_asr.analysis.probe import PhonemeProbe, split_disjoint
from hf_entmax_asr.analysis.sparsity import ScoreHistogram, SparsityMeter
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.model.losses import IGNORED_LABEL
from hf_entmax_asr.recognition.batches import cut_batches
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.evaluation import decoding_as, is_monotonic
from hf_entmax_asr.recognition.utterances import DataError, Utterances, prepare_split, seconds_per_position

VERSION = 1
MODEL_FIELDS = (
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    *(f"{kind}_heads_per_layer" for kind in ("encoder", "decoder", "cross")),
    *(f"{side}_map_groups" for side in ("encoder", "decoder")),
    "d_model",
    "encoder_transform",
    "decoder_transform",
    "cross_attention",
    "cross_transform",
    "monotonic_chunk_size",
    "firing_rule",
)
ALIGNER_RATE = 16_000
LABEL_SLACK_SECONDS = 0.5  # labels may end so much after the audio

Labels = Mapping[str, Sequence[Interval]] | PocketsphinxAligner


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
) -> dict[str, Any]:
    """Every measure of `hf_entmax_asr.analysis` over a data set; see the top of this file for what comes back.

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
    """
    inspection = _Inspection(model, processor, labels)
    utterances = inspection.choose(prepare_split(rows, processor), max_seconds)
    parts, error = inspection.plan_probe(utterances)
    most_frames = max(frames_per_batch, int(utterances.frames.max()))
    was_training = model.training
    model.eval()
    try:
        with decoding_as(model, "hard" if is_monotonic(model) else None):
            for part, members in parts.items():
                by_length = sorted(members, key=lambda i: (-utterances.frames[i], i))
                for indices in cut_batches(by_length, utterances.frames, most_frames):
                    inspection.update(utterances, indices, part)
                    if progress is not None:
                        progress(len(indices))
    finally:
        model.train(was_training)
    return inspection.document(utterances, diagonal_from, phonetic_from, error)


@dataclass
class _Inspection:
    """The meters of one analysis."""

    model: Any
    processor: Any
    labels: Labels | None
    means: MeanMeter = field(default_factory=MeanMeter)
    sparsity: SparsityMeter = field(default_factory=SparsityMeter)
    agreement: AgreementMeter = field(default_factory=AgreementMeter)
    histograms: dict[str, ScoreHistogram] = field(default_factory=dict)
    monotonic: MonotonicMeter | None = None
    phonemes: PhonemeAttentionMeter | None = None
    probe: PhonemeProbe | None = None
    disjoint_by: str | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.collate = SpeechSeq2SeqCollator(self.processor)
        self.seconds_per_position = seconds_per_position(self.model, self.processor)
        self.kinds: dict[str, str] = {}
        self.classes: tuple[str, ...] = ()
        if self.labels is not None:
            found = None
            if isinstance(self.labels, Mapping):
                found = {phoneme(interval.label) for intervals in self.labels.values() for interval in intervals}
            self.classes = phoneme_classes(found)
            self.phonemes = PhonemeAttentionMeter(self.classes)

    def choose(self, utterances: Utterances, max_seconds: float) -> Utterances:
        """Those short enough.

        Raises:
            DataError: there are none.
        """
        durations = utterances.rows["duration"] if len(utterances) else []
        long = [i for i, seconds in enumerate(durations) if seconds > max_seconds]
        if long:
            self.skipped[f"longer than {max_seconds:g} s"] = [utterances.ids[i] for i in long]
        if len(long) == len(utterances):
            raise DataError(f"none of the {len(utterances)} utterances is at most {max_seconds:g} s long")
        return utterances.select(sorted(set(range(len(utterances))) - set(long))) if long else utterances

    def plan_probe(self, utterances: Utterances) -> tuple[dict[str, list[int]], str | None]:
        """Utterances by what the probe does with them, and why there is no probe."""
        everything = {"none": list(range(len(utterances)))}
        if self.labels is None:
            return everything, None
        usable = everything["none"]
        if isinstance(self.labels, Mapping):
            usable = [i for i in usable if labels_of(self.labels, utterances.ids[i]) is not None]
        speakers = list(utterances.rows["speaker"]) if "speaker" in utterances.rows.column_names else None
        try:
            train, test, self.disjoint_by = split_disjoint(
                [speakers[i] if speakers else None for i in usable], [utterances.texts[i] for i in usable]
            )
        except ValueError as error:
            return everything, str(error)
        layers, width = self.model.config.encoder_layers + 1, self.model.config.d_model
        self.probe = PhonemeProbe(layers, width, len(self.classes))
        rest = sorted(set(everything["none"]) - set(usable))
        parts = {"train": [usable[i] for i in train], "test": [usable[i] for i in test], "none": rest}
        return {part: members for part, members in parts.items() if members}, None

    def update(self, utterances: Utterances, indices: Sequence[int], part: str) -> None:
        """Runs one batch through the model and adds what it did."""
        model = self.model
        batch = {k: v.to(model.device) for k, v in self.collate([utterances.example(i) for i in indices]).items()}
        asked = {"output_attentions": True, "output_hidden_states": True, "output_boundaries": True}
        out = model(**batch, **asked, use_cache=False, return_dict=True)
        positions = model.position_mask(batch["attention_mask"])
        tokens = batch["labels"] != IGNORED_LABEL
        encoder = self._named("encoder", "self_attn", out.encoder_attentions)
        decoder = self._named("decoder", "self_attn", out.decoder_attentions)
        cross = self._named("decoder", "encoder_attn", out.cross_attentions)
        self._add("encoder", encoder, positions, positions)
        self._add("decoder", decoder, tokens, tokens, causal=True)
        self._add("cross", cross, tokens, positions)
        self.agreement.update(encoder, positions, positions)
        if out.boundaries:
            if self.monotonic is None:
                self.monotonic = self._monotonic_meter()
            self.monotonic.update(out.boundaries, tokens.sum(1), positions.sum(1))
        if self.phonemes is not None:
            classes = self._labels_of(utterances, indices, positions.shape[1]).masked_fill(~positions.cpu(), NO_CLASS)
            self.phonemes.update(encoder, classes, positions)
            if self.probe is not None and part != "none":
                spoken = classes
                if SILENCE in self.classes:  # to be told apart are phonemes
                    spoken = classes.masked_fill(classes == self.classes.index(SILENCE), NO_CLASS)
                (self.probe.train if part == "train" else self.probe.test)(out.encoder_hidden_states, spoken)

    def _named(self, side: str, module: str, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return {f"{side}.layers.{layer}.{module}": weights for layer, weights in enumerate(maps)}

    def _add(self, kind: str, maps: Mapping[str, Tensor], queries: Tensor, keys: Tensor, causal: bool = False) -> None:
        self.sparsity.update(maps, queries, keys, causal)
        for layer, (name, weights) in enumerate(maps.items()):
            self.kinds[name] = "monotonic" if kind == "cross" and self.model.config.is_monotonic(layer) else kind
            if kind == "cross":
                self.means.update(name, cross_attention_measures(weights, queries, keys))
                continue
            self.means.update(name, self_attention_measures(weights, queries, causal))
            self.histograms.setdefault(kind, ScoreHistogram()).update(weights, queries, keys, causal)

    def _monotonic_meter(self) -> MonotonicMeter:
        config, gates = self.model.config, self.model.gates()
        layers = [layer for layer in range(config.decoder_layers) if config.is_monotonic(layer)]
        ones = {f"decoder.layers.{layer}.encoder_attn": torch.ones(config.heads("cross", layer)) for layer in layers}
        active = [gates.get(name, heads).cpu() != 0 for name, heads in ones.items()]
        return MonotonicMeter(config.first_monotonic_layer, active if torch.cat(active).any() else None)

    def _labels_of(self, utterances: Utterances, indices: Sequence[int], positions: int) -> Tensor:
        """(B, positions) classes; utterances that cannot be labelled are −1 throughout, and counted."""
        result = torch.full((len(indices), positions), NO_CLASS)
        for row, index in enumerate(indices):
            intervals, reason = self._intervals(utterances, index)
            if reason is not None:
                reason, _, detail = reason.partition(": ")
                name = utterances.ids[index] + (f" ({detail})" if detail else "")
                self.skipped.setdefault(f"no phonemes: {reason}", []).append(name)
            else:
                result[row] = labels_at_positions(intervals, positions, self.seconds_per_position, self.classes)
        return result

    def _intervals(self, utterances: Utterances, index: int) -> tuple[Sequence[Interval], str | None]:
        """Phonemes of one utterance, or why there are none."""
        row = utterances.rows[index]
        if self.labels is None:
            return (), "none were asked for"
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

    def document(
        self, utterances: Utterances, diagonal_from: float, phonetic_from: float, probe_error: str | None
    ) -> dict[str, Any]:
        """What was measured, as plain lists and numbers."""
        rule = {"diagonal_from": diagonal_from, "phonetic_from": phonetic_from}
        histograms = {
            kind: {"edges": h.edges, "counts": h.counts, "zeros": h.zeros, "below": h.below, "total": h.total}
            for kind, h in self.histograms.items()
        }
        config = self.model.config
        document = {
            "version": VERSION,
            "checkpoint": config.name_or_path or None,
            "data": None,
            "model": {name: getattr(config, name) for name in MODEL_FIELDS},
            "utterances": len(utterances),
            "audio_seconds": float(np.sum(utterances.rows["duration"])),
            "skipped": self.skipped,
            "seconds_per_position": self.seconds_per_position,
            "curve_r": torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64),
            "modules": {name: self._module(name, rule) for name in self.means.names()},
            "role_rule": rule,
            "agreement": {"heads": self.agreement.heads, "js_bits": self.agreement.mean()},
            "histogram": histograms,
            "monotonic": self._monotonic(),
            "phonemes": self._phonemes(),
            "probe": self._probe(probe_error),
        }
        return plain(document)

    def _module(self, name: str, rule: Mapping[str, float]) -> dict[str, Any]:
        means, counts = self.means.mean(name), self.sparsity.counts[name]
        result: dict[str, Any] = {
            "kind": self.kinds[name],
            "layer": int(name.split(".")[2]),
            "heads": len(counts.zeros),
            "zero_share": counts.zero_share,
            "support_size": counts.support_size,
            "entropy_nats": means["entropy"],
            "verticality": means["verticality"],
            "uniform": {"entropy_nats": means["uniform_entropy"], "verticality": means["uniform_verticality"]},
        }
        lender, kind, layer = name, result["kind"], result["layer"]
        if kind in ("encoder", "decoder"):
            lender = f"{kind}.layers.{self.model.config.map_layer(kind, layer)}.self_attn"
        for field_name, owner, values in (("alpha", lender, self.model.alphas()), ("gate", name, self.model.gates())):
            if owner in values:
                result[field_name] = values[owner]
        if "cad" not in means:
            return result
        result |= {"cad": means["cad"], "distance_positions": means["distance"], "curve": means["curve"]}
        result["relative_cad"] = relative_diagonality(means["cad"], means["uniform_cad"])
        for measure, key in (("cad", "cad"), ("distance", "distance_positions"), ("curve", "curve")):
            result["uniform"][key] = means[f"uniform_{measure}"]
        if self.kinds[name] == "encoder":
            lift = None
            if self.phonemes is not None:
                sums = self.phonemes.sums[name]
                lift = sums.same_phoneme_lift()
                result |= {"same_phoneme_lift": lift, "same_place_lift": sums.same_place_lift()}
            result["role"] = head_roles(means["cad"], means["uniform_cad"], lift, **rule)
        return result

    def _monotonic(self) -> dict[str, Any] | None:
        if self.monotonic is None:
            return None
        summary = asdict(self.monotonic.summary())
        for name in ("lag", "waiting"):
            summary[f"{name}_seconds"] = summary.pop(name) * self.seconds_per_position
        return summary

    def _phonemes(self) -> dict[str, Any] | None:
        if self.phonemes is None:
            return None
        first = next(iter(self.phonemes.sums.values()))
        return {
            "source": "files" if isinstance(self.labels, Mapping) else "pocketsphinx",
            "classes": self.classes,
            "places": [place_of(name) for name in self.classes],
            "frames": first.frames,
            "pairs": first.pairs,
            "attention": {name: {"mass": s.mass, "lift": s.lift} for name, s in self.phonemes.sums.items()},
        }

    def _probe(self, error: str | None) -> dict[str, Any] | None:
        if error is not None:
            return {"error": error}
        if self.probe is None:
            return None
        return {"disjoint_by": self.disjoint_by, **asdict(self.probe.result())}


def save_analysis(document: Mapping[str, Any], path: Path) -> Path:
    """Writes a document as JSON, under a temporary name that is then renamed."""
    write_text_atomically(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def plain(value: Any) -> Any:
    """Tensors to lists, floats to six significant digits, NaN to None: what JSON can hold."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value

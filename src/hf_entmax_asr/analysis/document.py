"""The document of an analysis (version 1): what `hf_entmax_asr.recognition.analyze` returns and analysis.json holds.

Each field stands in the JSON under its own name, "version" beside them. Sequences over heads are in the order of the
heads; None (null) is "not measured"; means are over utterances where nothing else is said; floats have six significant
digits. A field marked LEFT_OUT is absent from the JSON where it is None.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hf_entmax_asr.analysis.document_checks import misfits
from hf_entmax_asr.analysis.phoneme_attention import Role
from hf_entmax_asr.analysis.typed_json import LEFT_OUT, MalformedError, from_json, to_json
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.input_files import read_text

VERSION = 1

Vector = Sequence[float | None]
Matrix = Sequence[Vector]


class DocumentError(ValueError):
    """A file that is no analysis; the message names it, the key, and what should stand there."""


@dataclass(frozen=True, kw_only=True)
class UniformMeasures:
    """What uniform attention scores under the same masks."""

    entropy_nats: float | None
    verticality: float | None


@dataclass(frozen=True, kw_only=True)
class UniformSelfMeasures(UniformMeasures):
    """The same of self-attention; `curve` is D(r) at `AnalysisDocument.curve_r`."""

    cad: float | None
    distance_positions: float | None
    curve: Vector


@dataclass(frozen=True, kw_only=True)
class AttentionMeasures:
    """One attention module. See analysis.sparsity and analysis.locality for the measures.

    Attributes:
        layer, heads: its number, counted from 0; how many heads.
        zero_share, support_size: of each head, share of the weights that are exactly 0; keys above 0 per query. Means
            over queries.
        entropy_nats, verticality: of each head.
        alpha: of each head, where α is learned; that of the map the module uses.
        gate: of each head, where the module has gates.
    """

    kind: str
    layer: int
    heads: int
    zero_share: Vector
    support_size: Vector
    entropy_nats: Vector
    verticality: Vector
    uniform: UniformMeasures
    alpha: Vector | None = field(default=None, metadata=LEFT_OUT)
    gate: Vector | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class SelfAttentionMeasures(AttentionMeasures):
    """Self-attention: how near each head looks.

    Attributes:
        cad, relative_cad: diagonality; relative to uniform attention (0) and the identity (1).
        distance_positions: mean |i − j|.
        curve: (heads, points) D(r) at `AnalysisDocument.curve_r`.
    """

    uniform: UniformSelfMeasures
    cad: Vector
    distance_positions: Vector
    curve: Matrix
    relative_cad: Vector


@dataclass(frozen=True, kw_only=True)
class EncoderMeasures(SelfAttentionMeasures):
    """Self-attention of an encoder layer; lifts over uniform attention with phoneme labels only. See `head_roles`."""

    kind: Literal["encoder"] = "encoder"
    same_phoneme_lift: Vector | None = field(default=None, metadata=LEFT_OUT)
    same_place_lift: Vector | None = field(default=None, metadata=LEFT_OUT)
    role: Sequence[Role | None]


@dataclass(frozen=True, kw_only=True)
class DecoderMeasures(SelfAttentionMeasures):
    """Self-attention of a decoder layer."""

    kind: Literal["decoder"] = "decoder"


@dataclass(frozen=True, kw_only=True)
class CrossMeasures(AttentionMeasures):
    """Cross-attention of a decoder layer, full or monotonic."""

    kind: Literal["cross", "monotonic"]


@dataclass(frozen=True, kw_only=True)
class AnalysedModel:
    """The part of the model's configuration that says what was analysed; the fields have its names."""

    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_heads_per_layer: Sequence[int] | None = None  # this and the next four: absent from the oldest documents
    decoder_heads_per_layer: Sequence[int] | None = None
    cross_heads_per_layer: Sequence[int] | None = None
    encoder_map_groups: Sequence[int] | None = None
    decoder_map_groups: Sequence[int] | None = None
    d_model: int
    encoder_transform: str
    decoder_transform: str
    cross_attention: str
    cross_transform: str
    monotonic_chunk_size: int | None
    firing_rule: str

    @classmethod
    def of(cls, config: Any) -> "AnalysedModel":
        """Out of an object that has these attributes, such as `EntmaxAsrConfig`."""
        return cls(**{each.name: getattr(config, each.name) for each in dataclasses.fields(cls)})


@dataclass(frozen=True, kw_only=True)
class RoleRule:
    """The thresholds of `head_roles`: relative CAD of a linguistic head, same-phoneme lift of a phonetic one."""

    diagonal_from: float
    phonetic_from: float


@dataclass(frozen=True, kw_only=True)
class HeadAgreement:
    """(N, N) Jensen-Shannon divergence between the N encoder heads (module, head); see `AgreementMeter`."""

    heads: Sequence[tuple[str, int]]
    js_bits: Matrix


@dataclass(frozen=True, kw_only=True)
class WeightHistogram:
    """How the weights of one side's self-attention are distributed; as in `ScoreHistogram`."""

    edges: Sequence[float]
    counts: Sequence[int]
    zeros: int
    below: int
    total: int


@dataclass(frozen=True, kw_only=True)
class WeightHistograms:
    """The two sides of a model."""

    encoder: WeightHistogram
    decoder: WeightHistogram


@dataclass(frozen=True, kw_only=True)
class MonotonicMeasures:
    """What the N monotonic heads (layer, head) did; as in `MonotonicSummary`, times in seconds.

    Attributes:
        waiting_seconds: (N, N); the head in the row waits for the head in the column.
    """

    heads: Sequence[tuple[int, int]]
    tokens: int
    utterances: int
    last_share: Vector
    coverage: Vector
    at_end_share: Vector
    order_violations: Sequence[int]
    lag_seconds: Vector
    waiting_seconds: Matrix


@dataclass(frozen=True, kw_only=True)
class PhonemeMaps:
    """Of each head of one module, (K, K) for K classes, with the query's class in the row; see `PhonemeAttention`."""

    mass: Sequence[Matrix]
    lift: Sequence[Matrix]


@dataclass(frozen=True, kw_only=True)
class PhonemeMeasures:
    """Which phonemes attend to which.

    Attributes:
        source: of the labels, "files" or "pocketsphinx".
        classes, places: K phonemes, and the place of articulation of each.
        frames: (K,) labelled encoder positions.
        pairs: (K, K) pairs of positions that were counted.
        attention: by module, such as encoder.layers.0.self_attn.
    """

    source: str
    classes: Sequence[str]
    places: Sequence[str]
    frames: Vector
    pairs: Matrix
    attention: Mapping[str, PhonemeMaps]


@dataclass(frozen=True, kw_only=True)
class ProbeMeasures:
    """How well a linear classifier names the phoneme of a frame; as in `ProbeResult`.

    Attributes:
        disjoint_by: what training and test do not share, "speaker" or "sentence".
        accuracy: of the input of layer 0, then of each layer's output.
    """

    disjoint_by: str
    accuracy: Vector
    majority_rate: float | None
    train_frames: int
    test_frames: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class ProbeFailure:
    """Why there is no probe though there are labels."""

    error: str


@dataclass(frozen=True, kw_only=True)
class AnalysisDocument:
    """Everything that one analysis measured.

    Attributes:
        checkpoint, data: what was analysed on what, where it was said.
        utterances, audio_seconds: how many, how long.
        skipped: {reason: ids} of utterances that were left out, what was missing in brackets.
        seconds_per_position: duration of one encoder position.
        curve_r: r of the curves D(r).
        modules: by name, such as encoder.layers.0.self_attn.
        agreement: of all encoder heads; from at most 64 evenly spaced queries of each utterance.
        monotonic: None without monotonic heads.
        phonemes, probe: None without phoneme labels.
        step: of training, where the model was analysed during training.
    """

    checkpoint: str | None
    data: str | None
    model: AnalysedModel
    utterances: int
    audio_seconds: float
    skipped: Mapping[str, Sequence[str]]
    seconds_per_position: float
    curve_r: Sequence[float]
    modules: Mapping[str, EncoderMeasures | DecoderMeasures | CrossMeasures]
    role_rule: RoleRule
    agreement: HeadAgreement
    histogram: WeightHistograms
    monotonic: MonotonicMeasures | None
    phonemes: PhonemeMeasures | None
    probe: ProbeMeasures | ProbeFailure | None
    step: int | None = field(default=None, metadata=LEFT_OUT)

    @property
    def encoder(self) -> list[EncoderMeasures]:
        """Self-attention of the encoder, by layer."""
        return sorted((m for m in self.modules.values() if isinstance(m, EncoderMeasures)), key=_layer)

    @property
    def decoder(self) -> list[DecoderMeasures]:
        """Self-attention of the decoder, by layer."""
        return sorted((m for m in self.modules.values() if isinstance(m, DecoderMeasures)), key=_layer)

    @property
    def cross(self) -> list[CrossMeasures]:
        """Cross-attention, full and monotonic, by layer."""
        return sorted((m for m in self.modules.values() if isinstance(m, CrossMeasures)), key=_layer)

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds: mappings, lists, numbers, strings and None."""
        return {"version": VERSION, **to_json(self)}

    @classmethod
    def from_dict(cls, value: object, source: str = "the analysis") -> "AnalysisDocument":
        """The reverse of `as_dict`; keys that no field has are passed over.

        Args:
            source: where it is from, for the messages.

        Raises:
            DocumentError: another version, a key that is missing, or a value of another type.
        """
        if not isinstance(value, Mapping):
            raise DocumentError(f"{source} is no analysis: it holds a {type(value).__name__}, not an object.")
        if (version := value.get("version")) != VERSION:
            raise DocumentError(
                f"{source} is no analysis of version {VERSION}: its version is {version!r}. Make it with "
                "scripts/analyze.py of this package."
            )
        try:
            document = from_json(cls, value)
        except (MalformedError, RecursionError) as error:
            raise DocumentError(f"{source} is no analysis that can be read: {error}") from None
        if (misfit := next(misfits(document), None)) is not None:
            raise DocumentError(f"{source} is no analysis that can be read: {misfit}")
        return document


def save_analysis(document: AnalysisDocument, path: Path) -> Path:
    """Write a document as JSON, under a temporary name that is then renamed; returns `path`."""
    write_text_atomically(path, json.dumps(document.as_dict(), ensure_ascii=False, allow_nan=False) + "\n")
    return path


def load_analysis(path: Path) -> AnalysisDocument:
    """The document in a file that `save_analysis` wrote.

    Raises:
        DocumentError: the file is missing, is no JSON or no analysis; see `AnalysisDocument.from_dict`.
    """
    try:
        value = json.loads(read_text(path), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise DocumentError(f"{path} is no analysis that can be read: {error}") from error
    return AnalysisDocument.from_dict(value, str(path))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")


def measured(value: float) -> float | None:
    """A number of a document: `rounded`, and None for NaN and ±∞, which JSON cannot hold."""
    return rounded(value) if math.isfinite(value) else None


def vector(values: Tensor) -> list[float | None]:
    """(N,) -> N numbers of a document."""
    return [measured(value) for value in values.tolist()]


def matrix(values: Tensor) -> list[list[float | None]]:
    """(N, M) -> N rows of numbers of a document."""
    return [vector(row) for row in values]


def tensor_of(values: Vector | Matrix) -> Tensor:
    """Numbers of a document -> float64, with NaN where nothing was measured."""

    def filled(value: Any) -> Any:
        if isinstance(value, Sequence):
            return [filled(item) for item in value]
        return math.nan if value is None else value

    return torch.tensor(filled(values), dtype=torch.float64)


def _layer(module: AttentionMeasures) -> int:
    return module.layer

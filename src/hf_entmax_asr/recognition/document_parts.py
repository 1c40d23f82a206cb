"""The parts of an analysis document, out of the meters that measured them."""

from typing import Any, TypedDict

from hf_entmax_asr.analysis.document import (
    CrossMeasures,
    DecoderMeasures,
    EncoderMeasures,
    HeadAgreement,
    MonotonicMeasures,
    PhonemeMaps,
    PhonemeMeasures,
    ProbeMeasures,
    RoleRule,
    UniformMeasures,
    UniformSelfMeasures,
    Vector,
    WeightHistogram,
    matrix,
    measured,
    rounded,
    vector,
)
from hf_entmax_asr.analysis.locality import AgreementMeter
from hf_entmax_asr.analysis.monotonic_heads import MonotonicMeter
from hf_entmax_asr.analysis.phoneme_attention import PhonemeAttentionMeter, head_roles, relative_diagonality
from hf_entmax_asr.analysis.phonemes import place_of
from hf_entmax_asr.analysis.probe import PhonemeProbe
from hf_entmax_asr.analysis.sparsity import ScoreHistogram
from hf_entmax_asr.recognition.attention_meters import AttentionMeters


class _OfEveryModule(TypedDict):
    layer: int
    heads: int
    zero_share: Vector
    support_size: Vector
    entropy_nats: Vector
    verticality: Vector
    alpha: Vector | None
    gate: Vector | None


class _OfSelfAttention(TypedDict):
    cad: Vector
    distance_positions: Vector
    curve: list[list[float | None]]
    relative_cad: Vector
    uniform: UniformSelfMeasures


def module_measures(
    meters: AttentionMeters, model: Any, name: str, rule: RoleRule
) -> EncoderMeasures | DecoderMeasures | CrossMeasures:
    """One attention module; α and gates are the model's."""
    kind = meters.kinds[name]
    shared = _of_every_module(meters, model, name)
    if kind == "cross" or kind == "monotonic":
        means = meters.means.mean(name)
        entropy, verticality = (measured(means[f"uniform_{measure}"].item()) for measure in ("entropy", "verticality"))
        uniform = UniformMeasures(entropy_nats=entropy, verticality=verticality)
        return CrossMeasures(kind=kind, uniform=uniform, **shared)
    near = _of_self_attention(meters, name)
    if kind == "decoder":
        return DecoderMeasures(**shared, **near)
    means = meters.means.mean(name)
    sums = None if meters.phonemes is None else meters.phonemes.sums[name]
    same_phoneme = None if sums is None else sums.same_phoneme_lift()
    same_place = None if sums is None else sums.same_place_lift()
    return EncoderMeasures(
        **shared,
        **near,
        same_phoneme_lift=None if same_phoneme is None else vector(same_phoneme),
        same_place_lift=None if same_place is None else vector(same_place),
        role=head_roles(
            means["cad"],
            means["uniform_cad"],
            same_phoneme,
            diagonal_from=rule.diagonal_from,
            phonetic_from=rule.phonetic_from,
        ),
    )


def _of_every_module(meters: AttentionMeters, model: Any, name: str) -> _OfEveryModule:
    means, counts, kind = meters.means.mean(name), meters.sparsity.counts[name], meters.kinds[name]
    layer = int(name.split(".")[2])
    lender = name  # of the map that the module uses
    if kind in ("encoder", "decoder"):
        lender = f"{kind}.layers.{model.config.map_layer(kind, layer)}.self_attn"
    alphas, gates = model.alphas(), model.gates()
    return {
        "layer": layer,
        "heads": len(counts.zeros),
        "zero_share": vector(counts.zero_share),
        "support_size": vector(counts.support_size),
        "entropy_nats": vector(means["entropy"]),
        "verticality": vector(means["verticality"]),
        "alpha": vector(alphas[lender]) if lender in alphas else None,
        "gate": vector(gates[name]) if name in gates else None,
    }


def _of_self_attention(meters: AttentionMeters, name: str) -> _OfSelfAttention:
    means = meters.means.mean(name)
    return {
        "cad": vector(means["cad"]),
        "distance_positions": vector(means["distance"]),
        "curve": matrix(means["curve"]),
        "relative_cad": vector(relative_diagonality(means["cad"], means["uniform_cad"])),
        "uniform": UniformSelfMeasures(
            entropy_nats=measured(means["uniform_entropy"].item()),
            verticality=measured(means["uniform_verticality"].item()),
            cad=measured(means["uniform_cad"].item()),
            distance_positions=measured(means["uniform_distance"].item()),
            curve=vector(means["uniform_curve"]),
        ),
    }


def head_agreement(meter: AgreementMeter) -> HeadAgreement:
    """Between all heads that the meter saw."""
    return HeadAgreement(heads=list(meter.heads), js_bits=matrix(meter.mean()))


def weight_histogram(histogram: ScoreHistogram) -> WeightHistogram:
    """The same numbers, as lists."""
    return WeightHistogram(
        edges=[rounded(edge) for edge in histogram.edges.tolist()],
        counts=histogram.counts.tolist(),
        zeros=histogram.zeros,
        below=histogram.below,
        total=histogram.total,
    )


def monotonic_measures(meter: MonotonicMeter | None, seconds_per_position: float) -> MonotonicMeasures | None:
    """With positions turned into seconds; None without a meter."""
    if meter is None:
        return None
    summary = meter.summary()
    return MonotonicMeasures(
        heads=list(summary.heads),
        tokens=summary.tokens,
        utterances=summary.utterances,
        last_share=vector(summary.last_share),
        coverage=vector(summary.coverage),
        at_end_share=vector(summary.at_end_share),
        order_violations=summary.order_violations.tolist(),
        lag_seconds=vector(summary.lag * seconds_per_position),
        waiting_seconds=matrix(summary.waiting * seconds_per_position),
    )


def phoneme_measures(meter: PhonemeAttentionMeter, source: str) -> PhonemeMeasures:
    """Frames and pairs are those of the first module, and the same in all."""
    first = next(iter(meter.sums.values()))
    attention = {
        name: PhonemeMaps(mass=[matrix(head) for head in sums.mass], lift=[matrix(head) for head in sums.lift])
        for name, sums in meter.sums.items()
    }
    return PhonemeMeasures(
        source=source,
        classes=list(meter.classes),
        places=[place_of(name) for name in meter.classes],
        frames=vector(first.frames),
        pairs=matrix(first.pairs),
        attention=attention,
    )


def probe_measures(probe: PhonemeProbe, disjoint_by: str) -> ProbeMeasures:
    """What the probe found."""
    result = probe.result()
    return ProbeMeasures(
        disjoint_by=disjoint_by,
        accuracy=vector(result.accuracy),
        majority_rate=measured(result.majority_rate),
        train_frames=result.train_frames,
        test_frames=result.test_frames,
        classes=result.classes,
    )

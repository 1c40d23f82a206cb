"""What an analysis says, in sentences with their numbers."""

from collections.abc import Callable

from hf_entmax_asr.analysis.document import (
    AnalysisDocument,
    EncoderMeasures,
    HeadAgreement,
    MonotonicMeasures,
    ProbeFailure,
    ProbeMeasures,
    RoleRule,
    Vector,
)


def findings(document: AnalysisDocument) -> list[str]:
    """A few sentences, plain text, in the order of the report."""
    encoder = document.encoder
    sentences = [_roles(encoder, document.role_rule), _sparsity(encoder)]
    return [*sentences, *_agreement(document.agreement), *_probe(document.probe), *_monotonic(document.monotonic)]


def _roles(encoder: list[EncoderMeasures], rule: RoleRule) -> str:
    """Whether low layers are phonetic and high ones linguistic."""
    layers: dict[str | None, list[int]] = {}
    for module in encoder:
        for role in module.role:
            layers.setdefault(role, []).append(module.layer)
    total = sum(module.heads for module in encoder)
    linguistic, phonetic = layers.get("linguistic", []), layers.get("phonetic", [])
    counts = f"Roles: {len(linguistic)} of {total} encoder heads are linguistic (diagonal){_where(linguistic)}"
    if None in layers:
        return f"{counts}; for the others, phoneme labels are needed to tell."
    lifts = [value for module in encoder for value in module.same_phoneme_lift or () if value is not None]
    if not lifts:
        return f"{counts}."  # every head is diagonal, and of phonemes nothing is known
    counts += f", {len(phonetic)} phonetic{_where(phonetic)}"
    if phonetic and linguistic and _average(phonetic) < _average(linguistic):
        verdict = "The expected pattern, phonetic below and linguistic above, is there"
    elif not linguistic:
        best = max((v for module in encoder for v in module.relative_cad if v is not None), default=float("nan"))
        verdict = (
            f"The expected pattern, phonetic below and linguistic above, is not there: no head is diagonal (highest "
            f"relative CAD {best:.2f}, the rule asks for {rule.diagonal_from:g})"
        )
    elif not phonetic:
        verdict = (
            f"The expected pattern, phonetic below and linguistic above, is not there: no head finds equal phonemes "
            f"(highest lift {max(lifts):.1f}, the rule asks for {rule.phonetic_from:g})"
        )
    else:
        verdict = "The expected pattern is not there: phonetic heads lie no lower than linguistic ones"
    return f"{counts}. {verdict}."


def _sparsity(encoder: list[EncoderMeasures]) -> str:
    zeros = _ranked(encoder, lambda module: module.zero_share)
    (most, where), (least, elsewhere) = zeros[-1], zeros[0]
    text = "Zeros: no weight of an encoder head is exactly 0"
    if most > 0:
        share = f"between {least:.0%} ({elsewhere}) and {most:.0%} ({where})"
        text = f"Zeros: {share} of an encoder head's weights are exactly 0"
    if all(module.alpha is not None for module in encoder):
        alphas = _ranked(encoder, lambda module: module.alpha or ())
        text += f"; α runs from {alphas[0][0]:.2f} ({alphas[0][1]}) to {alphas[-1][0]:.2f} ({alphas[-1][1]})"
    return f"{text}."


def _agreement(agreement: HeadAgreement) -> list[str]:
    heads, size = agreement.heads, len(agreement.heads)
    upper = ((agreement.js_bits[i][j], i, j) for i in range(size) for j in range(i + 1, size))
    pairs = [(bits, i, j) for bits, i, j in upper if bits is not None]
    if not pairs:
        return []
    nearest, i, j = min(pairs)
    names = [f"layer {heads[n][0].split('.')[2]} head {heads[n][1]}" for n in (i, j)]
    average = sum(pair[0] for pair in pairs) / len(pairs)
    return [
        f"Agreement: two encoder heads differ by {average:.2f} bits on average (0 the same, 1 nothing in common); the "
        f"two most alike are {names[0]} and {names[1]} ({nearest:.2f} bits)."
    ]


def _probe(probe: ProbeMeasures | ProbeFailure | None) -> list[str]:
    if probe is None:
        return []
    if isinstance(probe, ProbeFailure):
        return [f"Probe: none; {probe.error}"]
    known = [(value, layer) for layer, value in enumerate(probe.accuracy) if value is not None]
    if not known:
        return ["Probe: no labelled frame was left to test on."]
    best, layer = max(known)
    where = "the input of layer 0" if layer == 0 else f"layer {layer - 1}"
    return [
        f"Probe: phonemes are told apart best after {where}: {best:.0%} of {probe.test_frames:,} frames of "
        f"{probe.disjoint_by}s that it did not learn from, against {probe.accuracy[0]:.0%} before the first "
        f"layer and {probe.majority_rate:.0%} for always naming the most frequent one."
    ]


def _monotonic(monotonic: MonotonicMeasures | None) -> list[str]:
    if monotonic is None:
        return []
    last = max(range(len(monotonic.heads)), key=lambda n: monotonic.last_share[n] or 0)
    layer, head = monotonic.heads[last]
    steps = sum(monotonic.order_violations)
    order = "no head ever stepped to the left" if steps == 0 else f"{steps} steps went to the left, which is an error"
    return [
        f"Monotonic heads: {order}; the most waited for is layer {layer} head {head}, the last to stop for "
        f"{monotonic.last_share[last]:.0%} of the tokens and {monotonic.lag_seconds[last]:.2f} s behind the "
        "first one on average."
    ]


def _where(layers: list[int]) -> str:
    if not layers:
        return ""
    found = sorted(set(layers))
    return f" (layer{'s' if len(found) > 1 else ''} {', '.join(map(str, found))})"


def _average(layers: list[int]) -> float:
    return sum(layers) / len(layers)


def _ranked(encoder: list[EncoderMeasures], measure: Callable[[EncoderMeasures], Vector]) -> list[tuple[float, str]]:
    """(value, head) of all heads, smallest first."""
    return sorted(
        (value, f"layer {module.layer} head {head}")
        for module in encoder
        for head, value in enumerate(measure(module))
        if value is not None
    )

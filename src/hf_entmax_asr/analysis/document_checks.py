"""Whether the parts of an analysis fit together: a file can be damaged and still have every key and type."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

_MODULE = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(self_attn|encoder_attn)")
_OF_EACH_HEAD = (
    *("zero_share", "support_size", "entropy_nats", "verticality", "alpha", "gate", "cad", "relative_cad"),
    *("distance_positions", "curve", "same_phoneme_lift", "same_place_lift", "role"),
)


def misfits(document: Any) -> Iterator[str]:
    """What does not fit in an `AnalysisDocument`, in words."""
    if not document.seconds_per_position > 0:
        yield f"seconds_per_position is {document.seconds_per_position}, and must be above 0"
    for name, value in (("utterances", document.utterances), ("audio_seconds", document.audio_seconds)):
        if value < 0:
            yield f"{name} is {value}, and must be at least 0"
    for name, module in document.modules.items():
        yield from _module_misfits(name, module, len(document.curve_r))
    agreement = document.agreement
    yield from _not_square("agreement.js_bits", agreement.js_bits, len(agreement.heads))
    for name, head in agreement.heads:
        if name not in document.modules or not 0 <= head < document.modules[name].heads:
            yield f"agreement.heads names head {head} of {name}, which is no head of the modules"
    if (monotonic := document.monotonic) is not None:
        count = len(monotonic.heads)
        yield from _not_square("monotonic.waiting_seconds", monotonic.waiting_seconds, count)
        for name in ("last_share", "coverage", "at_end_share", "order_violations", "lag_seconds"):
            if len(getattr(monotonic, name)) != count:
                yield f"monotonic.{name} has {len(getattr(monotonic, name))} numbers for {count} heads"
    if (phonemes := document.phonemes) is not None:
        count = len(phonemes.classes)
        for name in ("places", "frames"):
            if len(getattr(phonemes, name)) != count:
                yield f"phonemes.{name} has {len(getattr(phonemes, name))} entries for {count} classes"
        yield from _not_square("phonemes.pairs", phonemes.pairs, count)
        for module, maps in phonemes.attention.items():
            for kind in ("mass", "lift"):
                for head, matrix in enumerate(getattr(maps, kind)):
                    yield from _not_square(f"phonemes.attention.{module}.{kind}[{head}]", matrix, count)


def _module_misfits(name: str, module: Any, points: int) -> Iterator[str]:
    match = _MODULE.fullmatch(name)
    if match is None or int(match[2]) != module.layer:
        yield f"modules.{name} is of layer {module.layer}, and no name of an attention module of that layer"
    for measure in _OF_EACH_HEAD:
        values = getattr(module, measure, None)
        if values is not None and len(values) != module.heads:
            yield f"modules.{name}.{measure} has {len(values)} entries for {module.heads} heads"
        if measure == "curve" and values is not None and any(len(row) != points for row in values):
            yield f"modules.{name}.curve has rows that are not of the {points} points of curve_r"


def _not_square(name: str, matrix: Sequence[Sequence[Any]], size: int) -> Iterator[str]:
    if len(matrix) != size or any(len(row) != size for row in matrix):
        yield f"{name} is not of {size} rows and columns"

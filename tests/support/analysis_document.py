"""An analysis as `hf_entmax_asr.recognition.analyze` makes it, with values that are chosen, not measured.

Tests that change it change its JSON and read it with `AnalysisDocument.from_dict`.
"""

from typing import Any

import torch

from hf_entmax_asr.analysis import AnalysisDocument, phoneme_classes, place_of

CLASSES = tuple(name for name in phoneme_classes() if place_of(name) in ("labial", "velar", "front vowel", "silence"))


def document(layers: int = 3, heads: int = 2, monotonic: bool = True, labels: bool = True) -> AnalysisDocument:
    """See `document_json`."""
    return AnalysisDocument.from_dict(document_json(layers, heads, monotonic, labels))


def document_json(layers: int = 3, heads: int = 2, monotonic: bool = True, labels: bool = True) -> dict[str, Any]:
    """Heads grow more diagonal and less phonetic from layer to layer; every head of layer 0 is phonetic."""
    generator = torch.Generator().manual_seed(0)

    def values(*size: int) -> list:
        return torch.rand(*size, generator=generator, dtype=torch.float64).tolist()

    modules = {}
    for layer in range(layers):
        relative = layer / max(1, layers - 1) * 0.9
        modules[f"encoder.layers.{layer}.self_attn"] = {
            **self_attention("encoder", layer, heads, values),
            "cad": [0.7 + 0.3 * relative] * heads,
            "relative_cad": [relative] * heads,
            "role": ["linguistic" if relative >= 0.5 else "phonetic" if labels else None] * heads,
        }
        if labels:
            lifts = {"same_phoneme_lift": [4.0 - layer] * heads, "same_place_lift": [1.5] * heads}
            modules[f"encoder.layers.{layer}.self_attn"] |= lifts
    kind = "monotonic" if monotonic else "cross"
    modules["decoder.layers.0.self_attn"] = self_attention("decoder", 0, heads, values)
    modules["decoder.layers.0.encoder_attn"] = {**common(kind, 0, heads, values), "gate": [1.0] * heads}
    names = [[f"encoder.layers.{layer}.self_attn", head] for layer in range(layers) for head in range(heads)]
    divergence = torch.rand(len(names), len(names), generator=generator, dtype=torch.float64)
    divergence = (divergence + divergence.T) / 2 * (1 - torch.eye(len(names)))
    histogram = {"edges": torch.logspace(-6, 0, 31).double().tolist(), "counts": [1] * 30}
    return {
        "version": 1,
        "checkpoint": "runs/<best>",
        "data": "corpus, test",
        "model": {
            f"{side}_{key}": value
            for side, count in (("encoder", layers), ("decoder", 1))
            for key, value in (("layers", count), ("attention_heads", heads), ("transform", "entmax"))
        }
        | {"cross_attention": "monotonic" if monotonic else "full", "cross_transform": "softmax", "d_model": 16}
        | {"monotonic_chunk_size": 1, "firing_rule": "threshold"},
        "utterances": 5,
        "audio_seconds": 12.0,
        "skipped": {"longer than 30 s": ["a & b"]},
        "seconds_per_position": 0.04,
        "curve_r": [k / 100 for k in range(101)],
        "modules": modules,
        "role_rule": {"diagonal_from": 0.5, "phonetic_from": 1.5},
        "agreement": {"heads": names, "js_bits": divergence.tolist()},
        "histogram": {side: {**histogram, "zeros": 60, "below": 10, "total": 100} for side in ("encoder", "decoder")},
        "monotonic": waiting(heads) if monotonic else None,
        "phonemes": phonemes(layers, heads, values) if labels else None,
        "probe": {
            "disjoint_by": "speaker",
            "accuracy": [0.5 + 0.1 * layer for layer in range(layers + 1)],
            "majority_rate": 0.1,
            "train_frames": 2000,
            "test_frames": 1000,
            "classes": len(CLASSES) - 1,
        }
        if labels
        else None,
    }


def common(kind: str, layer: int, heads: int, values) -> dict[str, Any]:
    return {
        "kind": kind,
        "layer": layer,
        "heads": heads,
        "zero_share": values(heads),
        "support_size": values(heads),
        "entropy_nats": values(heads),
        "verticality": values(heads),
        "alpha": [1.25] * heads,
        "uniform": {"entropy_nats": 4.0, "verticality": 0.0},
    }


def self_attention(kind: str, layer: int, heads: int, values) -> dict[str, Any]:
    curve = [k / 100 for k in range(101)]
    one = common(kind, layer, heads, values)
    one["uniform"] |= {"cad": 0.7, "distance_positions": 10.0, "curve": curve}
    return one | {
        "cad": [0.7] * heads,
        "relative_cad": [0.0] * heads,
        "distance_positions": [10.0] * heads,
        "curve": [curve] * heads,
    }


def waiting(heads: int) -> dict[str, Any]:
    return {
        "heads": [[0, head] for head in range(heads)],
        "tokens": 50,
        "utterances": 5,
        "lag_seconds": [0.1 * head for head in range(heads)],
        "last_share": [2 * (head + 1) / heads / (heads + 1) for head in range(heads)],
        "coverage": [0.9] * heads,
        "at_end_share": [0.0] * heads,
        "order_violations": [0] * heads,
        "waiting_seconds": [[max(0, b - a) / 10 for b in range(heads)] for a in range(heads)],
    }


def phonemes(layers: int, heads: int, values) -> dict[str, Any]:
    size = len(CLASSES)
    lift = [[[None if q == 1 else 2 * value for q, value in enumerate(row)] for row in values(size, size)]] * heads
    attention = {f"encoder.layers.{layer}.self_attn": {"lift": lift, "mass": lift} for layer in range(layers)}
    return {
        "source": "files",
        "classes": list(CLASSES),
        "places": [place_of(name) for name in CLASSES],
        "frames": [0 if k == 2 else 40 for k in range(size)],
        "pairs": [[10 if q == 3 else 100 for q in range(size)] for _ in range(size)],
        "attention": attention,
    }

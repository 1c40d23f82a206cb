"""The model card of a run: a template filled with what the run knows, so that no figure in it is typed by hand."""

import itertools
import math
import re
import string
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_entmax_asr.analysis.document import AnalysisDocument
from hf_entmax_asr.metrics import Scores
from hf_entmax_asr.model.configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from hf_entmax_asr.recognition.attention_section import attention_text
from hf_entmax_asr.training.recipe import Recipe, recipe_to_dict
from hf_entmax_asr.training.training_state import TrainingState

_PAPER = (
    'Zhao et al., "Adaptive Sparse and Monotonic Attention for Transformer-based Automatic Speech Recognition"\n'
    "(arXiv 2209.15176)"
)
_RECOGNISER = (
    "A speech recogniser with adaptively sparse (α-entmax) self-attention and monotonic multi-head cross-attention, "
    f"after\n{_PAPER}."
)
_COMPARED = f"One of the systems to compare with that of\n{_PAPER}, trained as that is."
_SAYS_NOTHING = ("run", "output", "best", "last", "checkpoint")


@dataclass(frozen=True)
class DataFacts:
    """What a card says about the data: utterances and hours by split."""

    train_utterances: int
    train_hours: float
    validation_utterances: int


def model_card(
    template: str,
    name: str,
    recipe: Recipe,
    model: Any,
    state: TrainingState,
    scores: dict[str, Scores],
    data: DataFacts,
    analysis: AnalysisDocument | None = None,
) -> str:
    """Fill `template` ($name placeholders, see model_cards/template.md).

    Args:
        analysis: the newest one of the run (see run_analysis), if there is one.

    Raises:
        ValueError: the template has a placeholder that no run can fill.
    """
    settings = recipe_to_dict(recipe)
    settings["data"]["path"] = Path(recipe.data.path or "").name or None  # where it lies is nobody else's business
    title = recipe.card.title or name
    compared = isinstance(model.config, EntmaxAsrBaselineConfig)
    tags = [
        "automatic-speech-recognition",
        "entmax_asr",
        *([] if compared else ["sparse-attention", "monotonic-attention"]),
    ]
    values = {
        "summary": _COMPARED if compared else _RECOGNISER,
        "metadata": yaml.safe_dump(_metadata(title, recipe, scores, tags), sort_keys=False, allow_unicode=True).strip(),
        "licence": (
            f"The weights are under the licence {recipe.card.license}."
            if recipe.card.license
            else "No licence of the data or of these weights was stated."
        ),
        "model_name": title,
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
        "architecture": _architecture(model.config),
        "results": _results(scores, data.validation_utterances),
        "attention": "It is not measured for such a system." if compared else attention_text(analysis),
        "alphas": _heads(model.alphas(), "α"),
        "gates": _heads(model.gates(), "gate"),
        "train_utterances": f"{data.train_utterances:,}",
        "train_hours": f"{data.train_hours:.2f}",
        "steps": f"{state.step:,}",
        "minutes": f"{state.elapsed_seconds / 60:.1f}",
        "recipe": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).strip(),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("hf_entmax_asr", "torch", "transformers")),
    }
    try:
        return string.Template(template).substitute(values)
    except (KeyError, ValueError) as error:
        raise ValueError(f"the model card template has a placeholder that cannot be filled: {error}") from error


def card_title(output: Path) -> str:
    """A name for what is trained in a folder: its own, or that of the folder above where its own says nothing."""
    folder = output.resolve()
    return folder.parent.name if folder.name in _SAYS_NOTHING and folder.parent.name else folder.name


def _metadata(title: str, recipe: Recipe, scores: dict[str, Scores], tags: list[str]) -> dict[str, Any]:
    """The card's head, as the Hub reads it."""
    section, data = recipe.card, Path(recipe.data.path or "").name or "unknown"
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": tags,
        "metrics": ["wer", "cer"],
    }
    if section.languages:
        metadata["language"] = list(section.languages)
    if section.license:
        metadata["license"] = section.license
    if section.datasets:
        metadata["datasets"] = list(section.datasets)
    if base := _base_model(recipe.start_from):
        metadata["base_model"] = base
    if scores:
        name = section.datasets[0] if section.datasets else data
        metrics = [
            {"type": kind, "value": round(100 * counts.rate, 2), "name": f"{kind.upper()}, {decoding} decoding"}
            for decoding, result in scores.items()
            for kind, counts in (("wer", result.words), ("cer", result.characters))
            if math.isfinite(counts.rate)
        ]
        task = {"type": "automatic-speech-recognition", "name": "Speech recognition"}
        dataset = {"type": name, "name": data, "split": recipe.data.validation_split}
        metadata["model-index"] = [{"name": title, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return metadata


def _base_model(start: str | None) -> str | None:
    """The Hub's name of what the training started from: the repository itself, or what the folder's own card names."""
    if start is None or not Path(start).is_dir():
        return start
    head = re.match(r"---\n(.*?)\n---", _text_of(Path(start) / "README.md"), re.DOTALL)
    named = re.search(r"^base_model: *(\S+/\S+)$", head[1], re.MULTILINE) if head else None
    return named[1] if named else None


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _architecture(config: Any) -> str:
    if isinstance(config, EntmaxAsrBaselineConfig):
        head = f"{config.head} head" + (f", predictor {config.predictor}" if config.head == "transducer" else "")
        return f"a system to compare with: {config.encoder_type} encoder of width {config.d_model}, {head}"
    cross = "full cross-attention"
    if config.cross_attention == "monotonic":
        chunk = config.monotonic_chunk_size
        width = {1: "hard, one position per head", None: "infinite lookback"}.get(chunk, f"chunks of {chunk} positions")
        cross = f"monotonic cross-attention ({width}), decoded {config.monotonic_decoding}"
    return (
        f"{config.encoder_layers} encoder and {config.decoder_layers} decoder blocks, width {config.d_model}, "
        f"{_head_counts(config)}; self-attention weights by {config.encoder_transform} in the encoder and "
        f"{config.decoder_transform} in the decoder{_shared_maps(config)}; {cross}"
    )


def _head_counts(config: Any) -> str:
    """Heads of encoder and decoder, layer by layer where some were removed."""
    kinds = {"encoder": "encoder self-attention", "decoder": "decoder self-attention", "cross": "cross-attention"}
    if all(getattr(config, f"{kind}_heads_per_layer") is None for kind in kinds):
        return f"{config.encoder_attention_heads} + {config.decoder_attention_heads} heads"
    layers = {"encoder": config.encoder_layers, "decoder": config.decoder_layers, "cross": config.decoder_layers}
    counts = {kind: [config.heads(kind, layer) for layer in range(layers[kind])] for kind in kinds}
    named = [f"{' '.join(map(str, counts[kind]))} in {name}" for kind, name in kinds.items()]
    return f"heads by layer: {', '.join(named)}"


def _shared_maps(config: Any) -> str:
    """Which layers share an attention map, counted from 0 as everywhere; nothing where none do."""
    shared = []
    for side in ("encoder", "decoder"):
        borders = [0, *itertools.accumulate(getattr(config, f"{side}_map_groups") or ())]
        groups = [(first, end - 1) for first, end in itertools.pairwise(borders) if end - first > 1]
        shared += [f"by {side} layers {first} to {last}" for first, last in groups]
    return f", one map shared {', one '.join(shared)}" if shared else ""


def _results(scores: dict[str, Scores], utterances: int) -> str:
    if not scores:
        return "This checkpoint was not evaluated."
    lines = ["| decoding | WER % | CER % | insertions | deletions | substitutions | words |", "|" + "---|" * 7]
    for decoding, result in scores.items():
        words = result.words
        lines.append(
            f"| {decoding} | {100 * words.rate:.2f} | {100 * result.characters.rate:.2f} | {words.insertions} | "
            f"{words.deletions} | {words.substitutions} | {words.reference_length} |"
        )
    return "\n".join(lines) + f"\n\nOn the validation split ({utterances} utterances), texts compared as they are."


def _heads(modules: dict[str, torch.Tensor], name: str) -> str:
    if not modules:
        return f"No learned {name}."
    lines = [f"| layer | {name} of each head |", "|---|---|"]
    lines += [f"| {module} | {' '.join(f'{v:.2f}' for v in values.tolist())} |" for module, values in modules.items()]
    return "\n".join(lines)

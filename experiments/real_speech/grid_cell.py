"""One cell of the grid: train by scripts/train.py, recognise the test split, count zeros. What is done is kept."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiments.real_speech.grid_options import CROSS_ATTENTIONS, ROOT, TRANSFORMS

from hf_entmax_asr.analysis.sparsity import SparsityMeter
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.metrics import Scores
from hf_entmax_asr.model.losses import IGNORED_LABEL
from hf_entmax_asr.recognition import SpeechSeq2SeqCollator, decoding_as, recognise
from hf_entmax_asr.recognition.batches import cut_batches
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.evaluation import is_monotonic
from hf_entmax_asr.recognition.utterances import Utterances, cache_features, prepare_split
from hf_entmax_asr.training.preparation import load_rows
from hf_entmax_asr.training.recipe import Recipe, recipe_to_dict
from hf_entmax_asr.training.training_state import read_training_state

RESULT = "cell.json"
FRAMES_EXAMINED = 4000  # padded frames of a batch whose attention maps are kept
WAYS = {"full": ("full",), "monotonic": ("hard", "soft")}  # of decoding, by cross-attention


class CellError(RuntimeError):
    """A cell that cannot be run; the message says what to do."""


@dataclass(frozen=True)
class Cell:
    """A place in the grid."""

    transform: str
    cross_attention: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.transform}-{self.cross_attention}-seed{self.seed}"

    def overrides(self) -> list[str]:
        """What sets this cell apart, as scripts/train.py takes it."""
        transform, temperature = TRANSFORMS[self.transform]
        # The regularizer is one of monotonic heads; a configuration that has none refuses it.
        without_monotonic_heads = ["model.head_regularizer=none"] if self.cross_attention == "full" else []
        return [
            f"model.encoder_transform={transform}",
            f"model.decoder_transform={transform}",
            f"model.softmax_temperature={temperature}",
            f"model.cross_attention={self.cross_attention}",
            f"seed={self.seed}",
            *without_monotonic_heads,
        ]


@dataclass(frozen=True)
class Plan:
    """What all cells have in common.

    Attributes:
        recipe: the recipe file; overrides: for it, the budget and the data among them.
        output: folder of the grid.
        test_split: what is recognised at the end, with `num_beams`.
        threads: of a cell.
    """

    recipe: Path
    overrides: tuple[str, ...]
    output: Path
    test_split: str
    num_beams: int
    threads: int


def finished_cells(output: Path) -> dict[Cell, dict[str, Any]]:
    """The results of the cells in a grid's folder that have them, in the order of the table."""
    found = {}
    for file in output.glob(f"*/{RESULT}"):
        result = json.loads(file.read_text(encoding="utf-8"))
        found[Cell(result["transform"], result["cross_attention"], result["seed"])] = result
    order = list(TRANSFORMS), CROSS_ATTENTIONS
    return dict(
        sorted(
            found.items(),
            key=lambda item: (order[0].index(item[0].transform), order[1].index(item[0].cross_attention), item[0].seed),
        )
    )


def run_cell(cell: Cell, recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Train and measure a cell, from where an earlier call left it.

    Args:
        recipe: as `plan` and the cell's own overrides make it.

    Raises:
        CellError: the cell was begun with other settings, or its training failed.
        KeyboardInterrupt: the user stopped it; training has saved a checkpoint.
    """
    folder = plan.output / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"recipe": recipe_to_dict(recipe), "test_split": plan.test_split, "num_beams": plan.num_beams}
    same_settings(folder / "settings.json", settings)
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    cpu_minutes = train_run(folder, plan.recipe, [*plan.overrides, *cell.overrides()], plan.threads)
    torch.set_num_threads(plan.threads)
    state = read_training_state(folder / "run" / "last")
    result = dataclasses.asdict(cell) | {
        "steps": state.step,
        "minutes": round(state.elapsed_seconds / 60, 2),
        "cpu_minutes": cpu_minutes,
        "threads": plan.threads,
    }
    result |= measure(folder / "run" / "best", folder, recipe, plan)
    write_text_atomically(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def same_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Keeps what a folder was begun with; CellError if it was something else."""
    text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    if not file.is_file():
        write_text_atomically(file, text)
    elif file.read_text(encoding="utf-8") != text:
        raise CellError(
            f"{file.parent} was begun with other settings (see {file.name} there): ask for the same data, recipe, "
            "budget and test split again, or name another --output"
        )


def train_run(folder: Path, recipe: Path, overrides: Sequence[str], threads: int) -> float | None:
    """Train by scripts/train.py to the end of the budget, in FOLDER/run with FOLDER/log.txt, from where it was stopped.

    Returns:
        CPU-minutes, or None where an earlier session did a part.

    Raises:
        CellError: training failed; the message has what train.py said.
        KeyboardInterrupt: the user stopped it; a checkpoint is saved.
    """
    run = folder / "run"
    resume = (run / "last").exists()
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--recipe", str(recipe), "--output", str(run)]
    command += [*(["--resume"] if resume else []), "--set", *overrides]
    log = folder / "log.txt"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("ab") as file:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        # In a session of its own, so that Ctrl-C reaches it once, from here.
        training = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            status = training.wait()
        except KeyboardInterrupt:
            training.send_signal(signal.SIGINT)
            training.wait()
            raise
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    if status or not lines[-1].startswith("finished"):
        said = max((number for number, line in enumerate(lines) if line.startswith("train.py: ")), default=-1)
        raise CellError(f"training of {folder.name} ended with status {status}: {' '.join(lines[said:])} (see {log})")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return None if resume else round(used / 60, 2)


def measure(checkpoint: Path, folder: Path, recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Recognise the test split in each way of decoding, and look at the heads."""
    model, processor = load_recogniser(str(checkpoint))
    utterances = split_utterances(recipe, processor, plan.test_split)
    scores = recognise_ways(model, processor, utterances, folder, recipe.evaluation.frames_per_batch, plan.num_beams)
    heads = examine(model, utterances, SpeechSeq2SeqCollator(processor))
    return {"parameters": model.num_parameters(), "scores": scores, "heads": heads}


def split_utterances(recipe: Recipe, processor: Any, split: str) -> Utterances:
    """A split of the recipe's data, with its features in memory where the recipe has room for them."""
    data = dataclasses.replace(recipe.data, train_split=split, validation_split=None)
    rows = load_rows(dataclasses.replace(recipe, data=data))["train"]
    utterances = prepare_split(rows, processor, recipe.data.lower_case)
    cache_features(utterances, processor.feature_extractor, recipe.data.feature_cache_megabytes)
    return utterances


def recognise_ways(
    model: Any, processor: Any, utterances: Utterances, folder: Path, frames_per_batch: int, num_beams: int = 1
) -> dict[str, dict[str, float]]:
    """Scores in each way of decoding ("hard" and "soft", or "full").

    Writes one file of hypotheses a way to `folder`, as scripts/compare.py takes it.
    """
    scores = {}
    for way in WAYS["monotonic" if is_monotonic(model) else "full"]:
        with decoding_as(model, None if way == "full" else way):
            texts = recognised(model, processor, utterances, num_beams, frames_per_batch)
        scores[way] = Scores.of(utterances.texts, texts).as_dict()
        _write_hypotheses(folder / f"{way}.jsonl", utterances, texts)
    return scores


def recognised(
    model: Any, processor: Any, utterances: Utterances, num_beams: int = 1, frames_per_batch: int = 16000
) -> list[str]:
    """The texts of a split, in its order."""
    collate = SpeechSeq2SeqCollator(processor)
    return recognise(
        model,
        processor.tokenizer,
        utterances.frames,
        lambda indices: collate([utterances.example(i) for i in indices]),
        frames_per_batch=frames_per_batch,
        num_beams=num_beams,
    )


def _write_hypotheses(file: Path, utterances: Utterances, texts: Sequence[str]) -> None:
    rows = zip(utterances.ids, utterances.texts, texts, strict=True)
    records = ({"id": i, "reference": reference, "hypothesis": text} for i, reference, text in rows)
    write_text_atomically(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


@torch.no_grad()
def examine(model: Any, utterances: Utterances, collate: SpeechSeq2SeqCollator) -> dict[str, dict[str, list[float]]]:
    """α and share of exact zeros of each self-attention head, by module; the decoder reads the references."""
    meter = SparsityMeter()
    most_frames = max(FRAMES_EXAMINED, int(utterances.frames.max()))
    for indices in cut_batches(utterances.frames.argsort(kind="stable").tolist(), utterances.frames, most_frames):
        batch = {
            name: value.to(model.device) for name, value in collate([utterances.example(i) for i in indices]).items()
        }
        out = model(**batch, output_attentions=True)
        source = model.position_mask(batch["attention_mask"])
        prompt = len(model.config.decoder_prompt_ids)
        target = torch.nn.functional.pad(batch["labels"].ne(IGNORED_LABEL), (prompt, 0), value=True)
        for layer, weights in enumerate(out.encoder_attentions):
            meter.update({f"encoder.layers.{layer}.self_attn": weights}, source, source)
        for layer, weights in enumerate(out.decoder_attentions):
            meter.update({f"decoder.layers.{layer}.self_attn": weights}, target, target, causal=True)
    alphas = model.alphas()
    return {
        name: {
            "alpha": [round(alpha, 4) for alpha in alphas[name].tolist()] if name in alphas else [],
            "zero_share": [round(share, 4) for share in counts.zero_share.tolist()],
        }
        for name, counts in meter.counts.items()
    }

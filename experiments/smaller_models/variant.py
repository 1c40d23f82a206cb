"""One variant of study.py: cut out of the checkpoint, scored, trained further, timed. What is done is kept."""

import argparse
import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import compare, machine
from experiments.map_reuse import AFTER, BEFORE, runs
from experiments.real_speech.grid_cell import CellError, recognise_ways, split_utterances, train_run
from experiments.smaller_models.table import AS_CUT, GATES, RESULT, TIMING, TRAINED, UNPRUNED
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_entmax_asr.atomic_files import atomic_folder, write_text_atomically
from hf_entmax_asr.model.losses import IGNORED_LABEL
from hf_entmax_asr.model.monotonic import MonotonicAttention
from hf_entmax_asr.recognition import SpeechSeq2SeqCollator, decoding_as, remove_heads, share_maps
from hf_entmax_asr.recognition.batches import cut_batches
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.surgery import Removed, attention_modules
from hf_entmax_asr.recognition.utterances import Utterances, seconds_per_position
from hf_entmax_asr.training import Recipe, load_recipe

RATE_SHARE = 0.25  # of the recipe's peak learning rate, about what is left of it when the recipes begin to cool down
SAME = 1e-5  # how much logits may differ where nothing should, relative to the largest if that is above 1
BATCH, FRAMES, TOKENS = 8, 1000, 60  # of the timing, as in map_reuse.py


@dataclass(frozen=True)
class Variant:
    """What is done to the checkpoint: heads to remove by module, or groups of encoder layers that share a map."""

    kind: str
    count: int = 0
    removed: Removed = field(default_factory=dict)
    groups: tuple[int, ...] = ()
    head_order: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind if self.kind in (UNPRUNED, GATES) else f"{self.kind}-{self.count}"

    def cut(self, model: Any) -> Any:
        """A copy of the model."""
        if self.groups:
            return share_maps(model, encoder_groups=self.groups, head_order=self.head_order)
        return remove_heads(model, {name: sorted(heads) for name, heads in self.removed.items()})


@dataclass
class Study:
    """What all variants have in common.

    Attributes:
        model, processor: of the checkpoint.
        recipe, overrides: of the further training, but for where it starts.
        validation_split: for the analysis.
    """

    arguments: argparse.Namespace
    model: Any
    processor: Any
    recipe: Recipe
    overrides: list[str]
    validation_split: str | None

    @classmethod
    def begin(cls, arguments: argparse.Namespace) -> "Study":
        """Reads the recipe and the checkpoint."""
        data = f"data.path={Path(arguments.data).absolute()}"
        first = load_recipe(arguments.recipe, [data, f"schedule.max_steps={arguments.steps}", *arguments.set])
        overrides = [data, *further_training(first, arguments.steps), *arguments.set, "data.validation_split=null"]
        recipe = load_recipe(arguments.recipe, overrides)
        model, processor = load_recogniser(arguments.checkpoint, "cpu")
        return cls(arguments, model, processor, recipe, overrides, first.data.validation_split)

    @property
    def output(self) -> Path:
        return self.arguments.output

    @property
    def checkpoint(self) -> str:
        """Its name; of a link such as `best` that which it leads to today."""
        given = self.arguments.checkpoint
        return str(Path(given).resolve()) if Path(given).is_dir() else given

    @cached_property
    def utterances(self) -> Utterances:
        """The test split."""
        return split_utterances(self.recipe, self.processor, self.arguments.test_split)


def further_training(recipe: Recipe, steps: int) -> list[str]:
    """What differs from the recipe of the first training; see the top of this file."""
    straight_through = 1.0 if recipe.schedule.straight_through_fraction > 0 else 0.0
    return [
        *("model={}", "features={}", "tokenizer={}"),  # those of the checkpoint hold
        f"optimizer.peak_learning_rate={recipe.optimizer.peak_learning_rate * RATE_SHARE:g}",
        "optimizer.ema_decay=null",  # over so few steps, a running mean is mostly the start
        f"schedule.warmup_steps={max(1, steps // 10)}",
        *(f"schedule.max_steps={steps}", "schedule.max_minutes=null"),
        f"schedule.straight_through_fraction={straight_through}",
        "schedule.cooldown_fraction=0.5",
        "batching.short_first_epochs=0",
        *(f"evaluation.{key}=null" for key in ("every_steps", "every_minutes", "save_every_steps")),
        *("evaluation.average=none", "evaluation.tensorboard=false"),
    ]


def monotonic_modules(model: Any) -> list[Any]:
    return [module for module in attention_modules(model).values() if isinstance(module, MonotonicAttention)]


def run_variant(variant: Variant, study: Study) -> dict[str, Any]:
    """Cut, score, train further, score; what an earlier call did is not done again."""
    folder = (study.output / variant.name).resolve()
    if (folder / RESULT).is_file():
        return read(folder / RESULT)
    start = folder / "start"
    smaller = variant.cut(study.model)
    if variant.kind == GATES:
        check_same(study, smaller)
    if not start.exists():
        with atomic_folder(start) as partial:
            smaller.save_pretrained(partial)
            study.processor.save_pretrained(partial)
    result = {
        "kind": variant.kind,
        "count": variant.count,
        "removed": {name: sorted(heads) for name, heads in variant.removed.items()},
        "heads": sum(module.num_heads for module in attention_modules(study.model).values()),
        "maps": list(variant.groups),
        "parameters": smaller.num_parameters(),
        "megabytes": round((start / SAFE_WEIGHTS_NAME).stat().st_size / 1e6, 3),
        AS_CUT: scored(folder / AS_CUT, start, study),
    }
    if variant.kind != GATES:
        train_run(folder, study.arguments.recipe, [*study.overrides, f"start_from={start}"], study.arguments.threads)
        result[TRAINED] = scored(folder / TRAINED, folder / "run" / "last", study)
    write(folder / RESULT, result)
    return result


def scored(folder: Path, checkpoint: Path, study: Study) -> dict[str, Any]:
    """Scores of a checkpoint on the test split, by decoding, and when its heads stop; kept."""
    file = folder / "scores.json"
    if not file.is_file():
        model, _ = load_recogniser(str(checkpoint))
        frames = study.recipe.evaluation.frames_per_batch
        scores = recognise_ways(model, study.processor, study.utterances, folder, frames)
        write(file, {"scores": scores, "last_stop_seconds": last_stop_seconds(model, study)})
    return read(file)


@torch.no_grad()
def last_stop_seconds(model: Any, study: Study) -> float | None:
    """How far into an utterance the last monotonic head stops for a token, mean over the tokens of the references.

    The texts are the same for all variants, so a difference between two is a difference in waiting. None where there
    are no monotonic heads, or none that decoding waits for.
    """
    active = torch.cat([torch.zeros(0, dtype=torch.bool), *(m.active_heads().cpu() for m in monotonic_modules(model))])
    if not active.any():
        return None
    utterances, collate = study.utterances, SpeechSeq2SeqCollator(study.processor)
    most_frames = max(study.recipe.evaluation.frames_per_batch, int(utterances.frames.max()))
    positions = tokens = 0.0
    with decoding_as(model, "hard"):
        for indices in cut_batches(utterances.frames.argsort(kind="stable").tolist(), utterances.frames, most_frames):
            examples = collate([utterances.example(i) for i in indices])
            batch = {name: value.to(model.device) for name, value in examples.items()}
            stops = torch.cat(list(model(**batch, output_boundaries=True, use_cache=False).boundaries), 1)  # (B, N, U)
            real = batch["labels"] != IGNORED_LABEL
            positions += stops[:, active].amax(1)[real].sum().item()
            tokens += real.sum().item()
    return round(positions / tokens * seconds_per_position(model, study.processor), 4)


@torch.no_grad()
def check_same(study: Study, smaller: Any) -> None:
    """Refuses a model whose outputs on a batch of the test split are not those of the checkpoint."""
    examples = [study.utterances.example(i) for i in range(min(BATCH, len(study.utterances)))]
    batch = SpeechSeq2SeqCollator(study.processor)(examples)
    before, after = (model.eval()(**batch, use_cache=False).logits for model in (study.model, smaller))
    difference, largest = (before - after).abs().max().item(), before.abs().max().item()
    say(f"without the heads whose gate is 0 logits differ by at most {difference:.2g} (the largest is {largest:.3g})")
    if difference > SAME * max(1.0, largest):
        raise CellError(f"without the heads whose gate is 0 logits differ by {difference:.2g}, more than {SAME:g}")


def time_variant(variant: Variant, study: Study) -> None:
    """Encoder, greedy decoding and training step against the checkpoint, on speech of the test split; kept."""
    folder = study.output / variant.name
    if (folder / TIMING).is_file():
        return
    finished = folder / "run" / "last"
    smaller = finished if variant.kind != GATES else folder / "start"
    models = {BEFORE: load_recogniser(study.arguments.checkpoint, "cpu")[0]}
    models[AFTER] = load_recogniser(str(smaller), "cpu")[0]
    torch.set_num_threads(study.arguments.threads)
    described = machine()
    programs = runs(models, BATCH, FRAMES, TOKENS, speech(study))
    seconds = {task: compare(both, study.arguments.timing_rounds, warm_up=1) for task, both in programs.items()}
    write(folder / TIMING, {"machine": described, "rounds": study.arguments.timing_rounds, "seconds": seconds})


def speech(study: Study) -> torch.Tensor:
    """Features (BATCH, FRAMES, F) of the test split's utterances, one behind the other."""
    collate, parts = SpeechSeq2SeqCollator(study.processor), []
    for index in cycle(range(len(study.utterances))):
        parts.append(collate([study.utterances.example(index)])["input_features"][0])
        if sum(map(len, parts)) >= BATCH * FRAMES:
            break
    return torch.cat(parts)[: BATCH * FRAMES].unflatten(0, (BATCH, FRAMES))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, values: dict[str, Any]) -> None:
    write_text_atomically(file, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

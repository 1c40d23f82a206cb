"""One cell of the tables: a system trained by scripts/train.py, its test splits recognised. What is done is kept."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiments.real_speech.grid_cell import RESULT, Plan, recognise_ways, same_settings, split_utterances, train_run
from experiments.tables.systems import SYSTEMS

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.recognition import load_recogniser
from hf_entmax_asr.recognition.utterances import Utterances
from hf_entmax_asr.training import load_recipe, read_history
from hf_entmax_asr.training.recipe import Recipe, recipe_to_dict
from hf_entmax_asr.training.reporting import HISTORY
from hf_entmax_asr.training.training_state import read_training_state

TRAINED = "trained.json"  # says that training came to its end


@dataclass(frozen=True)
class Cell:
    """A system, trained once. Tables share cells: what is a row of two is trained once."""

    system: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.system}-seed{self.seed}"

    def overrides(self, size: str) -> list[str]:
        """What sets this cell apart, as scripts/train.py takes it."""
        return [f"model={json.dumps(SYSTEMS[self.system].model(size))}", f"seed={self.seed}"]


@dataclass(frozen=True)
class TablePlan(Plan):
    """As of the grid; `test_split` may name several, with + between, and all systems are of one `size`."""

    size: str = "small"

    @property
    def test_splits(self) -> list[str]:
        return self.test_split.split("+")

    def recipe_of(self, cell: Cell) -> Recipe:
        return load_recipe(self.recipe, [*self.overrides, *cell.overrides(self.size)])


def run_cell(cell: Cell, plan: TablePlan) -> dict[str, Any]:
    """Train and measure a cell, from where an earlier call left it.

    Raises:
        CellError: the cell was begun with other settings, or its training failed.
        KeyboardInterrupt: the user stopped it; training has saved a checkpoint.
    """
    folder = plan.output / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    recipe = plan.recipe_of(cell)
    settings = {"recipe": recipe_to_dict(recipe), "test_split": plan.test_split, "num_beams": plan.num_beams}
    same_settings(folder / "settings.json", settings)
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if not (folder / TRAINED).is_file():
        cpu_minutes = train_run(folder, plan.recipe, [*plan.overrides, *cell.overrides(plan.size)], plan.threads)
        write_text_atomically(folder / TRAINED, json.dumps({"cpu_minutes": cpu_minutes}) + "\n")
    torch.set_num_threads(plan.threads)
    state = read_training_state(folder / "run" / "last")
    result = dataclasses.asdict(cell) | {
        "size": plan.size,
        "steps": state.step,
        "minutes": round(state.elapsed_seconds / 60, 2),
        **json.loads((folder / TRAINED).read_text(encoding="utf-8")),
        **measure(folder, recipe, plan),
    }
    write_text_atomically(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def measure(folder: Path, recipe: Recipe, plan: TablePlan) -> dict[str, Any]:
    """Parameters, speed of training and recognition, and scores of each test split in each way of decoding."""
    best = folder / "run" / "best"  # there is none without a validation split
    model, processor = load_recogniser(str(best if best.exists() else folder / "run" / "last"), any_system=True)
    seconds_per_frame = processor.feature_extractor.seconds_per_frame
    history = read_history(folder / "run" / HISTORY)
    speeds = [row["frames_per_second"] for row in history if "frames_per_second" in row]
    scores, factors = {}, {}
    for split in plan.test_splits:
        utterances = split_utterances(recipe, processor, split)
        (folder / split).mkdir(exist_ok=True)
        began = time.process_time()
        scores[split] = recognise_ways(
            model, processor, utterances, folder / split, recipe.evaluation.frames_per_batch, plan.num_beams
        )
        spent = (time.process_time() - began) / len(scores[split])
        factors[split] = round(spent / (_frames(utterances) * seconds_per_frame), 5)
    return {
        "parameters": model.num_parameters(),
        "trained_seconds_per_second": round(sum(speeds) / len(speeds) * seconds_per_frame, 1) if speeds else None,
        "scores": scores,
        "real_time_factor": factors,
    }


def _frames(utterances: Utterances) -> int:
    return int(utterances.frames.sum())

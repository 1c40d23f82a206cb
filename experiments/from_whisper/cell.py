"""One cell of the study: convert, calibrate, train by scripts/train.py, recognise the test split, look at the stops."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiments.from_whisper.arms import READINGS, REFERENCE_WINDOWS
from experiments.from_whisper.delays import stops_behind_words
from experiments.real_speech.grid_cell import (
    RESULT,
    CellError,
    examine,
    recognise_ways,
    same_settings,
    split_utterances,
    train_run,
)

from hf_entmax_asr.analysis.phonemes import Interval, ctm_lines, read_ctm
from hf_entmax_asr.atomic_files import atomic_folder, write_text_atomically
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.pretrained import convert_whisper, sparsify
from hf_entmax_asr.recognition import SpeechSeq2SeqCollator, load_recogniser
from hf_entmax_asr.recognition.utterances import prepare_split, read_split
from hf_entmax_asr.recognition.word_alignment import align_words
from hf_entmax_asr.training.recipe import Recipe, load_recipe, recipe_to_dict
from hf_entmax_asr.training.training_state import read_training_state

RECIPE = Path(__file__).resolve().parents[2] / "scripts" / "recipes" / "whisper_finetune.yaml"
TRAINED = "trained.json"  # says that training came to its end
CALIBRATION_CLIPS = 4

WITHOUT_STOPS = (
    "model.head_regularizer=none",
    "model.head_regularizer_layers=[]",
    "optimizer.rate_factors={}",
    "data.word_times=null",
)


@dataclass(frozen=True)
class Cell:
    """A place in the study; `data` is "first" or "both"."""

    transform: str
    reading: str
    seed: int
    data: str = "first"

    @property
    def name(self) -> str:
        return f"{self.transform}-{self.reading}{'-both' * (self.data == 'both')}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What all cells have in common.

    Attributes:
        whisper: a Whisper of transformers' format, a folder or a Hub name.
        data: folder of the corpus; both: of the joined one, or None.
        output: folder of the study.
        steps: of training; overrides: for the recipe.
        words: CTM file of the test split by a forced aligner, for the delays; None measures none.
        threads: of a cell.
    """

    whisper: str
    data: Path
    both: Path | None
    output: Path
    steps: int
    overrides: tuple[str, ...]
    words: Path | None
    test_split: str
    threads: int


def start_of(cell: Cell, plan: Plan) -> Path:
    """The checkpoint that a cell starts from: converted, calibrated if α-entmax, windows as long as the audio."""
    folder = plan.output / "starts" / f"{cell.transform}-{cell.reading}"
    if folder.is_dir():
        return folder
    model, processor = convert_whisper(plan.whisper, min_seconds=0.0, **READINGS[cell.reading])
    if cell.transform == "entmax":
        rows = read_split(str(plan.data), "train")
        clips = prepare_split(rows.select(evenly_spaced(len(rows), CALIBRATION_CLIPS)), processor, True)
        collate = SpeechSeq2SeqCollator(processor)
        kinds = ("encoder", "decoder", "cross") if cell.reading == "full" else ("encoder", "decoder")
        batches = [collate([clips.example(i)]) for i in range(len(clips))]
        model, _ = sparsify(model, batches, kinds=kinds)
    with atomic_folder(folder) as written:
        model.save_pretrained(written)
        processor.save_pretrained(written)
    return folder


def data_of(cell: Cell, plan: Plan) -> Path:
    """The corpus that a cell trains on."""
    data = plan.data if cell.data == "first" else plan.both
    if data is None:
        raise CellError(f"{cell.name} trains on two corpora: name the second with --second-data")
    return data


def word_times_of(cell: Cell, plan: Plan) -> Path:
    """The words of a cell's training split by the cross-attention of the converted Whisper."""
    file = plan.output / "starts" / f"words{'-both' * (cell.data == 'both')}.ctm"
    if not file.is_file():
        model, processor = load_recogniser(str(start_of(Cell("softmax", "full", 0), plan)))
        rows = read_split(str(data_of(cell, plan)), "train", lower_case=True)
        utterances = prepare_split(rows, processor, True)
        aligned = align_words(model, processor, utterances)
        write_text_atomically(file, "".join(line for name, words in aligned for line in ctm_lines(name, words)))
    return file


def overrides_of(cell: Cell, plan: Plan) -> list[str]:
    """What sets a cell's recipe apart, as scripts/train.py takes it."""
    settings = [
        f"data.path={data_of(cell, plan).absolute()}",
        f"start_from={start_of(cell, plan).absolute()}",
        f"seed={cell.seed}",
        f"schedule.max_steps={plan.steps}",
        "schedule.straight_through_fraction=0.3",  # heads stop at 0.5 here
    ]
    if cell.reading == "full":
        return [*settings, *WITHOUT_STOPS, *plan.overrides]
    return [
        *settings,
        "model.head_regularizer=reference",
        "model.head_regularizer_weight=0.0002",  # a position, head and layer
        f"data.word_times={word_times_of(cell, plan).absolute()}",
        f"model.reference_window={REFERENCE_WINDOWS[cell.reading]}",
        *plan.overrides,
    ]


def run_cell(cell: Cell, plan: Plan) -> dict[str, Any]:
    """Train and measure a cell, from where an earlier call left it.

    Raises:
        CellError: the cell was begun with other settings, or its training failed.
        KeyboardInterrupt: the user stopped it; training has saved a checkpoint.
    """
    folder = plan.output / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    overrides = overrides_of(cell, plan)
    recipe = load_recipe(RECIPE, overrides)
    same_settings(folder / "settings.json", {"recipe": recipe_to_dict(recipe), "test_split": plan.test_split})
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if not (folder / TRAINED).is_file():
        cpu_minutes = train_run(folder, RECIPE, overrides, plan.threads)
        write_text_atomically(folder / TRAINED, json.dumps({"cpu_minutes": cpu_minutes}) + "\n")
    torch.set_num_threads(plan.threads)
    state = read_training_state(folder / "run" / "last")
    result = dataclasses.asdict(cell) | {
        "steps": state.step,
        "minutes": round(state.elapsed_seconds / 60, 2),
        **json.loads((folder / TRAINED).read_text(encoding="utf-8")),
        **measure(folder / "run" / "best", folder, recipe, plan),
    }
    write_text_atomically(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def measure(checkpoint: Path, folder: Path, recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Recognise the test split in each way of decoding; look at the heads, and at the stops of monotonic ones."""
    model, processor = load_recogniser(str(checkpoint))
    data = dataclasses.replace(recipe.data, path=str(plan.data))
    utterances = split_utterances(dataclasses.replace(recipe, data=data), processor, plan.test_split)
    began = time.process_time()
    scores = recognise_ways(model, processor, utterances, folder, recipe.evaluation.frames_per_batch)
    seconds = (time.process_time() - began) / len(scores) / len(utterances)
    found = {
        "parameters": model.num_parameters(),
        "scores": scores,
        "cpu_seconds_per_utterance": round(seconds, 4),
        "heads": examine(model, utterances, SpeechSeq2SeqCollator(processor)),
    }
    if plan.words is not None and model.config.cross_attention == "monotonic":
        words: dict[str, list[Interval]] = read_ctm(plan.words)
        found["stops"] = stops_behind_words(model, processor, utterances, words)
    return found

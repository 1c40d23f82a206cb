"""The analysis of a model while it is trained, on a few utterances, every so many steps; and a page of it at the end.

FOLDER/step-00001000.json      the document of `hf_entmax_asr.recognition.analyze` after so many steps
FOLDER/index.html              a page of the last one, with what changed over training; its numbers: analysis.json
"""

import dataclasses
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_entmax_asr.analysis.document import AnalysisDocument, load_analysis, save_analysis
from hf_entmax_asr.analysis.report import write_report
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.recognition.inspection import analyze
from hf_entmax_asr.recognition.phoneme_labels import Labels
from hf_entmax_asr.recognition.utterances import DataError

logger = logging.getLogger(__name__)

MAX_SECONDS = 30.0  # maps grow with the square of the length


class AnalysisCallback(TrainerCallback):
    """Analyses the model every `every_steps` steps and after the last one, and writes the page when training ends.

    For transformers' Trainer; another training loop calls `write` and `write_page` itself. Weights and random state of
    training are left as they were; each analysis is one pass over `max_utterances`. When training begins, files of
    later steps than the one it begins at are removed from the folder: they are of another run.
    """

    def __init__(
        self,
        processor: Any,
        rows: Any,
        folder: str | Path,
        every_steps: int = 1000,
        max_utterances: int = 16,
        labels: Labels | None = None,
        name: str | None = None,
        data: str | None = None,
    ) -> None:
        """
        Args:
            rows: held-out data set, as `load_folder` gives it; `max_utterances` of it, evenly spaced, are used.
            labels: as for `analyze`.
            name, data: of the run and of the rows, for the documents; by default the model's name, and none.

        Raises:
            ValueError: a number below 1, or no utterances of at most 30 s.
        """
        if every_steps < 1 or max_utterances < 1:
            raise ValueError(f"every_steps = {every_steps} and max_utterances = {max_utterances} must be at least 1.")
        if len(rows) == 0:
            raise DataError("there are no utterances to analyse.")
        short = [i for i, seconds in enumerate(rows["duration"]) if seconds <= MAX_SECONDS]
        if not short:
            raise DataError(f"none of the {len(rows)} utterances to analyse is at most {MAX_SECONDS:g} s long.")
        self.processor, self.labels = processor, labels
        self.rows = rows.select([short[i] for i in evenly_spaced(len(short), max_utterances)])
        self.folder, self.every_steps = Path(folder), every_steps
        self.name, self.data = name, data

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer before the first step.

        Raises:
            ValueError: the weights are shared out between processes, so that no process could analyse the model.
        """
        shared = any(isinstance(parameter, DTensor) for parameter in kwargs["model"].parameters())
        if shared or args.fsdp or is_deepspeed_zero3_enabled():
            raise ValueError(
                "AnalysisCallback needs whole weights in one process; FSDP and DeepSpeed ZeRO-3 share them out. Leave "
                "it out, or train with scripts/train.py and evaluation.analyze_every_steps, which gathers them."
            )
        if state.is_world_process_zero:
            drop_analyses_after(self.folder, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after each step; one process of several writes."""
        due = state.global_step % self.every_steps == 0 or state.global_step >= state.max_steps
        if state.is_world_process_zero and due:
            self.write(kwargs["model"], state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after the last step."""
        if state.is_world_process_zero:
            write_page(self.folder)

    def write(self, model: Any, step: int) -> Path:
        """Analyse the model as it is after `step` steps; returns the file."""
        with torch.random.fork_rng(devices=[]):
            document = analyze(getattr(model, "module", model), self.processor, self.rows, labels=self.labels)
        checkpoint = document.checkpoint if self.name is None else f"{self.name} after {step:,} steps"
        document = dataclasses.replace(document, step=step, data=self.data, checkpoint=checkpoint)
        return save_analysis(document, self.folder / f"step-{step:08d}.json")


def analysis_files(folder: Path) -> dict[int, Path]:
    """Analyses by the step after which they were made, first to last."""
    files = {path.stem.removeprefix("step-"): path for path in folder.glob("step-*.json")}
    return dict(sorted((int(step), path) for step, path in files.items() if step.isdigit()))


def newest_analysis(folder: Path) -> AnalysisDocument | None:
    """The last of them, None where there is none."""
    files = list(analysis_files(folder).values())
    return load_analysis(files[-1]) if files else None


def drop_analyses_after(folder: Path, step: int) -> None:
    """Remove what a run wrote beyond `step`, from where it goes on now: analyses, and the page made of them."""
    for made_after, path in analysis_files(folder).items():
        if made_after > step:
            path.unlink()
    numbers = folder / "analysis.json"
    if numbers.is_file() and (load_analysis(numbers).step or 0) > step:  # one without a step is not of a run
        for path in (numbers, folder / "index.html", *folder.glob("*.png")):
            path.unlink(missing_ok=True)


def write_page(folder: Path, history: Sequence[Mapping[str, Any]] | None = None) -> Path | None:
    """Write `analysis.json` and `index.html` of the newest analysis in `folder`; None without one, or matplotlib.

    Args:
        history: rows of the run's history.jsonl, for α and gates over training; None takes them from the analyses.
    """
    files = list(analysis_files(folder).values())
    if not files:
        return None
    document = load_analysis(files[-1])
    save_analysis(document, folder / "analysis.json")
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no page of the analyses in %s: it needs matplotlib (pip install matplotlib)", folder)
        return None
    if history is None:
        history = [_history_row(load_analysis(path)) for path in files]
    page = write_report(document, folder, history=history, over_training=map(load_analysis, files))
    logger.info("what the attention does: %s", page)
    return page


def _history_row(document: AnalysisDocument) -> dict[str, Any]:
    """α and gates of an analysis in the form of a row of history.jsonl."""
    modules = document.modules.items()
    alphas = {name: module.alpha for name, module in modules if module.alpha is not None}
    gates = {name: module.gate for name, module in modules if module.gate is not None}
    return {"step": document.step, "alpha": alphas, "gate": gates}

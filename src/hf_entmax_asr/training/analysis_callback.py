"""The analysis of a model while it is trained, on a few utterances, every so many steps."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_entmax_asr.training.inspection import Labels, analyze, save_analysis


class AnalysisCallback(TrainerCallback):
    """Writes FOLDER/step-00001000.json (the document of `analyze`) every `every_steps` steps.

    For transformers' Trainer; another training loop calls `write` itself. Weights and random state of training are left
    as they were; each analysis is one pass over `max_utterances`.
    """

    def __init__(
        self,
        processor: Any,
        rows: Any,
        folder: str | Path,
        every_steps: int = 1000,
        max_utterances: int = 16,
        labels: Labels | None = None,
    ) -> None:
        """
        Args:
            rows: held-out data set, as `load_folder` gives it; its first `max_utterances` are used.
            labels: as for `analyze`.

        Raises:
            ValueError: a number below 1, or no utterances.
        """
        if every_steps < 1 or max_utterances < 1:
            raise ValueError(f"every_steps = {every_steps} and max_utterances = {max_utterances} must be at least 1.")
        if len(rows) == 0:
            raise ValueError("there are no utterances to analyse.")
        self.processor, self.labels = processor, labels
        self.rows = rows.select(range(min(max_utterances, len(rows))))
        self.folder, self.every_steps = Path(folder), every_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after each step; one process of several writes."""
        if state.is_world_process_zero and state.global_step % self.every_steps == 0:
            self.write(kwargs["model"], state.global_step)

    def write(self, model: Any, step: int) -> Path:
        """Analyse the model as it is after `step` steps; returns the file."""
        document = analyze(getattr(model, "module", model), self.processor, self.rows, labels=self.labels)
        return save_analysis({**document, "step": step}, self.folder / f"step-{step:08d}.json")

"""The analyses of a run by recipe: in RUN/analysis, every so many steps and at the end, and a page of them."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_entmax_asr.analysis.document import AnalysisDocument
from hf_entmax_asr.model.configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from hf_entmax_asr.training.analysis_callback import (
    AnalysisCallback,
    drop_analyses_after,
    newest_analysis,
    write_page,
)
from hf_entmax_asr.training.preparation import Prepared
from hf_entmax_asr.training.recipe import Recipe, RecipeError
from hf_entmax_asr.training.reporting import HISTORY, read_history

ANALYSES = "analysis"


class RunAnalysis:
    """Every process has one and calls it alike; the main one does the work.

    Attributes:
        newest: the last analysis of the run, in the main process; None without one.
    """

    def __init__(self, recipe: Recipe, output: Path, prepared: Prepared, accelerator: Accelerator) -> None:
        """Analyses of later steps than the one where the run goes on are removed.

        Raises:
            DataError: no utterance of the validation split is short enough to be analysed.
            RecipeError: analyses are asked for of a system to compare with.
        """
        self.folder, self.history, self.accelerator = output / ANALYSES, output / HISTORY, accelerator
        section, splits = recipe.evaluation, prepared.splits
        if section.analyze_every_steps is not None and isinstance(prepared.model.config, EntmaxAsrBaselineConfig):
            raise RecipeError(
                f"evaluation.analyze_every_steps is {section.analyze_every_steps}, and a system to compare with cannot "
                "be analysed: set it to null"
            )
        self.callback: AnalysisCallback | None = None
        if section.analyze_every_steps is not None and splits.validation is not None:
            self.callback = AnalysisCallback(
                prepared.processor,
                splits.validation.rows,
                self.folder,
                every_steps=section.analyze_every_steps,
                max_utterances=section.analyze_utterances,
                name=output.resolve().name,
                data=f"{Path(recipe.data.path or '').name}, {recipe.data.validation_split}",
            )
        self.analysed_step = -1  # the last one of this session
        self.newest: AnalysisDocument | None = None
        if accelerator.is_main_process:
            drop_analyses_after(self.folder, prepared.state.step)
            self.newest = newest_analysis(self.folder)

    def due(self, step: int, last: bool) -> bool:
        """Whether the model is to be analysed after this step; after the last one it always is, if ever."""
        if self.callback is None or step == self.analysed_step:
            return False
        return last or step % self.callback.every_steps == 0

    def write(self, model: Any, step: int) -> None:
        """Analyse `model`, which holds whole weights."""
        self.analysed_step = step
        if self.callback is not None and self.accelerator.is_main_process:
            with self.accelerator.autocast():
                self.callback.write(model, step)
            self.newest = newest_analysis(self.folder)

    def finish(self) -> None:
        """Write the page, at the end of the run."""
        if self.callback is not None and self.accelerator.is_main_process:
            write_page(self.folder, read_history(self.history))
        self.accelerator.wait_for_everyone()

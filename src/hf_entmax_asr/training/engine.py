"""The training loop, for one process or several: a recipe goes in, checkpoints and reports come out."""

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, set_seed

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.metrics import Scores
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.evaluation import score_decodings
from hf_entmax_asr.recognition.utterances import Utterances
from hf_entmax_asr.training.batch_loader import training_batches
from hf_entmax_asr.training.batching import MicroBatch
from hf_entmax_asr.training.checkpointing import CheckpointStore, average_checkpoints
from hf_entmax_asr.training.model_card import card_title, model_card
from hf_entmax_asr.training.optimization import budget_used, build_optimizer, learning_rate, ramp, set_learning_rate
from hf_entmax_asr.training.outcome import TrainingDiverged, TrainingResult
from hf_entmax_asr.training.preparation import RECIPE, Prepared, prepare
from hf_entmax_asr.training.recipe import Recipe, RecipeError, recipe_to_dict
from hf_entmax_asr.training.reporting import Reporter
from hf_entmax_asr.training.run_analysis import RunAnalysis
from hf_entmax_asr.training.run_lock import locked
from hf_entmax_asr.training.scored_model import ScoredModel, unsharded
from hf_entmax_asr.training.stopping import StopSignal
from hf_entmax_asr.training.training_state import (
    STATE_FOLDER,
    load_optimizer,
    load_trained_weights,
    optimizer_tensors,
    random_state,
    read_random_state,
    restore_random_state,
    save_training_state,
    without_state,
)

logger = logging.getLogger(__name__)

AVERAGE = "average"
CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}
_AGREE_EVERY = 10  # steps between two agreements of several processes on the clock and on signals
_LOSS_PARTS = ("cross_entropy_loss", "ctc_loss", "head_penalty")


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    card_template: str | None = None,
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    """Train by a recipe. Every process of an `accelerate launch` calls it with the same arguments.

    Args:
        output: folder of the run: checkpoints/, the links `last` and `best`, history.jsonl, tensorboard/, recipe.yaml,
            analysis/.
        resume: go on from the newest checkpoint in `output`: same batches, same random numbers.
        stop_after: save and return after so many steps of the whole run, without touching the schedule.
        card_template: text of a model card (model_cards/template.md); None writes no card.
        accelerator: one of your own; by default Accelerate's settings (mixed precision, devices) are taken.
    Raises:
        RecipeError, DataError, CheckpointError: before training starts, with what to change.
        DataError, CheckpointError: a recording cannot be read any more, or a checkpoint not be written.
        TrainingDiverged: loss or gradient became infinite or NaN.
    """
    started = CLOCKS[recipe.schedule.clock]()
    accelerator = accelerator or Accelerator()
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise RecipeError("of FSDP only version 2 is known here: fsdp_version: 2, as in scripts/launch/fsdp.yaml")
    if stop_after is not None and stop_after < 1:
        raise RecipeError(f"stop_after is {stop_after}; it must be at least 1 step")
    with locked(Path(output), accelerator):
        prepared = prepare(recipe, Path(output), resume, accelerator)
        return TrainingRun(recipe, Path(output), accelerator, prepared, started, card_template).train(stop_after)


class TrainingRun:
    """One session of a run: what the loop holds. `train` makes it."""

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        accelerator: Accelerator,
        prepared: Prepared,
        started: float,
        card_template: str | None,
    ) -> None:
        self.recipe, self.output, self.accelerator, self.card_template = recipe, output, accelerator, card_template
        self.processor, self.splits, self.state = prepared.processor, prepared.splits, prepared.state
        self.clock = CLOCKS[recipe.schedule.clock]
        self.unwrapped_model = prepared.model  # what Accelerate's wrappers hold
        self.penalty_weight = prepared.model.config.head_regularizer_weight
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        self.scored_model = ScoredModel(prepared.model, recipe.optimizer.ema_decay, self.sharded)
        if prepared.checkpoint is not None:
            load_trained_weights(prepared.checkpoint, prepared.model)
            self.random_state = read_random_state(prepared.checkpoint, accelerator.process_index)
        self.unwrapped_optimizer = build_optimizer(prepared.model, recipe.optimizer)
        self.model, self.optimizer = accelerator.prepare(prepared.model, self.unwrapped_optimizer)
        self.scored_model.start()
        if prepared.checkpoint is not None:
            load_optimizer(prepared.checkpoint, self.unwrapped_model, self.unwrapped_optimizer)
        section = recipe.evaluation
        keep_last = max(section.keep_last, section.average_count if section.average == "last" else 0)
        keep_best = max(section.keep_best, section.average_count if section.average == "best" else 0)
        self.store = CheckpointStore(output, keep_last, keep_best)
        self.reporter = Reporter(
            output,
            enabled=accelerator.is_main_process,
            tensorboard=section.tensorboard,
            start_step=self.state.step,
        )
        self.analyses = RunAnalysis(recipe, output, prepared, accelerator)
        self.started = started - self.state.elapsed_seconds
        self.stop_signal, self.interrupted = StopSignal(), False
        self.scores: dict[str, Scores] = {}
        self.scored_step = -1
        self.saved_step = self.state.step if prepared.checkpoint is not None else -1
        self.sums: dict[str, torch.Tensor] = {}  # over the steps since the last log line, on the device
        self._restart_window()
        if card_template is not None:
            # A template that cannot be filled fails now, not after hours.
            self._card(card_template, self.scored_model.current(), {})
        self._restore(prepared.checkpoint)

    def _restore(self, checkpoint: Path | None) -> None:
        """Scaler and random numbers as `checkpoint` left them; new processes are seeded apart from each other."""
        rank = self.accelerator.process_index
        set_seed(self.recipe.seed + rank)
        if checkpoint is None:
            return
        if self.accelerator.scaler is not None and self.state.scaler:
            self.accelerator.scaler.load_state_dict(self.state.scaler)
        if self.random_state:
            restore_random_state(self.random_state)
        else:
            logger.warning("process %d is new since %s was saved; its random numbers start anew", rank, checkpoint)

    def train(self, stop_after: int | None = None) -> TrainingResult:
        """Run until the budget is used up, `stop_after` steps are done, or a signal asks to stop."""
        section, state = self.recipe.evaluation, self.state
        with self.reporter, self.stop_signal.listening():
            place = self.state.epoch, self.state.next_index
            batches = training_batches(self.recipe, self.processor, self.splits.train, self.accelerator, *place)
            self.model.train()
            self._agree(force=True)
            evaluated_at = state.elapsed_seconds
            while self._used() < 1 and not self.interrupted and (stop_after is None or state.step < stop_after):
                self._step(batches)
                self._agree()
                self.reporter.progress(self._used())
                if state.step % section.log_every_steps == 0:
                    self._log()
                if self.analyses.due(state.step, last=self._used() >= 1):
                    self._analyze()  # before a checkpoint, whose card tells what was found
                minutes = (state.elapsed_seconds - evaluated_at) / 60
                if _due(state.step, section.every_steps) or minutes >= (section.every_minutes or float("inf")):
                    self._evaluate()
                    self._save()
                    evaluated_at = state.elapsed_seconds
                elif _due(state.step, section.save_every_steps):
                    self._save()
            finished = self._used() >= 1
            if finished and self.analyses.due(state.step, last=True):
                self._analyze()
                self.saved_step = -1  # save again, with what was found
            if finished and self.scored_step != state.step:
                self._evaluate()
                self.saved_step = -1  # save again, with the score
            if self.saved_step != state.step:
                self._save()
            if finished and section.average != "none":
                self._average()
            if finished:
                self.analyses.finish()
        best = self.output / "best"
        last = self.output / "last"
        return TrainingResult(state.step, finished, last, best if best.exists() else last, self.scores)

    def _step(self, batches: Iterator[tuple[MicroBatch, dict[str, torch.Tensor]]]) -> None:
        """One optimizer step."""
        state, used, schedule = self.state, self._used(), self.recipe.schedule
        self.rate = learning_rate(schedule, self.recipe.optimizer.peak_learning_rate, state.step, used)
        set_learning_rate(self.optimizer, self.rate)
        hard_share = schedule.straight_through_fraction
        config = self.unwrapped_model.config
        config.monotonic_straight_through = hard_share > 0 and used >= 1 - hard_share
        config.head_regularizer_weight = self.penalty_weight * ramp(schedule.regularizer_ramp, used)
        for left in reversed(range(self.recipe.batching.accumulation_steps)):
            micro, tensors = next(batches)
            batch = {key: value.to(self.accelerator.device, non_blocking=True) for key, value in tensors.items()}
            with self.accelerator.no_sync(self.model) if left else nullcontext():
                output = self.model(**batch, use_cache=False)
                self.accelerator.backward(output.loss * micro.weight)
            self._accumulate("loss", output.loss.detach() * micro.weight)
            for name in _LOSS_PARTS:
                if (part := getattr(output, name, None)) is not None:
                    self._accumulate(name, part.detach() * micro.weight)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.max_gradient_norm)
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:  # fp16 skips a step whose gradient overflows
            self._accumulate("gradient_norm", unsharded(norm.detach()))
            self.unwrapped_model.proximal_gate_step(self.unwrapped_optimizer)
        self.optimizer.zero_grad()
        state.step += 1
        self.scored_model.update(state.step)
        state.epoch, state.next_index = micro.epoch, micro.next_index
        self.window_frames += micro.step_frames

    def _accumulate(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _used(self) -> float:
        return budget_used(self.recipe.schedule, self.state.step, self.state.elapsed_seconds)

    def _agree(self, force: bool = False) -> None:
        """Read the clock and the signals. Several processes take the main one's clock and stop together."""
        mine = (self.clock() - self.started, self.stop_signal.received)
        if self.accelerator.num_processes == 1:
            everyone = [mine]
        elif force or self.state.step % _AGREE_EVERY == 0:
            everyone = gather_object([mine])
        else:
            return
        self.state.elapsed_seconds = everyone[0][0]
        self.interrupted = any(signalled for _, signalled in everyone)

    def _restart_window(self) -> None:
        self.window_step, self.window_frames, self.window_started = self.state.step, 0, self.clock()
        self.sums.clear()

    def _log(self) -> None:
        """Report means since the last report, over steps and processes; the only place that waits for the device."""
        steps, seconds = self.state.step - self.window_step, self.clock() - self.window_started
        means = self.accelerator.reduce(torch.stack([s.float() for s in self.sums.values()]), "mean") / steps
        values = {name: round(value, 6) for name, value in zip(self.sums, means.tolist(), strict=True)}
        self._check_finite()
        values |= {
            "learning_rate": self.rate,
            "frames_per_second": round(self.window_frames / max(seconds, 1e-9), 1),
            "epoch": self.state.epoch,
            "elapsed_seconds": round(self.state.elapsed_seconds, 3),
        }
        heads = {"alpha": _rounded(self.unwrapped_model.alphas()), "gate": _rounded(self.unwrapped_model.gates())}
        used = self._used()
        left = self.state.elapsed_seconds * (1 - used) / used if used > 0 else None
        self.reporter.training(self.state.step, values, heads, left)
        self._restart_window()

    def _check_finite(self) -> None:
        """Every process sees the same gradient norm, so all raise or none does."""
        if all(bool(torch.isfinite(self.sums[n])) for n in ("gradient_norm",) if n in self.sums):
            return
        saved = self.store.last()
        raise TrainingDiverged(
            f"the gradient stopped being finite between steps {self.window_step} and {self.state.step}. Lower "
            "optimizer.peak_learning_rate or optimizer.max_gradient_norm, or lengthen schedule.warmup_steps. "
            + (f"The last checkpoint, {saved}, is from before." if saved else "No checkpoint was written yet.")
        )

    def _analyze(self) -> None:
        """Write down what the attention of the scored model does now; training is left as it was."""
        self._check_finite()
        began = self.clock()
        self.analyses.write(self.scored_model.current(), self.state.step)
        self.window_started += self.clock() - began  # frames/s counts training alone

    def _evaluate(self) -> None:
        """Score the validation split with the model as it is, and remember the score of this step."""
        validation = self.splits.validation
        if validation is None:
            return
        began = self.clock()
        self.scores = self._score(self.scored_model.current(), validation, "validation")
        self.scored_step = self.state.step
        self.state.scores[self.state.step] = self._value(self.scores)
        self.state.tolerances[self.state.step] = _own(self.scores).tolerance(self.recipe.evaluation.best_metric)
        self.window_started += self.clock() - began

    def _score(self, model: Any, validation: Utterances, name: str) -> dict[str, Scores]:
        section = self.recipe.evaluation
        with self.accelerator.autocast():
            scores = score_decodings(
                model,
                self.processor.tokenizer,
                validation,
                SpeechSeq2SeqCollator(self.processor),
                frames_per_batch=section.frames_per_batch,
                num_beams=section.num_beams,
                compare=section.compare_decodings,
                accelerator=self.accelerator,
            )
        for decoding, result in scores.items():
            self.reporter.evaluation(self.state.step, f"{name}/{decoding}", result)
        return scores

    def _value(self, scores: dict[str, Scores]) -> float:
        """The number by which checkpoints are compared: lower is better."""
        return _own(scores).as_dict()[self.recipe.evaluation.best_metric]

    def _save(self) -> None:
        """Write the checkpoint of this step."""
        self._check_finite()
        states = gather_object([random_state()])
        if self.accelerator.scaler is not None:
            self.state.scaler = self.accelerator.scaler.state_dict()
        began, main = self.clock(), self.accelerator.is_main_process
        scored = self.scored_model.current()
        together = main or self.sharded  # all processes are needed to gather shards
        optimizer = optimizer_tensors(self.unwrapped_model, self.unwrapped_optimizer) if together else {}
        trained = {}
        if self.scored_model.ema_decay is not None and together:
            trained = {name: unsharded(p.detach()).cpu() for name, p in self.unwrapped_model.named_parameters()}
        if main:

            def write(folder: Path) -> None:
                self._write(folder, scored)
                stateless = without_state(self.unwrapped_model, self.unwrapped_optimizer)
                save_training_state(folder, self.state, optimizer, states, trained, stateless)
                text = yaml.safe_dump(recipe_to_dict(self.recipe), sort_keys=False, allow_unicode=True)
                write_text_atomically(folder / STATE_FOLDER / RECIPE, text)

            self.store.save(self.state.step, write, self.state.scores, self.state.tolerances)
        self.window_started += self.clock() - began
        self.saved_step = self.state.step
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, model: Any) -> None:
        model.config.monotonic_straight_through = False  # a phase of training, not of the model
        model.config.head_regularizer_weight = self.penalty_weight
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self._write_card(folder, model, self.scores if self.scored_step == self.state.step else {})

    def _write_card(self, folder: Path, model: Any, scores: dict[str, Scores]) -> None:
        if self.card_template is not None:
            write_text_atomically(folder / "README.md", self._card(self.card_template, model, scores))

    def _card(self, template: str, model: Any, scores: dict[str, Scores]) -> str:
        name, facts = card_title(self.output), self.splits.facts()
        return model_card(template, name, self.recipe, model, self.state, scores, facts, self.analyses.newest)

    def _average(self) -> None:
        """Average the kept checkpoints; the average becomes `best` where it scores as well, within the tolerance."""
        section = self.recipe.evaluation
        steps = self.store.ranked(self.state.scores) if section.average == "best" else self.store.steps()[::-1]
        steps = sorted(steps[: section.average_count])
        if len(steps) < 2:
            logger.warning("only %d checkpoint to average: nothing done", len(steps))
            return
        target = self.output / AVERAGE
        if self.accelerator.is_main_process:
            average_checkpoints([self.store.path(step) for step in steps], target)
        self.accelerator.wait_for_everyone()
        if self.splits.validation is None:
            return
        model, _ = load_recogniser(target, str(self.accelerator.device), any_system=True)
        scores = self._score(model, self.splits.validation, f"mean of steps {steps}")
        if self.accelerator.is_main_process:
            self._write_card(target, model, scores)
            if self.store.as_good(self._value(scores), self.state.scores, self.state.tolerances):
                self.store.link("best", target)
        self.accelerator.wait_for_everyone()


def _own(scores: dict[str, Scores]) -> Scores:
    """The scores of the model's own decoding, which comes first."""
    return next(iter(scores.values()))


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _rounded(heads: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: [round(value, 5) for value in unsharded(tensor).tolist()] for name, tensor in heads.items()}

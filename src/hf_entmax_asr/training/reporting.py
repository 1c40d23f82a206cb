"""What a run tells while it runs: a progress bar or log lines, TensorBoard, and history.jsonl for pictures later."""

import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.error_messages import described
from hf_entmax_asr.input_files import InputFileError, check_regular
from hf_entmax_asr.metrics import Scores
from hf_entmax_asr.recognition.checkpoint import CheckpointError

logger = logging.getLogger(__name__)

HISTORY = "history.jsonl"


class Reporter:
    """Reports of the main process; every method is a no-op in the others. Use it as a context manager."""

    def __init__(self, output: Path, *, enabled: bool, tensorboard: bool, start_step: int = 0) -> None:
        """`start_step` > 0 continues the reports of a resumed run and drops what lay beyond that step."""
        self.enabled = enabled
        self.history = output / HISTORY
        self.bar: Any = None
        self.writer: Any = None
        self._redirect: Any = None
        if not enabled:
            return
        _keep_history_until(self.history, start_step)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=start_step + 1 if start_step else None)

    def __enter__(self) -> "Reporter":
        if self.enabled and sys.stderr.isatty():
            layout = "{percentage:3.0f} %|{bar:30}| {desc}"
            self.bar = tqdm(total=1.0, bar_format=layout, leave=True)
            self._redirect = logging_redirect_tqdm()
            self._redirect.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._redirect is not None:
            self._redirect.__exit__(*exception)
        if self.bar is not None:
            self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def progress(self, used: float) -> None:
        """Move the bar to this share of the budget."""
        if self.bar is not None:
            self.bar.update(used - self.bar.n)

    def training(self, step: int, values: dict[str, float], heads: dict[str, Any], time_left: float | None) -> None:
        """Report training values, and per-head values such as α.

        Args:
            values: scalars by name: loss and its parts, learning_rate, gradient_norm, frames_per_second, epoch.
            heads: "alpha" and "gate", each {module: [value per head]}.
            time_left: seconds, or None where unknown.
        """
        if not self.enabled:
            return
        self._append({"step": step, **values, **heads})
        parts = ", ".join(
            f"{name.removesuffix('_loss')} {values[name]:.3f}" for name in values if name.endswith("_loss")
        )
        line = (
            f"step {step}: loss {values['loss']:.3f}{f' ({parts})' if parts else ''}, "
            f"lr {values['learning_rate']:.2e}, {values['frames_per_second']:,.0f} frames/s"
            + (f", {_clock(time_left)} left" if time_left is not None else "")
        )
        if self.bar is not None:
            self.bar.set_description_str(line)
        else:
            logger.info(line)
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"train/{name}", value, step)
            for kind, modules in heads.items():
                for module, per_head in modules.items():
                    for head, value in enumerate(per_head):
                        self.writer.add_scalar(f"{kind}/{module}/{head}", value, step)

    def evaluation(self, step: int, name: str, scores: Scores) -> None:
        """Report one evaluation; `name` says of what, such as "validation/hard"."""
        if not self.enabled:
            return
        logger.info("step %d, %s: %s", step, name, scores)
        if scores.warning is not None:
            logger.warning("%s", scores.warning)
        values = scores.as_dict()
        self._append({"step": step, "evaluation": name, **values})
        if self.writer is not None:
            for key, value in values.items():
                self.writer.add_scalar(f"{name}/{key}", value, step)
            self.writer.flush()

    def _append(self, record: dict[str, Any]) -> None:
        record["time"] = round(time.time(), 3)
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records of a history.jsonl, in order; a last line cut off by a crash is left out.

    Raises:
        CheckpointError: another line is damaged.
    """
    if not os.path.lexists(path):
        return []
    try:
        check_regular(path)
    except (OSError, InputFileError) as error:
        raise CheckpointError(described(error)) from error
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            numbers = [n for key in ("alpha", "gate") for row in record.get(key, {}).values() for n in row]
            if type(record["step"]) is not int or not all(
                type(n) in (int, float) and math.isfinite(n) for n in numbers
            ):
                raise TypeError
            records.append(record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if number < len(lines):
                raise CheckpointError(
                    f"{path}, line {number}: not a JSON object with a step, and finite numbers under alpha and gate. "
                    "Remove the line, or the file, which only pictures of the training need"
                ) from None
    return records


def _keep_history_until(path: Path, step: int) -> None:

    kept = [record for record in read_history(path) if record["step"] <= step]
    write_text_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

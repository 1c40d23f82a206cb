"""The tables of study.py, from what it has kept in its folder: WER, size and speed of each variant."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.timing import table
from experiments.map_reuse import AFTER, BEFORE
from experiments.real_speech.grid_cell import CellError
from experiments.real_speech.grid_table import Hypotheses, p_value

from hf_entmax_asr.metrics import bootstrap_interval

UNPRUNED, GATES = "unpruned", "gates"
PRUNED = (GATES, "redundant", "waited-for")
NAMES = {
    UNPRUNED: "unpruned",
    GATES: "heads whose gate is 0",
    "redundant": "most redundant encoder heads: {}",
    "waited-for": "most waited-for heads: {}",
    "reuse": "maps in the encoder: {}",
}
RESULT, TIMING, SETTINGS = "variant.json", "timing.json", "settings.json"
AS_CUT, TRAINED = "as_cut", "trained_further"
TASKS = ("encoder", "generate", "training step")  # columns; so begin the names of map_reuse.runs
ABSENT = "-"


class Row:
    """A finished variant."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        self.kind, self.count = self.result["kind"], self.result["count"]
        self.ways = list(self.result[AS_CUT]["scores"])  # "hard" and "soft", or "full"; the first is what is tested
        timing = folder / TIMING
        self.timing = json.loads(timing.read_text(encoding="utf-8")) if timing.is_file() else None

    @cached_property
    def heard(self) -> dict[tuple[str, str], Hypotheses]:
        states = [state for state in (AS_CUT, TRAINED) if state in self.result]
        return {
            (state, way): Hypotheses.read(self.folder / state / f"{way}.jsonl") for state in states for way in self.ways
        }

    @property
    def name(self) -> str:
        return NAMES[self.kind].format(self.count)

    def rate(self, state: str, way: str, unit: str = "word", interval: bool = True) -> str:
        """In percent, with its interval."""
        if (state, way) not in self.heard:
            return ABSENT
        heard = self.heard[state, way]
        if not interval:
            return f"{100 * sum(heard.errors(unit)) / sum(heard.lengths(unit)):.1f}"
        found = bootstrap_interval(heard.errors(unit), heard.lengths(unit))
        return f"{100 * found.rate:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"

    def rates(self, state: str, interval: bool) -> str:
        """WER of the first way of decoding, then of the others."""
        if state not in self.result:
            return ABSENT
        first, *others = self.ways
        return " / ".join(
            [self.rate(state, first, interval=interval), *(self.rate(state, w, interval=False) for w in others)]
        )

    def p(self, control: "Row | None") -> str:
        """Of the matched pairs against the checkpoint that was trained as long."""
        mine = self.heard.get((TRAINED, self.ways[0]))
        if control is None or control is self:
            return ABSENT
        theirs = control.heard.get((TRAINED, self.ways[0]))
        if mine is None or theirs is None:
            return ABSENT
        if (mine.ids, mine.references) != (theirs.ids, theirs.references):
            raise CellError(f"{self.folder} and {control.folder} hold different utterances; they cannot be compared")
        return p_value(mine, theirs)

    def last_stop(self) -> str:
        values = [self.result[state]["last_stop_seconds"] for state in (AS_CUT, TRAINED) if state in self.result]
        return " / ".join(ABSENT if seconds is None else f"{seconds:.2f}" for seconds in values)

    def speed(self) -> list[str]:
        """Time as a share of the checkpoint's, by task."""
        if self.timing is None:
            return [ABSENT] * len(TASKS)
        seconds = self.timing["seconds"]
        chosen = [next(seconds[task] for task in seconds if task.startswith(name)) for name in TASKS]
        return [f"{both[AFTER] / both[BEFORE]:.2f}" for both in chosen]


def read_rows(output: Path) -> list[Row]:
    """The finished variants, the checkpoint first, then from the least change to the greatest."""
    rows = [Row(file.parent) for file in output.glob(f"*/{RESULT}")]
    kinds = list(NAMES)
    return sorted(rows, key=lambda row: (kinds.index(row.kind), -row.count if row.kind == "reuse" else row.count))


def render(output: Path, failed: dict[str, str]) -> str:
    """The whole report; `failed` gives the reason by the variant's name.

    Raises:
        CellError: nothing was begun in `output`.
    """
    if not (output / SETTINGS).is_file():
        raise CellError(f"there is nothing in {output} yet: run the command without --table-only first")
    settings = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    rows = read_rows(output)
    parts = [f"# Smaller models out of {settings['checkpoint']}"]
    for title, kinds in (("Heads removed", PRUNED), ("Maps shared", ("reuse",))):
        if any(row.kind in kinds for row in rows):
            parts += [f"## {title}", costs([row for row in rows if row.kind in (UNPRUNED, *kinds)], settings, kinds)]
    parts += [notes(settings, rows), "## Every score", scores(rows), "## What was removed", changes(rows)]
    if failed:
        parts.append("\n".join(["Failed:", "", *(f"- {name}: {reason}" for name, reason in failed.items())]))
    return "\n\n".join(parts) + "\n"


def costs(rows: list[Row], settings: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """WER, size and speed."""
    control = next((row for row in rows if row.kind == UNPRUNED), None)
    removing = kinds == PRUNED
    waiting = removing and any(row.result[AS_CUT]["last_stop_seconds"] is not None for row in rows)
    ways = " / ".join(rows[0].ways) if len(rows[0].ways) > 1 else ""
    after = f"after {settings['recipe']['schedule']['max_steps']:,} steps"
    header = ["variant", "heads removed" if removing else "layers to a map", "parameters", "MB"]
    header += [f"WER as cut{', ' * bool(ways)}{ways}", f"WER {after}{', ' * bool(ways)}{ways} [95 %]"]
    header += [f"CER {after}", "p", *(["last stop, s"] if waiting else []), *TASKS]
    lines: list[list[object]] = []
    for row in rows:
        gone = sum(map(len, row.result["removed"].values()))
        change = f"{gone} of {row.result['heads']}" if removing else ", ".join(map(str, row.result["maps"])) or ABSENT
        line = [row.name, change, f"{row.result['parameters']:,}", f"{row.result['megabytes']:.2f}"]
        line += [row.rates(AS_CUT, interval=False), row.rates(TRAINED, interval=True)]
        line += [row.rate(TRAINED, row.ways[0], "character", interval=False), row.p(control)]
        lines.append([*line, *([row.last_stop()] if waiting else []), *row.speed()])
    return table(header, lines)


def notes(settings: dict[str, Any], rows: list[Row]) -> str:
    """How to read the tables."""
    schedule, rate = settings["recipe"]["schedule"], settings["recipe"]["optimizer"]["peak_learning_rate"]
    decoding = f", {rows[0].ways[0]} decoding" if rows and len(rows[0].ways) > 1 else ""
    lines = [
        f"Rates in percent on the split {settings['test_split']}, [95 % interval, bootstrap over utterances]. Each was "
        f"trained further by {schedule['max_steps']:,} steps, the unpruned one too: peak learning rate {rate:g}, "
        f"warm-up over {schedule['warmup_steps']}, cool-down over the last {100 * schedule['cooldown_fraction']:g} %. "
        f"p: matched pairs (MAPSSWE) against the unpruned one trained further{decoding}; * fewer than 50 segments. One "
        "seed, the same for all.",
        "Last stop: how far into an utterance the last monotonic head stops for a token of the reference, mean; as cut "
        "/ after further training. Decoding cannot write a token before that.",
        "encoder, generate (greedy), training step: time as a share of the checkpoint's, on speech of the test split; "
        "below 1 is faster. The row “unpruned” tells how far such a ratio strays by itself.",
    ]
    timed = [(row.name, *row.timing["machine"].split("\n", 1)) for row in rows if row.timing is not None]
    lines += ["\n".join(f"- timed: {name}: {first}" for name, first, *_ in timed)] if timed else []
    kernels = dict.fromkeys(text for _, _, *rest in timed for text in rest)  # what computed; mostly one for all
    return "\n\n".join([*lines, *(text.replace("\n", "; ") for text in kernels)])


def scores(rows: list[Row]) -> str:
    """Word and character error rates of every variant, before and after further training, in each way of decoding."""
    lines: list[list[object]] = [
        [row.name, state.replace("_", " "), way, row.rate(state, way), row.rate(state, way, "character")]
        for row in rows
        for state, way in row.heard
    ]
    return table(["variant", "", "decoding", "WER [95 %]", "CER [95 %]"], lines) if lines else "No variant is finished."


def changes(rows: list[Row]) -> str:
    """The heads of each variant by module, or its groups of layers."""
    lines = []
    for row in rows:
        heads = [f"{module} {', '.join(map(str, numbers))}" for module, numbers in row.result["removed"].items()]
        if row.result["maps"]:
            heads.append(f"groups of {', '.join(map(str, row.result['maps']))} encoder layers")
        if heads:
            lines.append(f"- {row.name} ({'; '.join(heads)})")
    return "\n".join(lines) or "Nothing."

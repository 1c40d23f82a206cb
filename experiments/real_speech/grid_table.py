"""The paper's Table I with our figures beside the paper's, and the tests between cells, as Markdown."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.real_speech.grid_cell import WAYS, Cell, CellError, finished_cells
from experiments.real_speech.grid_options import CROSS_ATTENTIONS, TRANSFORMS

from hf_entmax_asr.metrics import (
    Edit,
    align,
    bootstrap_difference,
    bootstrap_interval,
    count_edits,
    error_segments,
    matched_pairs,
)

# Table I (arXiv 2209.15176), "both" rows: CER of AISHELL-1 dev / test and WER of WSJ eval93, first with full
# cross-attention, then with monotonic.
PAPER = {
    "softmax": (("8.60 / 9.33", "9.58"), ("8.23 / 9.00", "9.36")),
    "softmax-T0.5": (("7.80 / 8.64", "8.80"), ("7.73 / 8.59", "8.64")),
    "sparsemax": (("8.98 / 9.55", "9.62"), ("8.64 / 9.06", "9.34")),
    "entmax15": (("7.69 / 8.49", "8.56"), ("7.68 / 8.47", "8.39")),
    "entmax": (("7.65 / 8.53", "8.38"), ("7.64 / 8.45", "8.37")),
}
NAMES = {
    "softmax": "softmax",
    "softmax-T0.5": "softmax, T = 0.5",
    "sparsemax": "sparsemax",
    "entmax15": "1.5-entmax",
    "entmax": "α-entmax",
}
COLUMNS = [(cross, way) for cross in CROSS_ATTENTIONS for way in WAYS[cross]]  # of decoding
COLUMN_NAMES = {"full": "full", "hard": "monotonic, hard", "soft": "monotonic, soft"}
UNITS = {"word": "WER", "character": "CER"}
NOT_RUN = "not run"


@dataclass
class Hypotheses:
    """What one cell recognised in one way, aligned with the references when asked for."""

    ids: list[str]
    references: list[str]
    texts: list[str]
    _aligned: dict[str, list[list[Edit]]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "Hypotheses":
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
        ids, references, texts = ([record[key] for record in records] for key in ("id", "reference", "hypothesis"))
        return cls(ids, references, texts)

    def aligned(self, unit: str) -> list[list[Edit]]:
        if unit not in self._aligned:
            self._aligned[unit] = align(self.references, self.texts, unit)
        return self._aligned[unit]

    def errors(self, unit: str) -> list[int]:
        return [count_edits(edits).errors for edits in self.aligned(unit)]

    def lengths(self, unit: str) -> list[int]:
        return [count_edits(edits).reference_length for edits in self.aligned(unit)]


@dataclass
class Grid:
    """The finished cells in a folder.

    Several seeds of a cell count as one system that was asked several times: its rate is the mean, and in the bootstrap
    an utterance is drawn with all its answers. The intervals hold for other utterances, not for other seeds.
    """

    output: Path

    @cached_property
    def results(self) -> dict[Cell, dict[str, Any]]:
        return finished_cells(self.output)

    @cached_property
    def _heard(self) -> dict[tuple[str, str, str, int], Hypotheses]:
        heard = {
            (cell.transform, cell.cross_attention, way, cell.seed): Hypotheses.read(
                self.output / cell.name / f"{way}.jsonl"
            )
            for cell in self.results
            for way in WAYS[cell.cross_attention]
        }
        asked = {(tuple(h.ids), tuple(h.references)) for h in heard.values()}
        if len(asked) > 1:
            raise CellError(f"the cells in {self.output} recognised different utterances; they cannot be compared")
        return heard

    def by_seed(self, transform: str, cross: str, way: str) -> dict[int, Hypotheses]:
        return {seed: h for (t, c, w, seed), h in self._heard.items() if (t, c, w) == (transform, cross, way)}

    def rate(self, transform: str, cross: str, way: str, unit: str) -> str:
        """Mean rate of the seeds with its interval, in percent."""
        heard = list(self.by_seed(transform, cross, way).values())
        return mean_rate(heard, unit) if heard else NOT_RUN

    def comparison(self, first: tuple[str, str, str], second: tuple[str, str, str]) -> list[str] | None:
        """Differences of two systems with their intervals, and the matched-pair test of each seed; None if not run."""
        a, b = self.by_seed(*first), self.by_seed(*second)
        common = sorted(a.keys() & b.keys())
        if not common:
            return None
        row = []
        for unit in UNITS:
            ours, theirs = (_summed([side[s].errors(unit) for s in common]) for side in (a, b))
            d = bootstrap_difference(ours, theirs, _summed([a[s].lengths(unit) for s in common]))
            row.append(f"{100 * d.difference:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]")
        return [*row, ", ".join(p_value(a[seed], b[seed]) for seed in common)]


def mean_rate(heard: Sequence[Hypotheses], unit: str) -> str:
    """Mean rate of what several seeds recognised, with its interval, in percent."""
    interval = bootstrap_interval(_summed([h.errors(unit) for h in heard]), _summed([h.lengths(unit) for h in heard]))
    text = f"{100 * interval.rate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    if len(heard) == 1:
        return text
    rates = [100 * sum(h.errors(unit)) / sum(h.lengths(unit)) for h in heard]
    return f"{text}, seeds {min(rates):.1f} to {max(rates):.1f}"


def p_value(first: Hypotheses, second: Hypotheses) -> str:
    """Of the matched-pair test on words, with a star where it has few segments."""
    pairs = zip(first.aligned("word"), second.aligned("word"), strict=True)
    test = matched_pairs([segment for edits in pairs for segment in error_segments(*edits)])
    return f"{test.p_value:.2g}" + ("*" if test.caution else "")


def _summed(lists: Sequence[Sequence[int]]) -> list[int]:
    return [sum(values) for values in zip(*lists, strict=True)]


def render(grid: Grid, title: str, failed: dict[str, str]) -> str:
    """The whole report; `failed` gives the reason by cell name."""
    parts = [f"# {title}", _rates(grid), _comparisons(grid), _heads(grid)]
    if failed:
        parts.append("\n".join(["Failed:", "", *(f"- {name}: {reason}" for name, reason in failed.items())]))
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rates(grid: Grid) -> str:
    """Table I, once in words and once in characters."""
    parts = []
    for unit, name in UNITS.items():
        rows = []
        for transform, (full, monotonic) in PAPER.items():
            ours = [grid.rate(transform, cross, way, unit) for cross, way in COLUMNS]
            rows.append([NAMES[transform], *ours, *full, *monotonic])
        paper = [f"paper, {what}, {cross}" for cross in CROSS_ATTENTIONS for what in ("AISHELL-1 dev / test", "WSJ")]
        header = [f"{name} in %", *(f"ours, {COLUMN_NAMES[way]}" for _, way in COLUMNS), *paper]
        parts.append(table(header, rows))
    note = (
        "Ours: rate [95 % interval, bootstrap over utterances]. The paper's columns are its Table I (AISHELL-1: CER, "
        "WSJ eval93: WER), other corpora, models and budgets: compare the order of the rows, not the numbers."
    )
    return "\n\n".join([*parts, note])


def _comparisons(grid: Grid) -> str:
    """Each transform against softmax; monotonic against full; soft against hard."""
    pairs = [
        ((transform, cross, way), ("softmax", cross, way))
        for cross, way in COLUMNS
        for transform in TRANSFORMS
        if transform != "softmax"
    ]
    for transform in TRANSFORMS:
        full, hard, soft = ((transform, cross, way) for cross, way in COLUMNS)
        pairs += [(hard, full), (soft, full), (soft, hard)]
    rows = []
    for first, second in pairs:
        row = grid.comparison(first, second)
        if row is not None:
            rows.append([*(f"{NAMES[t]}, {COLUMN_NAMES[way]}" for t, _, way in (first, second)), *row])
    if not rows:
        return "No two cells to compare."
    note = (
        "Differences in points with 95 % intervals (paired bootstrap); p of the matched-pair test (MAPSSWE) on words, "
        f"one a seed, * where it has fewer than 50 segments. Of {len(rows)} comparisons without any difference, "
        f"{0.05 * len(rows):.1f} would show p < 0.05 by chance."
    )
    return table(["first", "second", "WER, first − second", "CER, first − second", "p"], rows) + "\n\n" + note


def _heads(grid: Grid) -> str:
    """Budget, α and zeros of each cell."""
    rows = []
    for cell, result in grid.results.items():
        row = [cell.name, f"{result['parameters']:,}", f"{result['steps']:,}", f"{result['minutes']:.1f}"]
        row.append("-" if result["cpu_minutes"] is None else f"{result['cpu_minutes']:.1f}")
        for stack in ("encoder", "decoder"):
            heads = [values for name, values in result["heads"].items() if name.startswith(stack)]
            alphas = [alpha for values in heads for alpha in values["alpha"]]
            zeros = [share for values in heads for share in values["zero_share"]]
            row.append(f"{min(alphas):.2f} to {max(alphas):.2f}" if alphas else "-")
            row.append(f"{100 * sum(zeros) / len(zeros):.0f} %")
        rows.append(row)
    if not rows:
        return "No cell is finished."
    header = ["cell", "parameters", "steps", "minutes of training", "CPU-minutes", "α, encoder", "zeros, encoder"]
    note = (
        "α of the least and the greatest head; zeros: share of self-attention weights that are exactly 0 on the test "
        "split, mean over heads (each head stands in cell.json). CPU-minutes are not known for a cell in several parts."
    )
    return table([*header, "α, decoder", "zeros, decoder"], rows) + "\n\n" + note

"""The paper's Tables II to V with our figures beside the paper's, as Markdown."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.real_speech.grid_cell import RESULT
from experiments.real_speech.grid_table import NOT_RUN, UNITS, Hypotheses, mean_rate, table
from experiments.tables.paper import TABLES, PaperTable

WAYS = {"full": "", "hard": ", hard", "soft": ", soft"}


def finished(output: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Results by system and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(output.glob(f"*/{RESULT}")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if "system" in result:
            found.setdefault(result["system"], {})[result["seed"]] = result
    return found


def render(name: str, output: Path, splits: Sequence[str], title: str, failed: dict[str, str]) -> str:
    """Table `name` of what is finished in `output`; `failed` gives the reason by cell name."""
    wanted, results = TABLES[name], finished(output)
    ways = _ways(wanted, results)
    parts = [f"# {wanted.title}: {title}"]
    for unit, rate in UNITS.items():
        rows = []
        for row in wanted.rows:
            of_seeds = results.get(row.system, {})
            ours = [_rate(output, row.system, of_seeds, split, way, unit) for split in splits for way in ways]
            rows.append([row.name, *ours, *row.paper])
        header = [f"{rate} in %", *(f"ours, {split}{WAYS[way]}" for split in splits for way in ways)]
        parts.append(table([*header, *(f"paper, {column}" for column in wanted.columns)], rows))
    parts.append(
        "Ours: rate [95 % interval, bootstrap over utterances]; of several seeds the mean. Other corpora, sizes and "
        "budgets than the paper's: compare the order of the rows, not the numbers. " + wanted.note
    )
    parts.append(_cost(wanted, results, splits))
    if failed:
        parts.append("\n".join(["Failed:", "", *(f"- {cell}: {reason}" for cell, reason in failed.items())]))
    return "\n\n".join(parts) + "\n"


def _ways(wanted: PaperTable, results: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """Ways of decoding that some row has; "hard" stands for a system that has one way alone."""
    found = {
        way
        for row in wanted.rows
        for result in results.get(row.system, {}).values()
        for scores in result["scores"].values()
        for way in scores
    }
    return ["hard", "soft"] if "hard" in found else ["full"]


def _rate(output: Path, system: str, of_seeds: dict[int, Any], split: str, way: str, unit: str) -> str:
    heard = []
    for seed, result in of_seeds.items():
        scores = result["scores"].get(split, {})
        if "full" in scores and way == "soft":
            return "-"
        chosen = "full" if "full" in scores else way
        if chosen in scores:
            heard.append(Hypotheses.read(output / f"{system}-seed{seed}" / split / f"{chosen}.jsonl"))
    return mean_rate(heard, unit) if heard else NOT_RUN


def _cost(wanted: PaperTable, results: dict[str, dict[int, dict[str, Any]]], splits: Sequence[str]) -> str:
    """What each row cost, of its first seed."""
    rows = []
    for row in wanted.rows:
        if row.system not in results:
            rows.append([row.name, *[NOT_RUN] * 6])
            continue
        result = next(iter(results[row.system].values()))
        cpu, speed = result["cpu_minutes"], result["trained_seconds_per_second"]
        factor = result["real_time_factor"].get(splits[-1])
        rows.append(
            [
                row.name,
                f"{result['parameters']:,}",
                f"{result['steps']:,}",
                f"{result['minutes']:.1f}",
                "-" if cpu is None else f"{cpu:.1f}",
                "-" if speed is None else f"{speed:.0f}",
                "-" if factor is None else f"{factor:.3f}",
            ]
        )
    header = ["system", "parameters", "steps", "minutes", "CPU-minutes", "audio seconds trained a second"]
    note = (
        f"Real-time factor: processor seconds for a second of {splits[-1]}. CPU-minutes are not known for a cell in "
        "several parts."
    )
    return table([*header, "real-time factor"], rows) + "\n\n" + note

"""The paper's Tables II to V with our figures beside the paper's, as Markdown."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.real_speech.grid_cell import RESULT
from experiments.real_speech.grid_table import NOT_RUN, UNITS, Hypotheses, mean_rate, table

WAYS = {"full": "", "hard": ", hard", "soft": ", soft"}


@dataclass(frozen=True)
class Row:
    """A system in a table, and the paper's figures for it."""

    system: str
    name: str
    paper: tuple[str, ...]


@dataclass(frozen=True)
class PaperTable:
    """columns: the paper's; note: on what is not like for like."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str


_NOT_ALIKE = (
    "The paper's rows are not like for like, so none is claimed to be reproduced. Its RNN-T row equals that of a "
    "public repository with a 5-gram language model, and SA-T's abstract gives the same pair of figures, so probably "
    "with one. Its figures of wav2letter (9.5) and Jasper (9.9) are not those of their papers on the same sets. "
    "Explicit Sparse, Factorized and Combiner are not systems of speech recognition in their own papers, and how they "
    "were set up is not known. Here all are trained alike."
)
TABLES = {
    "II": PaperTable(
        "Table II",
        ("WSJ eval93, WER",),
        (
            Row("transformer", "Transformer", ("9.39",)),
            Row("wav2letter", "wav2letter", ("9.5",)),
            Row("jasper", "Jasper", ("9.9",)),
            Row("explicit_sparse", "Explicit Sparse Transformer", ("12.98",)),
            Row("factorized", "Factorized Attention Transformer", ("8.97",)),
            Row("combiner", "Combiner (stand-in)", ("9.32",)),
            Row("proposed", "proposed", ("8.22",)),
        ),
        _NOT_ALIKE,
    ),
    "III": PaperTable(
        "Table III",
        ("AISHELL-1 dev, CER", "test, CER"),
        (
            Row("transformer", "Transformer", ("8.47", "9.32")),
            Row("rnn_t", "RNN-T", ("10.13", "11.82")),
            Row("las", "LAS", ("-", "10.56")),
            Row("sa_t", "SA-T", ("8.30", "9.30")),
            Row("sync_transformer", "Sync-Transformer", ("7.91", "8.91")),
            Row("proposed", "proposed", ("7.58", "8.40")),
        ),
        _NOT_ALIKE,
    ),
    "IV": PaperTable(
        "Table IV",
        ("LibriSpeech dev-clean, WER", "dev", "test-clean", "test"),
        (
            Row("proposed-softmax", "softmax", ("3.64", "11.89", "3.86", "11.95")),
            Row("proposed-sparsemax", "sparsemax", ("3.88", "12.01", "4.00", "12.19")),
            Row("proposed-entmax15", "1.5-entmax", ("3.48", "10.43", "3.79", "11.76")),
            Row("proposed", "α-entmax", ("3.36", "10.29", "3.70", "11.64")),
        ),
        "The columns dev and test are dev-other and test-other, as we read them. Cross-attention is monotonic in all.",
    ),
    "V": PaperTable(
        "Table V",
        ("AISHELL-1 test, CER", "WSJ eval93, WER"),
        (
            Row("proposed-softmax", "softmax, with L1", ("9.00", "9.36")),
            Row("proposed-softmax-without-l1", "softmax, without", ("9.29", "9.43")),
            Row("proposed-sparsemax", "sparsemax, with L1", ("9.13", "9.45")),
            Row("proposed-sparsemax-without-l1", "sparsemax, without", ("9.32", "9.47")),
            Row("proposed", "α-entmax, with L1", ("8.49", "8.37")),
            Row("proposed-without-l1", "α-entmax, without", ("8.50", "8.35")),
        ),
        "The paper gives no formula of its L1 term; ours is a gate for each head of the first two monotonic layers.",
    ),
}


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

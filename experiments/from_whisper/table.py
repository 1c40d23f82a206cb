"""The study's tables, as Markdown: error rates with intervals, tests between cells, heads, stops, cost."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.from_whisper.arms import PEERS, READINGS, TRANSFORMS
from experiments.from_whisper.cell import Cell
from experiments.real_speech.grid_cell import RESULT
from experiments.real_speech.grid_table import Hypotheses, p_value

from hf_entmax_asr.metrics import bootstrap_difference, bootstrap_interval

WAYS = ("full", "hard", "soft")
FIELDS = [field.name for field in dataclasses.fields(Cell)]


def finished(output: Path) -> dict[str, dict[str, Any]]:
    """Results by name: the peers, then the cells in the order of the table."""
    found = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(output.glob(f"*/{RESULT}"))
    }
    peers = {name: found[name] for name in PEERS if name in found}
    cells = {
        Cell(**{key: result[key] for key in FIELDS}): result for name, result in found.items() if name not in peers
    }
    order = sorted(
        cells, key=lambda c: (list(READINGS).index(c.reading), TRANSFORMS.index(c.transform), c.data != "first", c.seed)
    )
    return peers | {cell.name: cells[cell] for cell in order}


def is_runaway(reference: str, hypothesis: str) -> bool:
    """Whether the decoder did not find its end."""
    return len(hypothesis.split()) > 2 * len(reference.split()) + 4


def render(output: Path, title: str) -> str:
    """The whole report."""
    results = finished(output)
    if not results:
        return f"# {title}\n\nNo cell is finished.\n"
    heard = {
        (name, way): Hypotheses.read(output / name / f"{way}.jsonl")
        for name in results
        for way in WAYS
        if (output / name / f"{way}.jsonl").is_file()
    }
    parts = [f"# {title}", _rates(results, heard), _comparisons(heard), _heads(results)]
    if stops := _stops(results):
        parts.append(stops)
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rates(results: dict[str, dict[str, Any]], heard: dict[tuple[str, str], Hypotheses]) -> str:
    rows = []
    for (name, way), found in heard.items():
        rates = []
        for unit in ("word", "character"):
            interval = bootstrap_interval(found.errors(unit), found.lengths(unit))
            rates.append(f"{100 * interval.rate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]")
        pairs = zip(found.references, found.texts, strict=True)
        runaways = sum(is_runaway(reference, text) for reference, text in pairs)
        result = results[name]
        steps, minutes = result.get("steps"), result.get("cpu_minutes")
        rows.append(
            [
                PEERS.get(name, name),
                way,
                *rates,
                str(runaways),
                "-" if steps is None else f"{steps:,}",
                "-" if minutes is None else f"{minutes:.1f}",
                f"{result['cpu_seconds_per_utterance']:.3f}",
            ]
        )
    header = ["cell", "reading", "WER", "CER", "runaways", "steps", "CPU-minutes", "CPU-seconds an utterance"]
    note = (
        "Percent [95 % interval, bootstrap over utterances]; greedy. A runaway has more than twice the words of its "
        "reference and four. CPU-minutes of training are unknown for a cell in several parts."
    )
    return _table(header, rows) + "\n\n" + note


def _comparisons(heard: dict[tuple[str, str], Hypotheses]) -> str:
    """α-entmax against softmax, each reading against full, hard against soft; same seed and data."""
    pairs = []
    for name, way in heard:
        if name in PEERS:
            if ("whisper", "full") in heard and name != "whisper":
                pairs.append(((name, way), ("whisper", "full")))
            continue
        transform, rest = name.split("-", 1)
        reading, seed = rest.split("-", 1)
        others = [(f"softmax-{rest}", way)] if transform == "entmax" else []
        others += [(f"{transform}-full-{seed}", "full")] if reading != "full" else []
        others += [(name, "soft")] if way == "hard" else []
        others += [(f"{transform}-{reading}-{seed.replace('both-', '')}", way)] if "both-" in seed else []
        pairs += [((name, way), other) for other in others if other in heard]
    rows = []
    for first, second in pairs:
        a, b = heard[first], heard[second]
        if (a.ids, a.references) != (b.ids, b.references):
            continue
        difference = bootstrap_difference(a.errors("word"), b.errors("word"), a.lengths("word"))
        rows.append(
            [
                " ".join(first),
                " ".join(second),
                f"{100 * difference.difference:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]",
                p_value(a, b),
            ]
        )
    if not rows:
        return "No two cells to compare."
    note = (
        "Points of WER with 95 % intervals (paired bootstrap); p of the matched-pair test, * on fewer than 50 segments."
    )
    return _table(["first", "second", "first − second", "p"], rows) + "\n\n" + note


def _heads(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, result in results.items():
        if "heads" not in result:
            continue
        row = [name, f"{result['parameters']:,}"]
        for side in ("encoder", "decoder"):
            heads = [values for module, values in result["heads"].items() if module.startswith(side)]
            alphas = [alpha for values in heads for alpha in values["alpha"]]
            zeros = [share for values in heads for share in values["zero_share"]]
            row.append(f"{min(alphas):.2f} to {max(alphas):.2f}" if alphas else "-")
            row.append(f"{100 * sum(zeros) / len(zeros):.0f} %")
        rows.append(row)
    header = ["cell", "parameters", "α, encoder", "zeros, encoder", "α, decoder", "zeros, decoder"]
    return (
        _table(header, rows)
        + "\n\nZeros: self-attention weights that are exactly 0 on the test split, mean over heads."
    )


def _stops(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, result in results.items():
        if (stops := result.get("stops")) is None:
            continue
        numbers = [
            f"{stops[f'{who}_{what}']:.2f}" for who in ("last_head", "mean_head") for what in ("mean", "median", "p90")
        ]
        rows.append([name, *numbers, f"{100 * stops['share_at_last_position']:.0f} %", f"{stops['tokens']:,}"])
    if not rows:
        return ""
    header = ["cell", *(f"{who}, {what}" for who in ("last head", "mean head") for what in ("mean", "median", "90 %"))]
    note = (
        "Seconds from a token's end (forced alignment) to the stop of its last head, which its text waits for, and to "
        "the mean of its heads; the decoder reads the reference. Ends of sentences are not counted."
    )
    return _table([*header, "at the last position", "tokens"], rows) + "\n\n" + note

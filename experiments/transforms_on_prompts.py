#!/usr/bin/env python
"""The demo's model with each transform in its self-attention, same data, steps and seed: errors and exact zeros.

The budget is counted in steps, not minutes, so that the load of the machine does not decide.

    python -m experiments.transforms_on_prompts --output runs/transforms

Prints a Markdown table for benchmarks/RESULTS.md. A transform whose report.json is already there is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET = ["schedule.max_steps=1200", "schedule.max_minutes=null", "evaluation.every_minutes=null"]
TRANSFORMS = ("softmax", "sparsemax", "entmax15", "entmax")


def run(transform: str, output: Path, overrides: list[str]) -> dict:
    """The report of one demo run, on one core."""
    folder = output / transform
    if not (folder / "report.json").exists():
        settings = [f"model.encoder_transform={transform}", f"model.decoder_transform={transform}", *BUDGET, *overrides]
        command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--output", str(folder)]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([*command, "--set", *settings], check=True, stdout=log, stderr=log, env=environment)
    return json.loads((folder / "report.json").read_text())


def table(reports: dict[str, dict]) -> str:
    """One row a transform."""
    lines = [
        "| transform | WER hard | WER soft | WER held-out prompts (hard) | exact zeros, encoder |",
        "|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        test, prompts = report["test"], report["heldout_prompts"]
        lines.append(
            f"| {name} | {test['hard']['wer']:.1f} | {test['soft']['wer']:.1f} | {prompts['hard']['wer']:.1f} | "
            f"{100 * report['encoder_zero_share']:.0f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "transforms", help="folder of the runs")
    parser.add_argument("--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="override recipe values")
    parser.add_argument("--side-by-side", type=int, default=2, help="runs at a time, one core each")
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.side_by_side) as pool:
        reports = dict(
            zip(TRANSFORMS, pool.map(lambda name: run(name, arguments.output, arguments.set), TRANSFORMS), strict=True)
        )
    print(table(reports))


if __name__ == "__main__":
    main()

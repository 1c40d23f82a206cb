#!/usr/bin/env python
"""The paper's Table I on a corpus of yours: each transform, with full and with monotonic cross-attention.

    python -m experiments.real_speech.build_corpus
    python -m experiments.real_speech.grid --output runs/real_speech --background
    python -m experiments.real_speech.grid --output runs/real_speech --table-only

    python -m experiments.real_speech.grid --data DATA --recipe scripts/recipes/paper_base.yaml --test-split test \\
        --steps 100000 --seeds 0 1 2 --output runs/table_one

DATA is whatever scripts/train.py takes. All cells have the same recipe and budget, which is minutes (--minutes), steps
(--steps) or the recipe's. Cells run one after another; those that are finished are not run again, one that was stopped
goes on from its checkpoint. OUTPUT has a folder a cell (log, checkpoints, hypotheses, cell.json) and table.md: error
rates with confidence intervals beside the paper's, matched-pair tests, α and exact zeros. A cell not run says so.
"""

import argparse
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.real_speech.cache_folders import default_folder
from experiments.real_speech.grid_options import CROSS_ATTENTIONS, RECIPES, TRANSFORMS, add_cell_options


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the grid")
    parser.add_argument(
        "--data", default=str(default_folder()), help="the corpus (default: %(default)s, made by build_corpus.py)"
    )
    parser.add_argument("--recipe", type=Path, default=RECIPES / "real_speech.yaml", help="(default: %(default)s)")
    parser.add_argument("--transforms", nargs="+", choices=TRANSFORMS, default=list(TRANSFORMS), help="(default: all)")
    parser.add_argument(
        "--cross-attentions",
        nargs="+",
        choices=CROSS_ATTENTIONS,
        default=list(CROSS_ATTENTIONS),
        help="(default: both)",
    )
    parser.add_argument("--test-split", default="test", help="what is recognised at the end (default: %(default)s)")
    add_cell_options(parser)
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from experiments.real_speech.grid_cell import Cell, CellError, Plan, run_cell
from experiments.real_speech.grid_table import Grid, render
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.recognition import DataError
from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training import RecipeError, load_recipe

LOG = "grid.log"


def planned(arguments: argparse.Namespace) -> tuple[Plan, list[Cell]]:
    """What is to be done; cells of one seed first, so that a whole table is there early."""
    overrides = [f"data.path={Path(arguments.data).absolute()}", *arguments.set, *budget(arguments)]
    plan = Plan(
        arguments.recipe,
        tuple(overrides),
        arguments.output,
        arguments.test_split,
        arguments.num_beams,
        arguments.threads,
    )
    cells = [Cell(t, c, s) for s in arguments.seeds for t in arguments.transforms for c in arguments.cross_attentions]
    return plan, cells


def budget(arguments: argparse.Namespace) -> list[str]:
    """Overrides of the recipe's budget by --minutes, --cpu-minutes or --steps."""
    if arguments.minutes is not None:
        return [f"schedule.max_minutes={arguments.minutes}", "schedule.max_steps=null"]
    if arguments.cpu_minutes is not None:
        return [f"schedule.max_minutes={arguments.cpu_minutes}", "schedule.clock=cpu", "schedule.max_steps=null"]
    if arguments.steps is not None:
        return [f"schedule.max_steps={arguments.steps}", "schedule.max_minutes=null"]
    return []


def run(plan: Plan, cells: list[Cell]) -> dict[str, str]:
    """Run the cells; returns the reasons of those that failed."""
    recipes = {cell: load_recipe(plan.recipe, [*plan.overrides, *cell.overrides()]) for cell in cells}
    failed = {}
    for number, cell in enumerate(cells, 1):
        print(f"{time.strftime('%H:%M:%S')} cell {number} of {len(cells)}: {cell.name}", flush=True)
        try:
            result = run_cell(cell, recipes[cell], plan)
        except (CellError, CheckpointError, DataError) as error:
            failed[cell.name] = str(error)
            print(f"  failed: {error}", flush=True)
            continue
        scores = ", ".join(f"{way} WER {s['wer']:.1f} %, CER {s['cer']:.1f} %" for way, s in result["scores"].items())
        print(f"  {result['steps']:,} steps in {result['minutes']:.1f} minutes: {scores}", flush=True)
    return failed


def start_in_background(
    words: list[str], output: Path, module: str = "experiments.real_speech.grid"
) -> subprocess.Popen:
    """Start this program again, or another that has the option, apart from the terminal."""
    output.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        module,
        *(word for word in words if word != "--background"),
    ]
    with (output / LOG).open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd=Path.cwd()
        )


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    arguments = parse(words)
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        if arguments.background and not arguments.table_only:
            process = start_in_background(words, arguments.output)
            log = arguments.output / LOG
            print(f"started as process {process.pid}; follow it in {log}, stop it with: kill {process.pid}")
            return 0
        plan, cells = planned(arguments)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cell saves a checkpoint then as on Ctrl-C
        failed = {} if arguments.table_only else run(plan, cells)
        title = f"{Path(arguments.data).name}: {arguments.test_split}, recipe {arguments.recipe.stem}"
        report = render(Grid(arguments.output), title, failed)
    except (RecipeError, CellError) as error:
        print(f"grid.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    write_text_atomically(arguments.output / "table.md", report)
    print(report, end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

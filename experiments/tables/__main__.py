#!/usr/bin/env python
"""The paper's tables on a corpus of yours, every system trained alike.

    python -m experiments.tables --table III --data DATA --minutes 15 --output runs/tables
    python -m experiments.tables --table II --data WSJ --corpus wsj --test-splits test_eval93 --size published \\
        --recipe scripts/recipes/wsj_paper.yaml --seeds 0 1 2 --num-beams 5 --output runs/wsj_tables
    python -m experiments.tables --table III --output runs/tables --table-only

DATA is whatever scripts/train.py takes. The recipe gives everything but the model: data, batches, optimiser, budget.
Cells run one after another; those that are finished are not run again, one that was stopped goes on from its
checkpoint, and tables in one OUTPUT share cells. OUTPUT has a folder a cell (log, checkpoints, hypotheses, cell.json)
and table_X.md. Table I is that of experiments.real_speech.grid, in OUTPUT/table_I.
"""

import argparse
import logging
import signal
import sys
import time
from pathlib import Path

from experiments.real_speech.cache_folders import default_folder
from experiments.real_speech.grid_options import RECIPES, add_cell_options
from experiments.tables.paper import SIZES, TABLES
from scripts.program_options import corpora


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--table", choices=("I", *TABLES), required=True, help="which of the paper's tables")
    parser.add_argument("--output", type=Path, required=True, help="folder of the cells and the tables")
    parser.add_argument("--data", default=str(default_folder()), help="the corpus (default: %(default)s)")
    parser.add_argument("--corpus", choices=corpora(), default="folder", help="its form (default: %(default)s)")
    parser.add_argument(
        "--recipe", type=Path, default=RECIPES / "real_speech.yaml", help="of the training (default: %(default)s)"
    )
    parser.add_argument("--size", choices=SIZES, default="small", help="of the models of II to V (default: small)")
    parser.add_argument("--systems", nargs="+", help="rows to run, by their keys (default: all of the table)")
    parser.add_argument("--test-splits", nargs="+", default=["test"], help="what is recognised (default: test)")
    add_cell_options(parser)
    arguments = parser.parse_args(words)
    if arguments.table != "I" and arguments.systems:
        known = [row.system for row in TABLES[arguments.table].rows]
        if unknown := [name for name in arguments.systems if name not in known]:
            parser.error(f"--systems: {unknown[0]} is no row of table {arguments.table}; it has {', '.join(known)}")
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from experiments.real_speech import grid
from experiments.real_speech.grid_cell import CellError
from experiments.tables.cell import Cell, TablePlan, run_cell
from experiments.tables.report import render
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.recognition import CheckpointError, DataError
from hf_entmax_asr.training import RecipeError


def table_one(arguments: argparse.Namespace) -> int:
    """Table I by its own program."""
    words = ["--output", arguments.output / "table_I", "--data", arguments.data, "--recipe", arguments.recipe]
    words += ["--seeds", *arguments.seeds, "--threads", arguments.threads, "--num-beams", arguments.num_beams]
    words += ["--test-split", arguments.test_splits[0], "--set", f"data.corpus={arguments.corpus}", *arguments.set]
    for option in ("minutes", "cpu_minutes", "steps"):
        if (value := getattr(arguments, option)) is not None:
            words += [f"--{option.replace('_', '-')}", value]
    words += ["--table-only"] * arguments.table_only
    return grid.main([str(word) for word in words])


def planned(arguments: argparse.Namespace) -> tuple[TablePlan, list[Cell]]:
    """What is to be done; cells of one seed first, so that a whole table is there early."""
    overrides = [f"data.path={Path(arguments.data).absolute()}", f"data.corpus={arguments.corpus}", *arguments.set]
    overrides += grid.budget(arguments)
    plan = TablePlan(
        arguments.recipe,
        tuple(overrides),
        arguments.output,
        "+".join(arguments.test_splits),
        arguments.num_beams,
        arguments.threads,
        arguments.size,
    )
    rows = [row.system for row in TABLES[arguments.table].rows]
    chosen = [name for name in rows if name in (arguments.systems or rows)]
    return plan, [Cell(system, seed) for seed in arguments.seeds for system in chosen]


def run(plan: TablePlan, cells: list[Cell]) -> dict[str, str]:
    """Run the cells; returns the reasons of those that failed."""
    for cell in cells:
        plan.recipe_of(cell)  # that one is impossible is known now, not after hours
    failed = {}
    for number, cell in enumerate(cells, 1):
        print(f"{time.strftime('%H:%M:%S')} cell {number} of {len(cells)}: {cell.name}", flush=True)
        try:
            result = run_cell(cell, plan)
        except (CellError, CheckpointError, DataError) as error:
            failed[cell.name] = str(error)
            print(f"  failed: {error}", flush=True)
            continue
        for split, ways in result["scores"].items():
            scores = ", ".join(f"{way} WER {s['wer']:.1f} %, CER {s['cer']:.1f} %" for way, s in ways.items())
            print(f"  {split}: {scores}", flush=True)
    return failed


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    arguments = parse(words)
    if arguments.background and not arguments.table_only:
        process = grid.start_in_background(words, arguments.output, "experiments.tables")
        print(f"started as process {process.pid}; follow it in {arguments.output / grid.LOG}")
        return 0
    if arguments.table == "I":
        return table_one(arguments)
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        plan, cells = planned(arguments)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cell saves a checkpoint then as on Ctrl-C
        failed = {} if arguments.table_only else run(plan, cells)
        title = f"{Path(arguments.data).name}, recipe {arguments.recipe.stem}, {arguments.size} models"
        report = render(arguments.table, arguments.output, arguments.test_splits, title, failed)
    except (RecipeError, CellError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    write_text_atomically(arguments.output / f"table_{arguments.table}.md", report)
    print(report, end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

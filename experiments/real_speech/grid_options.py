"""What the options of studies share, and the rows and columns of the grid, which its options choose from.

The standard library alone: a program reads its options before it imports what takes seconds.
"""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "scripts" / "recipes"

# Name of the row -> what self-attention in encoder and decoder is, and the temperature (of every softmax in the model,
# so of full cross-attention too).
TRANSFORMS = {
    "softmax": ("softmax", 1.0),
    "softmax-T0.5": ("softmax", 0.5),
    "sparsemax": ("sparsemax", 1.0),
    "entmax15": ("entmax15", 1.0),
    "entmax": ("entmax", 1.0),
}
CROSS_ATTENTIONS = ("full", "monotonic")


def add_cell_options(parser: argparse.ArgumentParser) -> None:
    """Seeds, budget and course of cells, of whatever these are."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="of training, a cell; by default the recipe's budget")
    budget.add_argument("--cpu-minutes", type=float, help="the same in processor time, whatever else the machine does")
    budget.add_argument("--steps", type=int, help="of training, a cell")
    parser.add_argument("--threads", type=int, default=2, help="of a cell, on the CPU (default: %(default)s)")
    parser.add_argument("--num-beams", type=int, default=1, help="in recognition (default: 1, greedy)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", action="extend", help="override recipe values"
    )
    parser.add_argument(
        "--background", action="store_true", help="go on when the terminal closes; log in OUTPUT/grid.log"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing: the table of what is there")

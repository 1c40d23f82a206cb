"""The options that the programs here share.

The standard library alone: a program reads its options before it imports torch, which takes seconds.
"""

import argparse


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the options of every program here that measures with several numbers of threads."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure with")
    made.add_argument("--rounds", type=int, default=15, help="how often each contestant runs")
    return made


def add_model_options(options: argparse.ArgumentParser) -> None:
    """The size of models of the paper, and of what they are given."""
    options.add_argument("--frames", type=int, default=1000)
    options.add_argument("--tokens", type=int, default=60)
    options.add_argument("--set", nargs="+", default=[], metavar="NAME=NUMBER", help="sizes in place of the paper's")

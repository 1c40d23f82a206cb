#!/usr/bin/env python
"""Damaged inputs of every kind, each given to the program that reads it, and what becomes of them.

    python -m experiments.damaged_inputs --cases 24 --output /tmp/damaged
    python -m experiments.damaged_inputs --kinds config.json --first 7 --cases 1 --show

Good inputs (a small corpus, a run of one step, its checkpoint, labels, a language model, …) are made once in OUTPUT.
Each case is drawn from the name of its kind and its number, so that it can be run again alone. The programs run in
forked children of this process, with 4 GB more than is mapped already, and for --seconds at most. Printed are the bad
cases and a table of kinds and outcomes:

    accepted                 the input may still be good
    refused well             status not 0, the last line names the file, nothing half-written
    accepted though broken, refused unclearly, half-written, traceback, killed by a signal, hang: bad

The exit status says whether there was a bad one.
"""

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=24, help="of each kind (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: %(default)s)")
    parser.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="(default: all; a wrong one is answered with their names)"
    )
    parser.add_argument("--output", type=Path, default=Path("/tmp/damaged_inputs"), help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for one case (default: %(default)s)")
    parser.add_argument("--accepted", action="store_true", help="list also what was accepted")
    parser.add_argument("--show", action="store_true", help="print what the program said")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

# Read when the libraries are imported: children are forked of a process with one thread, and ask no Hub.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

import av  # noqa: F401  (what children would import, each of them)
import jiwer  # noqa: F401
import torch
from experiments.damaged_inputs.damages import Done
from experiments.damaged_inputs.good_inputs import LAST_MADE, Call, write_good_inputs
from experiments.damaged_inputs.kinds import KINDS, Kind
from experiments.damaged_inputs.trials import ACCEPTED, BAD, OUTCOMES, Ran, judge, load_program, run, snapshot

from hf_entmax_asr.recognition import load_recogniser


class Bench:
    """Good inputs in a folder, the programs, and room for one case at a time."""

    def __init__(
        self, root: Path, seconds: float, make: Callable[[Path, Call], None] = write_good_inputs, last: str = LAST_MADE
    ) -> None:
        self.root, self.seconds = root, seconds
        self.good, self.case, self.made, self.said = (root / name for name in ("good", "case", "made", "said"))
        self.said.mkdir(parents=True, exist_ok=True)
        self.programs: dict[str, ModuleType] = {}
        os.environ["HF_DATASETS_CACHE"] = str(root / "datasets")
        if not (self.good / last).exists():
            shutil.rmtree(self.good, ignore_errors=True)
            self.good.mkdir()
            make(self.good, self.call)
        if (self.good / "checkpoint").exists():
            load_recogniser(self.good / "checkpoint", "cpu")  # what it imports, every child has then

    def run(self, program: str, words: list[str]) -> Ran:
        if program not in self.programs:
            self.programs[program] = load_program(program)
        return run(self.programs[program], words, self.said, self.seconds)

    def call(self, program: str, *words: object) -> None:
        """Run a program over good inputs."""
        ran = self.run(program, [str(word) for word in words])
        if ran.status != 0:
            raise RuntimeError(f"{program} failed over good inputs:\n{ran.err}")

    def words(self, kind: Kind) -> list[str]:
        """The arguments of the kind's command, with what is copied in place of the good input."""
        copied = kind.file.split("/")[0]

        def placed(word: str) -> str:
            before, at, name = word.partition("@")
            if not at:
                return word
            if name.startswith("@"):
                return f"{before}{self.made / name[1:]}"
            return f"{before}{(self.case if name.split('/')[0] == copied else self.good) / name}"

        return [placed(word) for word in kind.command[1:]]

    def prepare(self, kind: Kind) -> Path:
        """A copy of what holds the kind's file, alone; the file's path in it."""
        for folder in (self.case, self.made):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        copied = kind.file.split("/")[0]
        source = self.good / copied
        if source.is_dir():
            shutil.copytree(source, self.case / copied, symlinks=True)
        else:
            shutil.copy(source, self.case / copied)
        return self.case / kind.file

    def try_case(self, kind: Kind, number: int) -> tuple[str, Done, Ran]:
        """Damage the kind's file, run its command, judge what came of it. Number −1: without damage."""
        file = self.prepare(kind)
        done = Done("nothing")
        if number >= 0:
            done = kind.damages[number % len(kind.damages)](file, Random(f"{kind.name} {number}"))
            if kind.may_be_empty and file.is_file() and not file.stat().st_size:
                done = Done(done.what, broken=False)
            elif kind.parse is not None and file.is_file():
                try:
                    kind.parse(file)
                except Exception:
                    done = Done(done.what, broken=True)
        before = snapshot(self.case, self.made)
        ran = self.run(kind.command[0], self.words(kind))
        untouched = snapshot(self.case, self.made) == before
        if ran.status == 1 and kind.accepts_with and kind.accepts_with in ran.err:
            ran = ran._replace(status=0)
        return judge(ran, (file.name, *kind.names), done.broken, untouched), done, ran


def table(counts: dict[str, Counter[str]]) -> str:
    """Kinds and outcomes in Markdown; outcomes that nothing had are left out but for the good ones."""
    shown = [outcome for outcome in OUTCOMES if outcome not in BAD or any(c[outcome] for c in counts.values())]
    lines = [f"| kind | cases | {' | '.join(shown)} |", "|---|" + "---:|" * (len(shown) + 1)]
    total = sum(counts.values(), Counter[str]())
    for name, count in (*counts.items(), ("all", total)):
        lines.append(f"| {name} | {count.total()} | {' | '.join(str(count[outcome]) for outcome in shown)} |")
    return "\n".join(lines)


def main() -> int:
    arguments = parse()
    kinds = arguments.kinds or list(KINDS)
    if unknown := [name for name in kinds if name not in KINDS]:
        print(f"damaged_inputs: no kind {unknown[0]!r}; there are {', '.join(KINDS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    bench = Bench(arguments.output, arguments.seconds)
    counts: dict[str, Counter[str]] = {}
    for name in kinds:
        kind, counts[name] = KINDS[name], Counter[str]()
        outcome, _, ran = bench.try_case(kind, -1)
        if outcome != ACCEPTED:
            print(f"{name}: the input without damage was {outcome}: {ran.err}", flush=True)
            counts[name][outcome] += 1
            continue
        for number in range(arguments.first, arguments.first + arguments.cases):
            outcome, done, ran = bench.try_case(kind, number)
            counts[name][outcome] += 1
            if outcome in BAD or (arguments.accepted and outcome == ACCEPTED) or arguments.show:
                last = next((line for line in reversed(ran.err.splitlines()) if line.strip()), "")
                print(f"{name} {number}: {outcome} ({ran.seconds:.1f} s): {done.what}: {last[:200]}", flush=True)
            if arguments.show:
                print(ran.out + ran.err)
    print(table(counts))
    return 1 if any(count[outcome] for count in counts.values() for outcome in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())

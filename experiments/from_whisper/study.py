#!/usr/bin/env python
"""What sparse and monotonic attention costs or brings on free speech, from one pretrained start.

    python -m experiments.real_speech.whisper_weights tiny.en --output weights/tiny.en
    python -m experiments.real_speech.build_corpus --output DATA
    python -m experiments.real_speech.word_times --data DATA --output words
    python -m experiments.from_whisper.study weights/tiny.en --data DATA --words words/test.ctm --output runs/study
    python -m experiments.from_whisper.study … the same … --seeds 1 --readings full single

A cell is softmax or calibrated α-entmax, with one way of reading the audio: full cross-attention, infinite lookback,
MoChA (w = 16) or single positions. All have the recipe whisper_finetune.yaml, the same steps and the same corpus;
monotonic ones have the head penalty "reference", with word times from the converted Whisper's own cross-attention.
--both trains on a second corpus too (--second-data). --peers adds Whisper itself, untouched and fine-tuned in
transformers, with its 30 s windows. Cells run one after another; what is done is kept, what was stopped goes on. OUTPUT
gets a folder a cell (log, checkpoints, hypotheses, cell.json) and table.md.
"""

import argparse
import logging
import signal
import sys
import time
from pathlib import Path

from experiments.from_whisper.arms import PEERS, READINGS, TRANSFORMS
from experiments.real_speech.cache_folders import default_folder


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("whisper", help="a Whisper of transformers' format: a folder or a Hub name")
    parser.add_argument("--data", type=Path, default=default_folder(), help="the corpus (default: %(default)s)")
    parser.add_argument("--second-data", type=Path, help="another corpus, for --both")
    parser.add_argument("--words", type=Path, help="CTM file of the test split, for the delays of stops")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--transforms", nargs="+", choices=TRANSFORMS, default=list(TRANSFORMS))
    parser.add_argument("--readings", nargs="+", choices=tuple(READINGS), default=list(READINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    parser.add_argument("--both", action="store_true", help="train these cells on both corpora")
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS), default=[], help="run these too")
    parser.add_argument("--steps", type=int, default=400, help="of training, a cell (default: %(default)s)")
    parser.add_argument("--test-split", default="test", help="what is recognised (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of a cell, on the CPU (default: %(default)s)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", action="extend", help="override recipe values"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing: the table of what is there")
    arguments = parser.parse_args(words)
    if arguments.both and arguments.second_data is None:
        parser.error("--both needs --second-data")
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from experiments.from_whisper.cell import Cell, Plan, run_cell
from experiments.from_whisper.joined_corpus import join_corpora
from experiments.from_whisper.peers import run_peer
from experiments.from_whisper.table import render
from experiments.real_speech.grid_cell import CellError
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.recognition import CheckpointError, DataError
from hf_entmax_asr.training import RecipeError


def run(arguments: argparse.Namespace) -> dict[str, str]:
    """Run what is asked for; returns the reasons of what failed."""
    both = None
    if arguments.both:
        both = join_corpora([arguments.data, arguments.second_data], arguments.output / "both")
    plan = Plan(
        arguments.whisper,
        arguments.data,
        both,
        arguments.output,
        arguments.steps,
        tuple(arguments.set),
        arguments.words,
        arguments.test_split,
        arguments.threads,
    )
    failed = {}
    cells = [
        Cell(transform, reading, seed, "both" if arguments.both else "first")
        for seed in arguments.seeds
        for reading in arguments.readings
        for transform in arguments.transforms
    ]
    for name, job in [
        *((cell.name, lambda cell=cell: run_cell(cell, plan)) for cell in cells),
        *((name, lambda name=name: run_peer(name, plan)) for name in arguments.peers),
    ]:
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        try:
            result = job()
        except (CellError, CheckpointError, DataError, ValueError) as error:
            failed[name] = str(error)
            print(f"  failed: {error}", flush=True)
            continue
        print("  " + ", ".join(f"{way} WER {s['wer']:.1f} %" for way, s in result["scores"].items()), flush=True)
    return failed


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cell saves a checkpoint then as on Ctrl-C
    try:
        failed = {} if arguments.table_only else run(arguments)
        report = render(arguments.output, f"{arguments.data.name}: {arguments.test_split}, from {arguments.whisper}")
    except (RecipeError, CellError, DataError) as error:
        print(f"study.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    write_text_atomically(arguments.output / "table.md", report)
    print(report, end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Remove heads of a trained recogniser for good: a smaller checkpoint that decodes faster.

    python scripts/prune.py runs/demo/best --out runs/pruned
    python scripts/prune.py runs/demo/best --out runs/pruned --heads encoder.layers.0.self_attn:1,3
    python scripts/prune.py runs/demo/best --out runs/pruned --redundant 4 --analysis report/analysis.json
    python scripts/prune.py runs/demo/best --out runs/pruned --waited-for 2 --analysis report/analysis.json

CHECKPOINT is a folder or a Hub repository. Heads whose gate training brought to exactly 0 always go, and the outputs
stay the same. Besides them go those named by --heads and those that an analysis of the checkpoint (scripts/analyze.py)
singles out: with --redundant so many heads of the encoder that attend most like another head of their layer, with
--waited-for so many monotonic heads that are most often the last to stop for a token. Without those the model is
another one: score it, and train it further if need be (scripts/train.py --set start_from=OUT).
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any


def module_and_heads(text: str) -> tuple[str, set[int]]:
    """Heads given as MODULE:0,2."""
    module, _, heads = text.partition(":")
    if not all(head.isdecimal() for head in heads.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} must be of the form encoder.layers.0.self_attn:1,3")
    return module, set(map(int, heads.split(",")))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new checkpoint; must not exist")
    parser.add_argument(
        "--heads", nargs="+", type=module_and_heads, default=[], metavar="MODULE:HEAD,HEAD", action="extend"
    )
    parser.add_argument("--redundant", type=int, metavar="N", help="so many encoder heads that resemble others")
    parser.add_argument("--waited-for", type=int, metavar="N", help="so many monotonic heads that decoding waits for")
    parser.add_argument("--analysis", type=Path, help="analysis.json of the checkpoint; needed for these two")
    arguments = parser.parse_args()
    for option in ("redundant", "waited_for"):
        if getattr(arguments, option) is not None and arguments.analysis is None:
            name = option.replace("_", "-")
            parser.error(f"--{name} needs --analysis REPORT/analysis.json, which scripts/analyze.py makes")
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import atomic_folder, check_folder_writable, write_text_atomically
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.recognition.derived_card import derived_card
from hf_entmax_asr.recognition.surgery import (
    Removed,
    attention_modules,
    gated_off,
    load_matching_analysis,
    most_redundant_heads,
    most_waited_for_heads,
    remove_heads,
)


def heads_named(pairs: list[tuple[str, set[int]]]) -> Removed:
    """The heads of each module, which may be named more than once."""
    removed: Removed = {}
    for module, heads in pairs:
        removed.setdefault(module, set()).update(heads)
    return removed


def heads_to_remove(model: Any, arguments: argparse.Namespace) -> Removed:
    """All heads that are to go; prints why those of an analysis are."""
    sets = [heads_named(arguments.heads), {name: set(heads) for name, heads in gated_off(model).items()}]
    if arguments.analysis is not None:
        document = load_matching_analysis(arguments.analysis, model.config)
        if arguments.redundant is not None:
            removed, found = most_redundant_heads(model.config, document, arguments.redundant)
            sets.append(removed)
            for head in found:
                print(f"{head.module} head {head.head} attends like head {head.like}, {head.bits:.3f} bits apart")
        if arguments.waited_for is not None:
            removed, heads = most_waited_for_heads(model, document, arguments.waited_for)
            sets.append(removed)
            for layer, number, share, seconds in heads:
                print(
                    f"decoder.layers.{layer}.encoder_attn head {number} is the last to stop for {share:.0%} of the "
                    f"tokens, {seconds:.2f} s behind the first one on average"
                )
    together: Removed = {}
    for removed in sets:
        for name, numbers in removed.items():
            together.setdefault(name, set()).update(numbers)
    return together


@reports_errors("prune.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        if arguments.out.exists():
            raise ValueError(f"{arguments.out} exists already; name another folder with --out")
        check_folder_writable(arguments.out)  # before the work
        model, processor = load_recogniser(arguments.checkpoint, "cpu")
        removed = heads_to_remove(model, arguments)
        if not any(removed.values()):
            raise ValueError(
                "no gate is 0, so no head can go unseen; choose some with --heads, --redundant or --waited-for"
            )
        smaller = remove_heads(model, {name: sorted(heads) for name, heads in removed.items()})
    except (CheckpointError, ValueError) as error:
        print(f"prune.py: {error}", file=sys.stderr)
        return 1
    with atomic_folder(arguments.out) as folder:
        smaller.save_pretrained(folder)
        processor.save_pretrained(folder)
        made = "Attention heads were removed for good (prune.py)."
        write_text_atomically(
            folder / "README.md", derived_card(arguments.checkpoint, arguments.out.name, smaller, made)
        )
    for name, heads in removed.items():
        left = attention_modules(smaller)[name].num_heads
        print(f"{name}: without {', '.join(map(str, sorted(heads)))}; {left} left")
    total = sum(module.num_heads for module in attention_modules(model).values())
    before, after = model.num_parameters(), smaller.num_parameters()
    print(f"{sum(map(len, removed.values()))} of {total} heads removed")
    print(f"{after:,} parameters, {100 * after / before:.1f} % of {before:,}")
    size = (arguments.out / SAFE_WEIGHTS_NAME).stat().st_size / 1e6
    print(f"written: {arguments.out} ({SAFE_WEIGHTS_NAME}: {size:.2f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

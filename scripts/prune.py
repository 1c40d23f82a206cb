#!/usr/bin/env python
"""Remove heads of a trained recogniser for good: a smaller checkpoint that decodes faster.

    python scripts/prune.py runs/demo/best --out runs/pruned
    python scripts/prune.py runs/demo/best --out runs/pruned --heads encoder.layers.0.self_attn:1,3
    python scripts/prune.py runs/demo/best --out runs/pruned --redundant 4 --analysis report/analysis.json

CHECKPOINT is a folder or a Hub repository. Heads whose gate training brought to exactly 0 always go, and the outputs
stay the same. Besides them go those named by --heads, and with --redundant so many heads of the encoder that attend
most like another head of their layer, as an analysis of the checkpoint measured it (scripts/analyze.py). Without those
the model is another one: score it, and train it further if need be (scripts/train.py --set start_from=OUT).
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.analysis import redundant_heads
from hf_entmax_asr.training import CheckpointError
from hf_entmax_asr.training.checkpointing import WEIGHTS, atomic_folder
from hf_entmax_asr.training.evaluation import load_recogniser
from hf_entmax_asr.training.surgery import attention_modules, gated_off, read_analysis, remove_heads

Removed = dict[str, set[int]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new checkpoint; must not exist")
    parser.add_argument("--heads", nargs="+", default=[], metavar="MODULE:HEAD,HEAD", action="extend")
    parser.add_argument("--redundant", type=int, metavar="N", help="so many encoder heads that resemble others")
    parser.add_argument("--analysis", type=Path, help="analysis.json of the checkpoint; needed for --redundant")
    arguments = parser.parse_args()
    if arguments.redundant is not None and arguments.analysis is None:
        parser.error("--redundant needs --analysis REPORT/analysis.json, which scripts/analyze.py makes")
    return arguments


def named(texts: list[str]) -> Removed:
    """Heads given as MODULE:0,2."""
    removed: Removed = {}
    for text in texts:
        module, _, heads = text.partition(":")
        if not all(head.isdecimal() for head in heads.split(",")):
            raise ValueError(f"--heads {text!r} must be of the form encoder.layers.0.self_attn:1,3")
        removed.setdefault(module, set()).update(map(int, heads.split(",")))
    return removed


def redundant(model: Any, analysis: Path, count: int) -> Removed:
    """The most redundant heads; those of layers that share a map go together and count once."""
    agreement = read_analysis(analysis, model.config).get("agreement")
    if not agreement:
        raise ValueError(f"{analysis} says nothing of the agreement of heads; make it anew with scripts/analyze.py")
    layers = range(model.config.encoder_layers)
    names = {f"encoder.layers.{layer}.self_attn": model.config.map_layer("encoder", layer) for layer in layers}
    own = [i for i, (name, _) in enumerate(agreement["heads"]) if name == f"encoder.layers.{names[name]}.self_attn"]
    js_bits = torch.tensor(agreement["js_bits"], dtype=torch.float64)[own][:, own]
    removed: Removed = {}
    for found in redundant_heads([tuple(agreement["heads"][i]) for i in own], js_bits, count):
        print(f"{found.module} head {found.head} attends like head {found.like}, {found.bits:.3f} bits apart")
        for name, source in names.items():
            if found.module == f"encoder.layers.{source}.self_attn":
                removed.setdefault(name, set()).add(found.head)
    return removed


def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        if arguments.out.exists():
            raise ValueError(f"{arguments.out} exists already; name another folder with --out")
        model, processor = load_recogniser(arguments.checkpoint, "cpu")
        removed = named(arguments.heads)
        for name, gated in gated_off(model).items():
            removed.setdefault(name, set()).update(gated)
        if arguments.redundant is not None:
            for name, heads in redundant(model, arguments.analysis, arguments.redundant).items():
                removed.setdefault(name, set()).update(heads)
        if not any(removed.values()):
            raise ValueError("no gate is 0, so no head can go unseen; choose some with --heads or --redundant")
        smaller = remove_heads(model, {name: sorted(heads) for name, heads in removed.items()})
    except (CheckpointError, ValueError) as error:
        print(f"prune.py: {error}", file=sys.stderr)
        return 1
    with atomic_folder(arguments.out) as folder:
        smaller.save_pretrained(folder)
        processor.save_pretrained(folder)
    for name, heads in removed.items():
        left = attention_modules(smaller)[name].num_heads
        print(f"{name}: without {', '.join(map(str, sorted(heads)))}; {left} left")
    total = sum(module.num_heads for module in attention_modules(model).values())
    before, after = model.num_parameters(), smaller.num_parameters()
    print(f"{sum(map(len, removed.values()))} of {total} heads removed")
    print(f"{after:,} parameters, {100 * after / before:.1f} % of {before:,}")
    size = (arguments.out / WEIGHTS).stat().st_size / 1e6
    print(f"written: {arguments.out} ({WEIGHTS}: {size:.2f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Let layers of a trained recogniser share their self-attention maps.

    python scripts/reuse.py runs/demo/best --out runs/reuse/start --budget 2 --analysis report/analysis.json
    python scripts/reuse.py runs/demo/best --out runs/reuse/start --groups 1 3 --decoder-groups 2 1

CHECKPOINT is a folder or a Hub repository. --groups are sizes of groups of consecutive layers: the first layer of a
group computes the map for all of it; the queries and keys of the others are gone. With --budget the groups follow from
an analysis of the checkpoint (scripts/analyze.py): so many maps, never one across the border between phonetic and
linguistic layers, and heads change their diagonality (CAD) as little as possible.

The new checkpoint has to be trained further, which takes a small part of the first training:

    python scripts/train.py --recipe R.yaml --data DATA --output runs/reuse/run --set start_from=runs/reuse/start
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Literal


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new checkpoint; must not exist")
    encoder = parser.add_mutually_exclusive_group()
    encoder.add_argument("--groups", type=int, nargs="+", metavar="SIZE", help="groups of the encoder")
    encoder.add_argument("--budget", type=int, metavar="MAPS", help="maps to compute in the encoder")
    decoder = parser.add_mutually_exclusive_group()
    decoder.add_argument("--decoder-groups", type=int, nargs="+", metavar="SIZE", help="groups of the decoder")
    decoder.add_argument("--decoder-budget", type=int, metavar="MAPS", help="maps to compute in the decoder")
    parser.add_argument("--analysis", type=Path, help="analysis.json of the checkpoint; needed for a budget")
    arguments = parser.parse_args()
    if all(value is None for value in (arguments.groups, arguments.budget)) and all(
        value is None for value in (arguments.decoder_groups, arguments.decoder_budget)
    ):
        parser.error("nothing to do: give --groups or --budget, or --decoder-groups or --decoder-budget")
    if (arguments.budget is not None or arguments.decoder_budget is not None) and arguments.analysis is None:
        parser.error("a budget needs --analysis REPORT/analysis.json, which scripts/analyze.py makes")
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from huggingface_hub.errors import StrictDataclassError
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.analysis import MapGroups, map_groups_of
from hf_entmax_asr.atomic_files import atomic_folder, check_folder_writable, write_text_atomically
from hf_entmax_asr.error_messages import in_one_line, reports_errors
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.recognition.derived_card import derived_card
from hf_entmax_asr.recognition.surgery import load_matching_analysis, share_maps


def describe(side: str, proposal: MapGroups) -> str:
    linguistic = [str(layer) for layer, is_linguistic in enumerate(proposal.linguistic) if is_linguistic]
    return (
        f"{side}: linguistic layers (half of the heads diagonal): {', '.join(linguistic) or 'none'}; by its new map a "
        f"head changes its CAD by {proposal.change:.3f} on average"
    )


@reports_errors("reuse.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    groups = {"encoder": arguments.groups, "decoder": arguments.decoder_groups}
    order: dict[str, tuple[int, ...]] = {}
    try:
        if arguments.out.exists():
            raise ValueError(f"{arguments.out} exists already; name another folder with --out")
        check_folder_writable(arguments.out)  # before the work
        model, processor = load_recogniser(arguments.checkpoint, "cpu")
        budgets: dict[Literal["encoder", "decoder"], int | None] = {
            "encoder": arguments.budget,
            "decoder": arguments.decoder_budget,
        }
        for side, budget in budgets.items():
            if budget is not None:
                proposal = map_groups_of(load_matching_analysis(arguments.analysis, model.config), budget, side)
                groups[side] = list(proposal.sizes)
                order |= {f"{side}.layers.{i}.self_attn": heads for i, heads in enumerate(proposal.head_order)}
                print(describe(side, proposal))
        smaller = share_maps(
            model, encoder_groups=groups["encoder"], decoder_groups=groups["decoder"], head_order=order
        )
    except (CheckpointError, StrictDataclassError, ValueError) as error:
        print(f"reuse.py: {in_one_line(error)}", file=sys.stderr)
        return 1
    with atomic_folder(arguments.out) as folder:
        smaller.save_pretrained(folder)
        processor.save_pretrained(folder)
        made = "Layers share self-attention maps (reuse.py)."
        write_text_atomically(
            folder / "README.md", derived_card(arguments.checkpoint, arguments.out.name, smaller, made)
        )
    for name, sizes in groups.items():
        if sizes is not None:
            print(f"{name}: {len(sizes)} maps for {sum(sizes)} layers, groups of {', '.join(map(str, sizes))}")
    before, after = model.num_parameters(), smaller.num_parameters()
    print(f"{after:,} parameters, {100 * after / before:.1f} % of {before:,}")
    print(f"written: {arguments.out}; train it further with scripts/train.py --set start_from={arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

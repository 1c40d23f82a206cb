#!/usr/bin/env python
"""Train a recogniser by a recipe.

    python scripts/train.py --recipe scripts/recipes/prompts_demo.yaml --data DATA --output runs/demo
    python scripts/train.py --output runs/demo --resume

Several GPUs, or several processes on the CPU:

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 scripts/train.py --recipe R.yaml ...
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 scripts/train.py --recipe R.yaml ...

DATA is a folder with one sub-folder per split (train/, validation/), each with its audio and a metadata.csv (columns
file_name, text, optionally speaker). Ctrl-C saves a checkpoint and stops; --resume goes on exactly there.
"""

import argparse
import logging
import os
import sys
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, help="recipe YAML; with --resume the run's own by default")
    parser.add_argument("--data", help="folder of the data, in place of the recipe's data.path")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", action="extend", help="override recipe values"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="save and stop after so many steps of the run")
    parser.add_argument("--push-to-hub", "--push_to_hub", metavar="REPO", help="upload the best checkpoint at the end")
    parser.add_argument("--private", action="store_true", help="make a new Hub repository private")
    arguments = parser.parse_args()
    if arguments.stop_after is not None and arguments.stop_after < 1:
        parser.error(f"--stop-after is {arguments.stop_after}; it must be at least 1")
    if arguments.recipe is None:
        if not arguments.resume:
            parser.error("--recipe is needed (without it only --resume knows what to do)")
        arguments.recipe = arguments.output / "recipe.yaml"
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.recognition import DataError
from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training import RecipeError, TrainingDiverged, load_recipe, train
from hf_entmax_asr.training.hub import check_hub_access, push_checkpoint
from hf_entmax_asr.training.memory import keep_freed_memory

CARD_TEMPLATE = Path(__file__).parent.parent / "model_cards" / "template.md"


def asked_for_processes_that_did_not_start() -> bool:
    """`accelerate launch --cpu --num_processes 2` starts one process unless it is given an MPI host file."""
    worlds = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    by_accelerate_on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "True" and "KMP_AFFINITY" in os.environ
    return by_accelerate_on_cpu and "MASTER_PORT" in os.environ and not any(name in os.environ for name in worlds)


@reports_errors("train.py")
def main() -> int:
    arguments = parse()
    if asked_for_processes_that_did_not_start():
        print(
            "train.py: `accelerate launch --cpu --num_processes N` starts a single process. For N on the CPU:\n"
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N scripts/train.py ...",
            file=sys.stderr,
        )
        return 1
    disable_progress_bar()  # of loading and saving weights
    keep_freed_memory()
    overrides = arguments.set + ([f"data.path={arguments.data}"] if arguments.data else [])
    try:
        recipe = load_recipe(arguments.recipe, overrides)
        if arguments.push_to_hub:
            check_hub_access()
        accelerator = Accelerator()
        level = logging.INFO if accelerator.is_main_process else logging.ERROR
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("hf_entmax_asr").setLevel(level)
        result = train(
            recipe,
            arguments.output,
            resume=arguments.resume,
            stop_after=arguments.stop_after,
            card_template=CARD_TEMPLATE.read_text(encoding="utf-8"),
            accelerator=accelerator,
        )
        if accelerator.is_main_process:
            state = "finished" if result.finished else "stopped; --resume goes on"
            print(f"{state} after {result.step} steps: best {result.best}, last {result.last}")
            if arguments.push_to_hub:
                print(push_checkpoint(result.best, arguments.push_to_hub, private=arguments.private))
        accelerator.end_training()
    except (RecipeError, DataError, CheckpointError, TrainingDiverged) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""What removed heads and shared maps cost a trained recogniser in WER, and what they save in size and time.

    python -m experiments.smaller_models.study runs/mine/best --data DATA --recipe RECIPE --steps 300 \\
        --output runs/smaller --gates --prune 2 4 8 --waited-for 1 2 --reuse 4 3 2
    python -m experiments.smaller_models.study … the same … --timing          # later, when the machine is idle

CHECKPOINT is a folder or a Hub repository; DATA and RECIPE are what scripts/train.py takes. Variants: without the heads
whose gate is 0 (--gates; the outputs stay the same, which is checked), without N encoder heads that attend like others
(--prune), without N monotonic heads that decoding waits for (--waited-for), with N maps for all encoder layers
(--reuse); chosen by an analysis of the checkpoint on at most 100 utterances of the validation split. Each is scored on
the test split as it was cut, trained further by --steps steps, and scored again; so is the checkpoint itself, against
which the others are tested: without that, one would see what further training does.

Training further means, unless --set says otherwise: the checkpoint's configuration, tokenizer and features; a quarter
of the recipe's peak learning rate, a tenth of the steps to warm up and half of them to cool down; straight-through
training from the first step where the recipe ends with it; no validation. The rest is the recipe's.

Variants run one after another. What is done is kept and not done again, a training that was stopped goes on. OUTPUT
gets analysis.json, a folder a variant (the checkpoint as cut, run/, hypotheses, variant.json, timing.json), table.md.
"""

import argparse
import dataclasses
import logging
import signal
import sys
from pathlib import Path
from typing import Any


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("--data", required=True, help="folder of the data, as scripts/train.py takes it")
    parser.add_argument("--recipe", type=Path, required=True, help="of the first training, for the further one")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--steps", type=int, default=300, help="of further training (default: %(default)s)")
    parser.add_argument(
        "--prune", type=int, nargs="+", default=[], metavar="N", help="redundant encoder heads to remove"
    )
    parser.add_argument(
        "--waited-for", type=int, nargs="+", default=[], metavar="N", help="monotonic heads to remove, the last to stop"
    )
    parser.add_argument("--reuse", type=int, nargs="+", default=[], metavar="N", help="maps of the encoder to leave")
    parser.add_argument("--gates", action="store_true", help="remove the heads whose gate is 0")
    parser.add_argument("--test-split", default="test", help="what is recognised (default: %(default)s)")
    parser.add_argument("--labels", choices=("pocketsphinx",), help="phonemes in the analysis, aligned by PocketSphinx")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU (default: %(default)s)")
    parser.add_argument("--timing", action="store_true", help="measure times too; nothing else should be running")
    parser.add_argument("--timing-rounds", type=int, default=7, help="each time is a median of so many")
    parser.add_argument("--table-only", action="store_true", help="run nothing: the table of what is there")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", action="extend", help="override recipe values"
    )
    arguments = parser.parse_args(words)
    for name in ("steps", "threads", "timing_rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1")
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch
from experiments.real_speech.grid_cell import CellError, same_settings
from experiments.smaller_models.table import AS_CUT, GATES, SETTINGS, TRAINED, UNPRUNED, render
from experiments.smaller_models.variant import Study, Variant, monotonic_modules, run_variant, say, time_variant
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.analysis import PocketsphinxAligner, map_groups_of
from hf_entmax_asr.analysis.document import AnalysisDocument, save_analysis
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.recognition import DataError, gated_off
from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.recognition.inspection import analyze
from hf_entmax_asr.recognition.surgery import load_matching_analysis, most_redundant_heads, most_waited_for_heads
from hf_entmax_asr.training import RecipeError
from hf_entmax_asr.training.memory import keep_freed_memory
from hf_entmax_asr.training.preparation import load_rows
from hf_entmax_asr.training.recipe import recipe_to_dict

ANALYSIS = "analysis.json"
ANALYSED_UTTERANCES = 100


def check_numbers(study: Study) -> None:
    """Refuses, before anything is computed, numbers that no analysis could allow."""
    arguments, config = study.arguments, study.model.config
    own = [layer for layer in range(config.encoder_layers) if config.map_layer("encoder", layer) == layer]
    active = [int(module.active_heads().sum()) for module in monotonic_modules(study.model)]
    each_keeps_one = "each layer keeps a head"
    limits = {
        "--prune": (arguments.prune, sum(config.heads("encoder", layer) - 1 for layer in own), each_keeps_one),
        "--waited-for": (arguments.waited_for, sum(max(0, heads - 1) for heads in active), each_keeps_one),
        "--reuse": (arguments.reuse, len(own) - 1, f"its encoder computes {len(own)} maps now"),
    }
    for option, (numbers, most, reason) in limits.items():
        if wrong := [number for number in numbers if not 1 <= number <= most]:
            raise CellError(f"{option} {wrong[0]} must lie between 1 and {most} for this checkpoint: {reason}")
    if not any(numbers for numbers, *_ in limits.values()) and not arguments.gates:
        raise CellError("nothing to do: give --prune, --waited-for, --reuse or --gates")


def analysis_of(study: Study) -> AnalysisDocument:
    """The analysis of the checkpoint, made once."""
    file, labels = study.output / ANALYSIS, study.arguments.labels
    if not file.is_file():
        if study.validation_split is None:
            raise CellError("the analysis needs utterances: name a split with --set data.validation_split=SPLIT")
        aligner = None if labels is None else PocketsphinxAligner()
        data = dataclasses.replace(study.recipe.data, train_split=study.validation_split)
        rows = load_rows(dataclasses.replace(study.recipe, data=data))["train"]
        chosen = evenly_spaced(len(rows), ANALYSED_UTTERANCES)
        say(f"analysis of {len(chosen)} utterances of {study.validation_split}")
        document = analyze(study.model, study.processor, rows.select(chosen), labels=aligner)
        save_analysis(dataclasses.replace(document, checkpoint=study.checkpoint, data=study.validation_split), file)
    document = load_matching_analysis(file, study.model.config)
    if labels is not None and document.phonemes is None:
        raise CellError(f"{file} was made without phonemes: delete it to have it made anew, or leave out --labels")
    return document


def plan(study: Study) -> list[Variant]:
    """All that is to be done; each variant was made once, so that what cannot be is refused now."""
    arguments, model = study.arguments, study.model
    variants = [Variant(UNPRUNED)]
    if arguments.gates and (off := gated_off(model)):
        removed = {name: set(heads) for name, heads in off.items()}
        variants.append(Variant(GATES, sum(map(len, off.values())), removed))
    elif arguments.gates:
        say("no gate of this checkpoint is 0: there is no row for --gates")
    chosen = {"redundant": arguments.prune, "waited-for": arguments.waited_for, "reuse": arguments.reuse}
    if any(chosen.values()):
        document = analysis_of(study)
        pairs = ((kind, number) for kind, numbers in chosen.items() for number in dict.fromkeys(numbers))
        variants += [analysed_variant(kind, number, model, document) for kind, number in pairs]
    for variant in variants:
        variant.cut(model)
    return variants


def analysed_variant(kind: str, number: int, model: Any, document: AnalysisDocument) -> Variant:
    """What an analysis chooses: `number` heads to remove ("redundant", "waited-for") or maps to leave ("reuse")."""
    if kind == "redundant":
        return Variant(kind, number, most_redundant_heads(model.config, document, number)[0])
    if kind == "waited-for":
        return Variant(kind, number, most_waited_for_heads(model, document, number)[0])
    found = map_groups_of(document, number)
    order = {f"encoder.layers.{layer}.self_attn": heads for layer, heads in enumerate(found.head_order)}
    return Variant(kind, number, groups=found.sizes, head_order=order)


def run(study: Study) -> dict[str, str]:
    """All variants; returns the reasons of those that failed."""
    check_numbers(study)
    if len(study.utterances) == 0:
        raise CellError(f"the split {study.arguments.test_split!r} has no utterances")
    settings = {"checkpoint": study.checkpoint, "recipe": recipe_to_dict(study.recipe)}
    same_settings(study.output / SETTINGS, settings | {"test_split": study.arguments.test_split})
    variants, failed = plan(study), {}
    for number, variant in enumerate(variants, 1):
        say(f"variant {number} of {len(variants)}: {variant.name}")
        try:
            result = run_variant(variant, study)
            if study.arguments.timing:
                time_variant(variant, study)
        except (CellError, CheckpointError, DataError) as error:
            failed[variant.name] = str(error)
            print(f"  failed: {error}", flush=True)
            continue
        for state in (state for state in (AS_CUT, TRAINED) if state in result):
            scores = ", ".join(f"{way} WER {s['wer']:.1f} %" for way, s in result[state]["scores"].items())
            print(f"  {state.replace('_', ' ')}: {scores}", flush=True)
    return failed


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    keep_freed_memory()
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # training saves a checkpoint then as on Ctrl-C
    torch.set_num_threads(arguments.threads)
    try:
        failed = {} if arguments.table_only else run(Study.begin(arguments))
        report = render(arguments.output, failed)
    except (RecipeError, CheckpointError, DataError, ImportError, CellError, ValueError) as error:
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

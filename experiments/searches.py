#!/usr/bin/env python
"""What each way of searching a checkpoint's texts is worth, and what it costs: greedy and beams, with CTC, with a
language model, with both, and CTC alone.

    python -m experiments.searches demo_output/run/best demo_output/data --split test --lm lm.arpa --lm-weight 0.2
    python -m experiments.searches CHECKPOINT DATA --beams 1 5 10 --ctc-weights 0 0.3 --utterances 200

One thread, in batches. Weights are chosen beforehand on other data (scripts/tune_lm.py), and are the same in each row.
The real-time factor is processor seconds for a second of audio.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("data", type=Path, help="a folder corpus")
    parser.add_argument("--split", default="test")
    parser.add_argument("--utterances", type=int, help="only the first so many")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="(default: 1 5)")
    parser.add_argument("--ctc-weights", type=float, nargs="+", default=[0.0, 0.3, 1.0], help="(default: 0 0.3 1)")
    parser.add_argument("--lm", type=Path, help="n-gram language model, an ARPA file")
    parser.add_argument("--lm-weight", type=float, default=0.3, help="(default: 0.3)")
    parser.add_argument("--insertion-bonus", type=float, default=0.0, help="for each word (default: 0)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch
from experiments.real_speech.grid_cell import recognised
from experiments.real_speech.grid_table import Hypotheses, mean_rate, p_value, table
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.ngram_lm import LanguageModelFusion, NgramModel
from hf_entmax_asr.ngram_lm.fusion import FusedModel
from hf_entmax_asr.ngram_lm.options import candidates_wanted
from hf_entmax_asr.recognition import decoding_as
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.utterances import prepare_split, read_split


def searches(arguments: argparse.Namespace) -> Iterator[tuple[int, float, bool]]:
    """(beams, weight of CTC, whether with the language model), the plainest first."""
    for with_lm in (False, True) if arguments.lm else (False,):
        for ctc_weight in arguments.ctc_weights:
            for beams in arguments.beams:
                yield beams, ctc_weight, with_lm


def named(beams: int, ctc_weight: float, with_lm: bool) -> str:
    parts = ["greedy" if beams == 1 else f"{beams} beams"]
    if ctc_weight:
        parts.append("CTC alone" if ctc_weight == 1 else f"CTC {ctc_weight:g}")
    return ", ".join(parts + ["language model"] * with_lm)


@reports_errors("searches.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()
    torch.set_num_threads(1)
    model, processor = load_recogniser(arguments.checkpoint, "cpu", any_system=True)
    utterances = prepare_split(read_split(arguments.data, arguments.split, most=arguments.utterances), processor)
    language_model = NgramModel(arguments.lm) if arguments.lm else None
    seconds = int(utterances.frames.sum()) * processor.feature_extractor.seconds_per_frame
    first, rows = None, []
    for beams, ctc_weight, with_lm in searches(arguments):
        searched = model
        if with_lm and language_model is not None:
            fusion = LanguageModelFusion(
                language_model,
                processor.tokenizer,
                weight=arguments.lm_weight,
                insertion_bonus=arguments.insertion_bonus,
                candidates=candidates_wanted(model, argparse.Namespace(num_beams=beams, ctc_weight=ctc_weight)),
            )
            searched = FusedModel(model, fusion)
        began = time.process_time()
        with decoding_as(model, ctc_weight=ctc_weight):
            texts = recognised(searched, processor, utterances, beams)
        factor = (time.process_time() - began) / seconds
        heard = Hypotheses(utterances.ids, utterances.texts, texts)
        first = first or heard
        rates = [mean_rate([heard], unit) for unit in ("word", "character")]
        p = "" if heard is first else p_value(first, heard)
        rows.append([named(beams, ctc_weight, with_lm), *rates, p, f"{factor:.3f}"])
        print(f"{rows[-1][0]}: WER {rates[0]}", file=sys.stderr, flush=True)
    print(table(["search", "WER in %", "CER in %", "p against the first row", "real-time factor"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

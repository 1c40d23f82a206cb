#!/usr/bin/env python
"""Decoding one utterance, greedy and with 5 beams, against Speech2Text's `generate`.

    python benchmarks/decoding_speed.py [--frames 1000] [--tokens 60]

Untrained models of the paper's size: the number of tokens is fixed, so that both do the same work.
"""

import argparse
from collections.abc import Callable
from typing import Any

from timing_options import add_model_options, parser


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(rounds=7)
    add_model_options(options)
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch

from hf_entmax_asr import EntmaxAsrConfig, EntmaxAsrForConditionalGeneration
from timing import compare, machine, table
from training_step import speech2text


def main() -> None:
    arguments = parse()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {name: int(value) for name, value in (item.split("=") for item in arguments.set)}
    config = EntmaxAsrConfig(**sizes)
    ours, theirs = EntmaxAsrForConditionalGeneration(config).eval(), speech2text(config).eval()
    features = torch.randn(1, arguments.frames, config.num_mel_bins)
    mask = torch.ones(1, arguments.frames, dtype=torch.long)
    length = {"min_new_tokens": arguments.tokens, "max_new_tokens": arguments.tokens}

    def decoder(model: Any, beams: int) -> Callable[[], object]:
        return lambda: model.generate(features, attention_mask=mask, num_beams=beams, do_sample=False, **length)

    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(machine(), "\n")
        rows = []
        for beams in (1, 5):
            seconds = compare(
                {"ours": decoder(ours, beams), "theirs": decoder(theirs, beams)}, arguments.rounds, warm_up=1
            )
            rows.append([beams, *seconds.values(), seconds["ours"] / seconds["theirs"], 0.8])
        print(table(["beams", "ours s", "Speech2Text s", "ratio", "aim"], rows) + "\n")


if __name__ == "__main__":
    main()

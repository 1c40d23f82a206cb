#!/usr/bin/env python
"""Layers that share attention maps against layers with their own: parameters, training, encoding and decoding.

    python -m experiments.map_reuse [--groups 12 | 6 6 | ...] [--decoder-groups ...]
    python -m experiments.map_reuse --checkpoints runs/demo/best runs/reuse/run/best

Untrained models of the paper's size; or two checkpoints, before and after scripts/reuse.py or scripts/prune.py and
training, since a learned α makes other maps than α = 1.5. The ratio is after / before: below 1, less is faster.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing_options import add_model_options, parser


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(threads=[2], rounds=7)
    options.add_argument("--groups", type=int, nargs="+", default=[3, 3, 3, 3], help="of the encoder")
    options.add_argument("--decoder-groups", type=int, nargs="+", help="of the decoder")
    options.add_argument("--checkpoints", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    options.add_argument("--batch", type=int, default=8)
    add_model_options(options)
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch
from benchmarks.timing import compare, machine, table

from hf_entmax_asr import EntmaxAsrConfig, EntmaxAsrForConditionalGeneration

BEFORE, AFTER = "before", "after"


def untrained(groups: list[int], decoder_groups: list[int] | None, sizes: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {name: int(value) for name, value in (item.split("=") for item in sizes)}
    shared: dict[str, Any] = {"encoder_map_groups": groups, "decoder_map_groups": decoder_groups}
    models = {}
    for name, options in ((BEFORE, {}), (AFTER, shared)):
        torch.manual_seed(0)
        models[name] = EntmaxAsrForConditionalGeneration(EntmaxAsrConfig(**config, **options))
    return models


def runs(
    models: dict[str, Any], batch: int, frames: int, tokens: int, features: torch.Tensor | None = None
) -> dict[str, dict[str, Any]]:
    """What is timed: by task, one program for each model; on noise, or on `features` (batch, frames, F)."""
    torch.manual_seed(0)
    config = models[BEFORE].config
    if features is None:
        features = torch.randn(batch, frames, config.num_mel_bins)
    lengths = torch.linspace(0.8 * frames, frames, batch).long()  # padding, as a batch by length has it
    mask = (torch.arange(frames) < lengths[:, None]).long()
    labels = torch.randint(4, config.vocab_size, (batch, tokens))
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False, "num_beams": 1}

    def training(model: Any) -> Callable[[], object]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

        def step() -> None:
            model.train()
            model(features, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def encoding(model: Any) -> Callable[[], object]:
        @torch.no_grad()
        def encode() -> None:
            model.eval().get_encoder()(features, attention_mask=mask)

        return encode

    def generating(model: Any) -> Callable[[], object]:
        return lambda: model.eval().generate(features[-1:], attention_mask=mask[-1:], **length)

    tasks = {
        f"training step, {batch} x {frames} frames": training,
        f"encoder, {batch} x {frames} frames": encoding,
        f"generate {tokens} tokens, greedy, 1 x {frames} frames": generating,
    }
    return {task: {name: make(model) for name, model in models.items()} for task, make in tasks.items()}


def main() -> None:
    arguments = parse()
    if arguments.checkpoints:
        load = EntmaxAsrForConditionalGeneration.from_pretrained
        models = {name: load(folder) for name, folder in zip((BEFORE, AFTER), arguments.checkpoints, strict=True)}
    else:
        models = untrained(arguments.groups, arguments.decoder_groups, arguments.set)
    names = ["encoder_map_groups", "decoder_map_groups"]
    names += ["encoder_heads_per_layer", "decoder_heads_per_layer", "cross_heads_per_layer"]
    print(", ".join(f"{name} {getattr(models[AFTER].config, name)}" for name in names) + "\n")
    counts = [model.num_parameters() for model in models.values()]
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(machine(), "\n")
        rows: list[list[object]] = [["parameters", *(f"{count:,}" for count in counts), counts[1] / counts[0]]]
        for task, programs in runs(models, arguments.batch, arguments.frames, arguments.tokens).items():
            seconds = compare(programs, arguments.rounds, warm_up=1)
            rows.append([task, *seconds.values(), seconds[AFTER] / seconds[BEFORE]])
        print(table(["", BEFORE, AFTER, "ratio"], rows) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""A whole training step of the paper's model, against the same model with softmax SDPA, and against Speech2Text.

    python benchmarks/training_step.py [--threads 2] [--frames 1000] [--batch 8]

Contestants, equal in layers, widths and vocabulary, in training mode with dropout, each step a forward, a backward and
an AdamW update: α-entmax self-attention with monotonic cross-attention; that model with softmax through
F.scaled_dot_product_attention and full cross-attention; transformers' Speech2Text, which has no SDPA form.
"""

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

from timing_options import add_model_options, parser


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(threads=[2], rounds=7)
    options.add_argument("--batch", type=int, default=8)
    add_model_options(options)
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

from hf_entmax_asr import EntmaxAsrConfig, EntmaxAsrForConditionalGeneration
from hf_entmax_asr.model import transforms
from timing import compare, machine, table


def softmax_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor | float,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Takes the place of entmax_attention in the model of the comparison, which has no biases."""
    if bias is not None:
        raise ValueError("a bias is given, and this comparison is of models without.")
    return F.scaled_dot_product_attention(query, key, value, mask, dropout_p, scale=scale)


def speech2text(config: EntmaxAsrConfig) -> Speech2TextForConditionalGeneration:
    """transformers' own model in the size of `config`."""
    names = ["vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim"]
    names += ["encoder_attention_heads", "decoder_attention_heads", "dropout", "pad_token_id", "bos_token_id"]
    names += ["eos_token_id", "decoder_start_token_id"]
    return Speech2TextForConditionalGeneration(
        Speech2TextConfig(
            **{name: getattr(config, name) for name in names},
            input_feat_per_channel=config.num_mel_bins,
        )
    )


def contestants(config: dict, batch: int, frames: int, tokens: int) -> dict:
    torch.manual_seed(0)
    ours = EntmaxAsrConfig(**config)
    softmax: dict[str, Any] = {f"{part}_transform": "softmax" for part in ("encoder", "decoder", "cross")}
    models = {
        "α-entmax + monotonic": EntmaxAsrForConditionalGeneration(ours),
        "softmax SDPA + full": EntmaxAsrForConditionalGeneration(
            EntmaxAsrConfig(**config, **softmax, cross_attention="full")
        ),
        "Speech2Text": speech2text(ours),
    }
    features = torch.randn(batch, frames, ours.num_mel_bins)
    lengths = torch.linspace(0.8 * frames, frames, batch).long()  # padding, as a batch by length has it
    mask = (torch.arange(frames) < lengths[:, None]).long()
    labels = torch.randint(4, ours.vocab_size, (batch, tokens))

    def stepper(name: str, model: torch.nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5)

        def step() -> None:
            model(features, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        def step_with_sdpa() -> None:
            with mock.patch.object(transforms, "entmax_attention", softmax_sdpa):
                step()

        return step_with_sdpa if name == "softmax SDPA + full" else step

    return {name: stepper(name, model) for name, model in models.items()}


def main() -> None:
    arguments = parse()
    config = {name: int(value) for name, value in (item.split("=") for item in arguments.set)}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(machine(), "\n")
        runs = contestants(config, arguments.batch, arguments.frames, arguments.tokens)
        seconds = compare(runs, arguments.rounds, warm_up=1)
        ours = seconds["α-entmax + monotonic"]
        frames = arguments.batch * arguments.frames
        aims = {"softmax SDPA + full": "≤ 1.10", "Speech2Text": "≤ 1.0"}
        rows = [[name, s, frames / s, ours / s, aims.get(name, "")] for name, s in seconds.items()]
        print(table(["training step", "s", "frames a second", "ours / this", "aim"], rows) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Decoding one utterance, greedy, with 5 beams, and with 5 beams and CTC, against ESPnet's batched beam search.

    pip install --no-deps espnet && pip install typeguard==2.13.3 humanfriendly torch_complex configargparse
    python benchmarks/espnet_decoding.py [--frames 1000] [--tokens 30]

ESPnet is not a dependency of this project. Untrained models of one size (12 + 6 blocks, d 512), features to text; the
number of tokens is fixed, so that both do the same work. The real-time factor is seconds for a second of audio.
"""

import argparse
import logging
from collections.abc import Callable
from typing import Any

from timing_options import parser


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(rounds=5)
    options.add_argument("--frames", type=int, default=1000)
    options.add_argument("--tokens", type=int, default=30)
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch

from hf_entmax_asr import EntmaxAsrConfig, EntmaxAsrForConditionalGeneration
from timing import compare, machine, table

CTC_WEIGHT = 0.3
SECONDS_PER_FRAME = 0.01
SEARCHES = {"greedy": (1, 0.0), "5 beams": (5, 0.0), "5 beams, CTC 0.3": (5, CTC_WEIGHT)}


class EspnetRecogniser:
    """Encoder, decoder and CTC of a configuration, searched as espnet2's asr_inference does."""

    def __init__(self, config: EntmaxAsrConfig):
        # Here, for this program's options can be read without ESPnet.
        from espnet2.asr.ctc import CTC
        from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
        from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

        self.config = config
        self.encoder = TransformerEncoder(
            config.num_mel_bins,
            config.d_model,
            config.encoder_attention_heads,
            config.encoder_ffn_dim,
            config.encoder_layers,
            use_flash_attn=False,
        ).eval()
        self.decoder = TransformerDecoder(
            config.vocab_size,
            config.d_model,
            config.decoder_attention_heads,
            config.decoder_ffn_dim,
            config.decoder_layers,
            use_flash_attn=False,
        ).eval()
        self.ctc = CTC(config.vocab_size, config.d_model).eval()

    @torch.no_grad()
    def recognise(self, features: torch.Tensor, beams: int, ctc_weight: float, tokens: int) -> object:
        """The best texts of (1, T, F), each of so many tokens."""
        from espnet.nets.batch_beam_search import BatchBeamSearch
        from espnet.nets.scorers.ctc import CTCPrefixScorer

        states = self.encoder(features, torch.tensor([features.shape[1]]))[0]
        end = self.config.eos_token_id
        search = BatchBeamSearch(
            scorers={"decoder": self.decoder, "ctc": CTCPrefixScorer(ctc=self.ctc, eos=end)},
            weights={"decoder": 1 - ctc_weight, "ctc": ctc_weight},
            beam_size=beams,
            vocab_size=self.config.vocab_size,
            sos=end,
            eos=end,
            pre_beam_score_key="full",
        )
        return search(states[0], maxlenratio=-tokens, minlenratio=-tokens)


def main() -> None:
    arguments = parse()
    logging.disable(logging.WARNING)  # ESPnet tells of every search
    torch.manual_seed(0)
    config = EntmaxAsrConfig(vocab_size=4233, ctc_loss_weight=0.3)
    ours: Any = EntmaxAsrForConditionalGeneration(config).eval()
    theirs = EspnetRecogniser(config)
    features = torch.randn(1, arguments.frames, config.num_mel_bins)
    mask = torch.ones(1, arguments.frames, dtype=torch.long)
    length = {"min_new_tokens": arguments.tokens, "max_new_tokens": arguments.tokens}

    def contestants(beams: int, ctc_weight: float) -> dict[str, Callable[[], object]]:
        return {
            "ours": lambda: ours.generate(
                features, attention_mask=mask, num_beams=beams, ctc_weight=ctc_weight, do_sample=False, **length
            ),
            "ESPnet": lambda: theirs.recognise(features, beams, ctc_weight, arguments.tokens),
        }

    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(machine(), "\n")
        rows: list[list[object]] = []
        for name, (beams, ctc_weight) in SEARCHES.items():
            seconds = compare(contestants(beams, ctc_weight), arguments.rounds, warm_up=1)
            factors = [value / arguments.frames / SECONDS_PER_FRAME for value in seconds.values()]
            rows.append([name, *factors, factors[0] / factors[1], 0.5])
        print(table(["search", "ours, real-time factor", "ESPnet's", "ratio", "aim"], rows) + "\n", flush=True)


if __name__ == "__main__":
    main()

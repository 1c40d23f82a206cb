#!/usr/bin/env python
"""How sure a hard head must be to stop: error rates and delays by `firing_probability`, of a checkpoint as it is.

    python -m experiments.from_whisper.firing runs/mine/best --data DATA --split validation --words validation.ctm
    python -m experiments.from_whisper.firing runs/mine/best --data DATA --words test.ctm --probabilities 0.5 0.8

Heads that stop later read more of the audio, and hold text up longer. Choose on the validation split; what is chosen
goes into the checkpoint's config.json, or to --firing-probability of the programs. Delays are seconds from a token's
end to the stop of its last head, the decoder reading the reference; they need the times of words (--words).
"""

import argparse
import sys
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("--data", type=Path, required=True, help="a folder corpus")
    parser.add_argument("--split", default="test")
    parser.add_argument("--words", type=Path, help="CTM file of the split")
    parser.add_argument("--utterances", type=int, help="evenly spaced over the split (default: all)")
    parser.add_argument("--probabilities", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--soft", action="store_true", help="soft decoding too")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch
from experiments.from_whisper.delays import stops_behind_words
from experiments.real_speech.grid_cell import recognised
from experiments.real_speech.grid_table import Hypotheses, mean_rate, p_value, table
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.analysis.phonemes import read_ctm
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.recognition import decoding_as
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.utterances import prepare_split, read_split


@reports_errors("firing.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()
    torch.set_num_threads(1)
    model, processor = load_recogniser(arguments.checkpoint, "cpu")
    words = None if arguments.words is None else read_ctm(arguments.words)
    rows = read_split(arguments.data, arguments.split)
    if arguments.utterances is not None:
        rows = rows.select(evenly_spaced(len(rows), arguments.utterances))
    utterances = prepare_split(rows, processor)
    first, lines = None, []
    ways = [("hard", probability) for probability in arguments.probabilities] + [("soft", None)] * arguments.soft
    for decoding, probability in ways:
        with decoding_as(model, decoding, firing_probability=probability):
            texts = recognised(model, processor, utterances)
            delays = ["", "", ""]
            if words is not None and decoding == "hard":
                found = stops_behind_words(model, processor, utterances, words)
                delays = [f"{found[name]:.2f}" for name in ("last_head_median", "last_head_p90")]
                delays.append(f"{100 * found['share_at_last_position']:.0f} %")
        heard = Hypotheses(utterances.ids, utterances.texts, texts)
        first = first or heard
        p = "" if heard is first else p_value(first, heard)
        lines.append([decoding if probability is None else f"{probability:g}", mean_rate([heard], "word"), p, *delays])
        print(f"{lines[-1][0]}: WER {lines[-1][1]}", file=sys.stderr, flush=True)
    header = ["firing probability", "WER in %", "p against the first row", "last head, median", "90 %"]
    print(table([*header, "stops at the last position"], lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

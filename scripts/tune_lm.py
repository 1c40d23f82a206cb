#!/usr/bin/env python
"""Find the weight and the insertion bonus of a language model that give the fewest errors on a development set.

    python scripts/tune_lm.py runs/demo/best DATA --lm lm.arpa --split validation --num-beams 5

Every pair of a weight and a bonus is decoded anew, so that the table shows what scripts/evaluate.py will print for it,
search errors included; --max-utterances bounds the cost. Of pairs with equally many errors, the smaller weight wins,
then the smaller bonus. Tune on other utterances than you test on.
"""

import argparse
import sys
from pathlib import Path

from program_options import DECODING, add_decoding_options, add_reading_options, corpora


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("data", help="folder of the data, or of a corpus as shipped")
    parser.add_argument("--lm", type=Path, required=True, help="n-gram language model, an ARPA file")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3, 0.45, 0.6], metavar="WEIGHT")
    parser.add_argument("--bonuses", type=float, nargs="+", default=[-0.5, 0.0, 0.5, 1.0], metavar="BONUS")
    add_reading_options(parser)
    parser.add_argument("--unit", choices=("word", "character"), default="word", help="of the errors (default: word)")
    parser.add_argument("--corpus", choices=corpora(), default="folder", help="the form of the data (default: folder)")
    parser.add_argument("--split", default="validation", help="sub-folder of the data (default: validation)")
    parser.add_argument("--num-beams", "--num_beams", type=int, default=5, help="beam width (default: 5)")
    add_decoding_options(parser)
    parser.add_argument("--frames-per-batch", type=int, default=16000, help="padded 10 ms frames in a batch")
    parser.add_argument("--max-utterances", type=int, help="use only the first so many")
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.metrics import ErrorCounts, error_counts
from hf_entmax_asr.ngram_lm import (
    FusedModel,
    LanguageModelError,
    LanguageModelFusion,
    NgramModel,
    candidates_wanted,
)
from hf_entmax_asr.recognition import DataError, SpeechSeq2SeqCollator, decoding_as, recognise
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.recognition.utterances import cache_features, prepare_split, read_split

CACHE_MEGABYTES = 1024


def pairs(weights: list[float], bonuses: list[float]) -> list[tuple[float, float]]:
    """(weight, bonus), each once; without a weight, no bonus."""
    return sorted({(weight, bonus if weight else 0.0) for weight in weights for bonus in bonuses})


def table(scores: dict[tuple[float, float], ErrorCounts]) -> str:
    """Error rates in percent: a line per weight, a column per bonus."""
    bonuses = sorted({bonus for _, bonus in scores})
    lines = ["weight\\bonus" + "".join(f"{bonus:>9g}" for bonus in bonuses)]
    for weight in sorted({weight for weight, _ in scores}):
        cells = (scores.get((weight, bonus)) for bonus in bonuses)
        lines.append(f"{weight:<12g}" + "".join(f"{'' if c is None else f'{100 * c.rate:.2f}':>9}" for c in cells))
    return "\n".join(lines)


@reports_errors("tune_lm.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    try:
        language_model = NgramModel(arguments.lm, unit=arguments.lm_unit, unknown_words=arguments.unknown_words)
        model, processor = load_recogniser(arguments.checkpoint, arguments.device)
        grid = pairs(arguments.weights, arguments.bonuses)
        fusions = {
            (weight, bonus): LanguageModelFusion(
                language_model,
                processor.tokenizer,
                weight=weight,
                insertion_bonus=bonus,
                candidates=candidates_wanted(model, arguments),
            )
            for weight, bonus in grid
        }
        rows = read_split(arguments.data, arguments.split, arguments.corpus, arguments.max_utterances)
        utterances = prepare_split(rows, processor)
        cache_features(utterances, processor.feature_extractor, CACHE_MEGABYTES)
    except (CheckpointError, DataError, LanguageModelError, FileNotFoundError, ImportError) as error:
        print(f"tune_lm.py: {error}", file=sys.stderr)
        return 1
    collate = SpeechSeq2SeqCollator(processor)
    scores = {}
    with (
        decoding_as(model, **{name: getattr(arguments, name) for name in DECODING}),
        tqdm(total=len(utterances) * len(grid), unit="utt", disable=None) as bar,
    ):
        for pair, fusion in fusions.items():
            hypotheses = recognise(
                FusedModel(model, fusion),
                processor.tokenizer,
                utterances.frames,
                lambda indices: collate([utterances.example(i) for i in indices]),
                frames_per_batch=arguments.frames_per_batch,
                num_beams=arguments.num_beams,
                progress=bar.update,
            )
            scores[pair] = error_counts(utterances.texts, hypotheses, arguments.unit)
    weight, bonus = min(scores, key=lambda pair: (scores[pair].errors, pair))
    rate = "WER" if arguments.unit == "word" else "CER"
    print(f"{rate} in percent, {len(utterances)} utterances of {arguments.split}, {arguments.num_beams} beams")
    print(table(scores))
    ties = sum(counts.errors == scores[weight, bonus].errors for counts in scores.values()) - 1
    tied = f" ({ties} other pairs make as few errors: try more utterances)" if ties else ""
    print(
        f"Best: --lm {arguments.lm} --lm-weight {weight:g} --insertion-bonus {bonus:g}: {scores[weight, bonus]}{tied}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

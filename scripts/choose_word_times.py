#!/usr/bin/env python
"""Choose where a checkpoint takes the times of words from, on data whose true times are known, and keep it in it.

    python scripts/choose_word_times.py demo_output/run/best DATA --split validation --test-split test
    python scripts/choose_word_times.py CHECKPOINT DATA --times validation.ctm

Every monotonic head, CTC and cross-attention are tried, each with its best offset; what is nearest to the true starts
and ends of the words (median distance, greedy search) is written into the checkpoint's generation_config.json, where
`pipeline(..., return_timestamps="word")` finds it. DATA is a folder as scripts/train.py takes it. The true times are in
a CTM file (utterance, channel, start, duration, word), or in the word_times.json of data that corpora/prompts.py
composed. Report the times of other utterances than you choose on: --test-split, with --test-times for a CTM file.
"""

import argparse
import sys
from pathlib import Path
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="local folder")
    parser.add_argument("data", type=Path, help="folder of the data")
    parser.add_argument("--split", default="validation", help="to choose on (default: validation)")
    parser.add_argument("--times", type=Path, help="CTM file of it (default: the data's word_times.json)")
    parser.add_argument("--test-split", help="to measure what was chosen on")
    parser.add_argument("--test-times", type=Path, help="CTM file of it")
    parser.add_argument("--max-utterances", type=int, help="of each split, only the first so many")
    parser.add_argument("--only-measure", action="store_true", help="measure what the checkpoint has; choose nothing")
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.recognition.utterances import DataError, prepare_split, read_split
from hf_entmax_asr.recognition.word_times import choose_word_times, measure_word_times, true_words


@reports_errors("choose_word_times.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    model: Any
    try:
        model, processor = load_recogniser(arguments.checkpoint, arguments.device)

        def over(work: Any, split: str, ctm: Path | None) -> Any:
            utterances = prepare_split(read_split(arguments.data, split, most=arguments.max_utterances), processor)
            truth = true_words(arguments.data, split, ctm)
            with tqdm(total=sum(name in truth for name in utterances.ids), unit="utt", disable=None) as bar:
                return work(model, processor, utterances, truth, progress=bar.update)

        if not arguments.only_measure:
            settings = over(choose_word_times, arguments.split, arguments.times)
            print(f"chosen on {arguments.split}: {settings}")
            generation: Any = model.generation_config
            generation.word_times = settings
            generation.save_pretrained(arguments.checkpoint)
        if arguments.test_split is not None:
            errors = over(measure_word_times, arguments.test_split, arguments.test_times)
            print(f"{arguments.test_split}: {errors}")
    except (CheckpointError, DataError, OSError, ValueError) as error:
        print(f"choose_word_times.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

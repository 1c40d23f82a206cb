#!/usr/bin/env python
"""Times of words, side by side: checkpoints of this package and Whisper's own word timestamps in transformers.

    python -m experiments.from_whisper.word_times /work/whisper-tiny.en runs/mine/best --data DATA \\
        --split test --times test.ctm --utterances 100

The first is a Whisper in transformers' format, the others are checkpoints, whose times are chosen beforehand on other
data (scripts/choose_word_times.py). Measured are the words that each recognises right, and those that all do. The true
times are in a CTM file, or in the word_times.json of composed prompts.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("whisper", help="a Whisper in transformers' format: folder or Hub repository")
    parser.add_argument("checkpoints", nargs="+", help="of this package")
    parser.add_argument("--data", type=Path, required=True, help="a folder corpus")
    parser.add_argument("--split", default="test")
    parser.add_argument("--times", type=Path, help="CTM file of its words (default: the data's word_times.json)")
    parser.add_argument("--utterances", type=int, help="only the first so many")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from tqdm import tqdm
from transformers import pipeline
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.analysis.phonemes import Interval
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.model.words import TimedText
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.utterances import DataError, prepare_split, read_split
from hf_entmax_asr.recognition.word_times import TimeErrors, measure_word_times, true_words

RATE = 16_000


def whisper_word_times(name: str, rows: Sequence[Mapping[str, Any]], truth: Mapping[str, list[Interval]]) -> TimeErrors:
    """Of transformers' pipeline: cross-attention of chosen heads, aligned by dynamic time warping."""
    recognise: Any = pipeline("automatic-speech-recognition", model=name, return_timestamps="word", device="cpu")
    errors = TimeErrors()
    for row in tqdm(rows, unit="utt", disable=None):
        waveform = read_audio(row["audio"], RATE)
        audio = {"raw": waveform, "sampling_rate": RATE}
        words = recognise(audio, generate_kwargs={"num_beams": 1})["chunks"]
        last = len(waveform) / RATE  # where a word's end is not known
        timed = [TimedText(w["text"], w["timestamp"][0], w["timestamp"][1] or last, 1.0) for w in words]
        errors.add(row["id"], truth[row["id"]], timed)
    return errors


@reports_errors("word_times.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()
    truth = true_words(arguments.data, arguments.split, arguments.times)
    rows = read_split(arguments.data, arguments.split, most=arguments.utterances)
    timed = [row for row in rows if row["id"] in truth]
    results = {arguments.whisper: whisper_word_times(arguments.whisper, timed, truth)}
    for checkpoint in arguments.checkpoints:
        model, processor = load_recogniser(checkpoint, "cpu")
        results[checkpoint] = measure_word_times(model, processor, prepare_split(rows, processor), truth)
    common = set.intersection(*(set(errors.of_word) for errors in results.values()))
    if not common:
        raise DataError("there is no word that all of them recognise right, so there are no times to compare")
    for name, errors in results.items():
        print(f"{name}: {errors}")
        print(f"  the words that all recognise: {errors.among(common)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

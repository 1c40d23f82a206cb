#!/usr/bin/env python
"""Score a checkpoint on a data set.

    python scripts/evaluate.py runs/demo/best DATA --split test --num-beams 5 --output scores.jsonl

CHECKPOINT is a folder or a Hub repository; DATA is a folder as scripts/train.py takes it. The scores are printed; the
output file has one JSON line per utterance: id, reference, hypothesis, and the counts of its word errors. Texts are
compared as they are.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.metrics import error_counts
from hf_entmax_asr.training import CheckpointError, DataError, Scores, SpeechSeq2SeqCollator, decoding_as, recognise
from hf_entmax_asr.training.checkpointing import write_text_atomically
from hf_entmax_asr.training.evaluation import load_recogniser
from hf_entmax_asr.training.utterances import Utterances, prepare_split


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("data", help="folder of the data")
    parser.add_argument("--split", default="test", help="sub-folder of the data (default: test)")
    parser.add_argument("--num-beams", "--num_beams", type=int, default=1, help="beam width (default: 1, greedy)")
    parser.add_argument("--decoding", choices=("hard", "soft"), help="of monotonic heads (default: the checkpoint's)")
    parser.add_argument(
        "--firing-rule", choices=("threshold", "cumulative"), help="when a hard head stops (default: the checkpoint's)"
    )
    parser.add_argument("--frames-per-batch", type=int, default=16000, help="padded 10 ms frames in a batch")
    parser.add_argument("--max-utterances", type=int, help="score only the first so many")
    parser.add_argument("--output", type=Path, help="file for the utterances, as JSON lines")
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    return parser.parse_args()


def load_utterances(arguments: argparse.Namespace, processor) -> Utterances:
    splits = load_folder(arguments.data)
    if arguments.split not in splits:
        raise DataError(f"{arguments.data} has no split {arguments.split!r}; --split takes one of {', '.join(splits)}")
    rows = splits[arguments.split]
    if arguments.max_utterances is not None:
        rows = rows.select(range(min(arguments.max_utterances, len(rows))))
    if len(rows) == 0:
        raise DataError(f"the split {arguments.split!r} of {arguments.data} has no utterances")
    return prepare_split(rows, processor)


def write_utterances(path: Path, utterances: Utterances, hypotheses: list[str]) -> None:
    lines = []
    for name, reference, hypothesis in zip(utterances.ids, utterances.texts, hypotheses, strict=True):
        counts = error_counts([reference], [hypothesis])
        record = {
            "id": name,
            "reference": reference,
            "hypothesis": hypothesis,
            "substitutions": counts.substitutions,
            "insertions": counts.insertions,
            "deletions": counts.deletions,
            "reference_words": counts.reference_length,
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text_atomically(path, "".join(lines))


def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        model, processor = load_recogniser(arguments.checkpoint, arguments.device)
        utterances = load_utterances(arguments, processor)
        collate = SpeechSeq2SeqCollator(processor)
        with (
            decoding_as(model, arguments.decoding, arguments.firing_rule),
            tqdm(total=len(utterances), unit="utt", disable=None) as bar,
        ):
            hypotheses = recognise(
                model,
                processor.tokenizer,
                utterances.frames,
                lambda indices: collate([utterances.example(i) for i in indices]),
                frames_per_batch=arguments.frames_per_batch,
                num_beams=arguments.num_beams,
                progress=bar.update,
            )
    except (CheckpointError, DataError, FileNotFoundError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 1
    if arguments.output is not None:
        write_utterances(arguments.output, utterances, hypotheses)
    scores = Scores.of(utterances.texts, hypotheses)
    print(f"{len(utterances)} utterances of {arguments.split}")
    print(scores.words)
    print(scores.characters)
    if scores.warning is not None:
        print(scores.warning)
    return 0


if __name__ == "__main__":
    sys.exit(main())

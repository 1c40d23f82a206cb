#!/usr/bin/env python
"""Check a corpus, count it, and make what training needs of it: a tokenizer and the statistics for global CMVN.

    python scripts/prepare.py aishell1 /data/data_aishell
    python scripts/prepare.py wsj /data/wsj --num-proc 8
    python scripts/prepare.py librispeech /data/LibriSpeech --vocab-size 5000 --cmvn-utterances 10000
    python scripts/prepare.py folder my_corpus --output prepared/mine

The rows (ids, paths, texts, durations) are cached by the datasets library (HF_DATASETS_CACHE says where), so the audio
files are checked once and training starts at once. OUTPUT (default prepared/CORPUS) is a processor folder, which
train.py uses by `--set data.prepared=OUTPUT`, and scripts/recipes/CORPUS_paper.yaml and CORPUS_strong.yaml by
themselves. It is written as a whole or not at all, and kept when nothing has changed.
"""

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

from program_options import corpora


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=corpora(), help="the form of the data")
    parser.add_argument("root", type=Path, help="its folder, as it was unpacked")
    parser.add_argument("--output", type=Path, help="folder to write (default: prepared/CORPUS)")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="check only these splits (default: all there are)")
    parser.add_argument(
        "--train-splits",
        nargs="+",
        metavar="SPLIT",
        help="of which tokenizer and statistics are made (default, by corpus: train, train-* or train_si284)",
    )
    parser.add_argument("--tokenizer", choices=("character", "bpe"), help="(default: character, of librispeech bpe)")
    parser.add_argument("--vocab-size", type=int, default=5000, help="tokens of a bpe tokenizer (default: 5000)")
    parser.add_argument("--feature-size", type=int, default=80, help="mel bins (default: 80)")
    parser.add_argument(
        "--cmvn-utterances", type=int, metavar="N", help="measure N evenly spaced training utterances (default: all)"
    )
    parser.add_argument(
        "--bad-utterances",
        choices=("refuse", "drop"),
        default="refuse",
        help="what to do with damage (default: refuse)",
    )
    parser.add_argument("--num-proc", type=int, help="processes that check audio files (default: this one)")
    arguments = parser.parse_args()
    for name, lowest in (("cmvn_utterances", 1), ("num_proc", 1)):
        value = getattr(arguments, name)
        if value is not None and value < lowest:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be at least {lowest}")
    arguments.output = arguments.output or Path("prepared") / arguments.corpus
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from datasets import concatenate_datasets
from tqdm import tqdm

from hf_entmax_asr.atomic_files import check_folder_writable
from hf_entmax_asr.corpora import CORPORA
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.training.prepared_folder import (
    check_replaceable,
    is_up_to_date,
    make_processor,
    prepared_settings,
    write_prepared_folder,
)


def prepare(arguments: argparse.Namespace) -> None:
    corpus, output = CORPORA[arguments.corpus], arguments.output
    check_folder_writable(output)
    check_replaceable(output)
    splits, report = corpus.read(
        arguments.root,
        splits=arguments.splits,
        bad_utterances=arguments.bad_utterances,
        num_proc=arguments.num_proc,
    )
    print(report, flush=True)
    train = arguments.train_splits or corpus.choose_train_splits(splits)
    if not set(train) <= set(splits):
        raise ValueError(f"--train-splits are {', '.join(train)}; the splits there are {', '.join(splits)}")
    rows = concatenate_datasets([splits[name] for name in train])
    options = ("tokenizer", "vocab_size", "feature_size", "cmvn_utterances")
    chosen = {name: getattr(arguments, name) for name in options}
    settings = prepared_settings(corpus, arguments.root, train, rows, **chosen)
    if is_up_to_date(output, settings):
        print(f"{output} is up to date")
    else:
        track = partial(tqdm, desc="mean and deviation", unit="utt", disable=None)
        processor = make_processor(settings, rows, track)
        write_prepared_folder(output, processor, settings, report)
        measured = f"global CMVN of {settings.cmvn_utterances:,} utterances"
        print(f"{output}: {len(processor.tokenizer)} tokens ({settings.tokenizer}), {measured}")
    print(f"train with: {training_command(arguments, train)}")


def training_command(arguments: argparse.Namespace, train: list[str]) -> str:
    """The command that trains on what was prepared; a corpus's own recipe names the corpus and its validation split."""
    corpus = CORPORA[arguments.corpus]
    recipe = "RECIPE" if corpus.recipe is None else f"scripts/recipes/{corpus.recipe}"
    own = "" if corpus.recipe else f" data.corpus={corpus.name} data.validation_split={corpus.validation_split}"
    return (
        f"python scripts/train.py --recipe {recipe} --data {arguments.root} --output runs/{corpus.name} "
        f"--set data.prepared={arguments.output} data.train_split={'+'.join(train)}{own}"
    )


@reports_errors("prepare.py")
def main() -> int:
    arguments = parse()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)  # the report is printed as it is
    try:
        prepare(arguments)
    except (OSError, ImportError, ValueError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

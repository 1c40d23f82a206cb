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
import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets
from tqdm import tqdm

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora import CORPORA, read_corpus
from hf_entmax_asr.corpora.wsj import NOISE
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.tokenization import train_bpe_tokenizer, train_character_tokenizer

SUMMARY = "prepared.json"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=CORPORA, help="the form of the data")
    parser.add_argument("root", type=Path, help="its folder, as it was unpacked")
    parser.add_argument("--output", type=Path, help="folder to write (default: prepared/CORPUS)")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="check only these splits (default: all there are)")
    parser.add_argument(
        "--train-splits",
        nargs="+",
        metavar="SPLIT",
        help="of which tokenizer and statistics are made (default: train, train_si284 or train_si84, all train-*)",
    )
    parser.add_argument(
        "--tokenizer", choices=("character", "bpe"), help="default: bpe for librispeech, else character"
    )
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
    arguments.tokenizer = arguments.tokenizer or ("bpe" if arguments.corpus == "librispeech" else "character")
    return arguments


def training_splits(arguments: argparse.Namespace, splits: list[str]) -> list[str]:
    """The splits that were named, or the corpus's usual ones."""
    if arguments.train_splits:
        usual, chosen = arguments.train_splits, [name for name in arguments.train_splits if name in splits]
        if len(chosen) < len(usual):
            raise ValueError(f"--train-splits are {', '.join(usual)}; the splits there are {', '.join(splits)}")
    elif arguments.corpus == "wsj":
        usual = ["train_si284", "train_si84"]
        chosen = [name for name in usual if name in splits][:1]  # the larger holds the smaller
    elif arguments.corpus == "librispeech":
        usual, chosen = ["train-*"], [name for name in splits if name.startswith("train-")]
    else:
        usual, chosen = ["train"], [name for name in splits if name == "train"]
    if not chosen:
        raise ValueError(
            f"no split to train on ({' or '.join(usual)}); name some of {', '.join(splits)}: --train-splits"
        )
    return chosen


def settings(arguments: argparse.Namespace, train: list[str], rows: Any) -> dict[str, Any]:
    """All that decides what is made: where it equals what an earlier call noted, its output is up to date."""
    digest = hashlib.sha256()
    for batch in rows.select_columns(["id", "text", "duration"]).iter(batch_size=1000):
        for row in zip(batch["id"], batch["text"], batch["duration"], strict=True):
            digest.update("\t".join(map(str, row)).encode() + b"\n")
    bpe = arguments.tokenizer == "bpe"
    return {
        "corpus": arguments.corpus,
        "root": str(arguments.root.absolute()),
        "train_splits": train,
        "tokenizer": arguments.tokenizer,
        "vocab_size": arguments.vocab_size if bpe else None,
        "word_boundary": arguments.corpus != "aishell1",
        "symbols": [NOISE] if arguments.corpus == "wsj" and not bpe else [],
        "feature_size": arguments.feature_size,
        "cmvn_utterances": min(arguments.cmvn_utterances or len(rows), len(rows)),
        "data": digest.hexdigest()[:16],
    }


def make_processor(chosen: dict[str, Any], rows: Any) -> EntmaxAsrProcessor:
    """The tokenizer of the training texts, and the feature extractor with their mean and deviation."""
    texts = rows["text"][:]
    if chosen["tokenizer"] == "bpe":
        tokenizer = train_bpe_tokenizer(texts, chosen["vocab_size"])
    else:
        tokenizer = train_character_tokenizer(texts, word_boundary=chosen["word_boundary"], symbols=chosen["symbols"])
    extractor = EntmaxAsrFeatureExtractor(feature_size=chosen["feature_size"])
    extractor.fit_global_cmvn(
        waveforms(rows, chosen["cmvn_utterances"], extractor.sampling_rate), sampling_rate=extractor.sampling_rate
    )
    return EntmaxAsrProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def waveforms(rows: Any, count: int, sampling_rate: int) -> Iterator[Any]:
    for index in tqdm(range(count), desc="mean and deviation", unit="utt", disable=None):
        yield read_audio(rows[index * len(rows) // count]["audio"], sampling_rate)


def check_replaceable(output: Path) -> None:
    if output.exists() and any(output.iterdir()) and not (output / SUMMARY).is_file():
        raise ValueError(f"{output} holds something else than prepare.py's output: name another folder by --output")


def write(processor: EntmaxAsrProcessor, summary: dict[str, Any], output: Path) -> None:
    """Fill a new folder, then put it in the place of the old one."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        processor.save_pretrained(new)
        (new / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if output.exists():
            output.rename(old)
        try:
            new.rename(output)
        except OSError:
            old.rename(output)
            raise


def prepare(arguments: argparse.Namespace) -> None:
    check_replaceable(arguments.output)
    options = {}
    if arguments.corpus != "folder":
        options = {key: getattr(arguments, key) for key in ("bad_utterances", "num_proc")}
    splits, report = read_corpus(arguments.corpus, arguments.root, splits=arguments.splits, **options)
    print(report, flush=True)
    train = training_splits(arguments, list(splits))
    rows = concatenate_datasets([splits[name] for name in train])
    chosen = settings(arguments, train, rows)
    summary = arguments.output / SUMMARY
    if summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["settings"] == chosen:
        print(f"{arguments.output} is up to date")
    else:
        processor = make_processor(chosen, rows)
        counts = {name: {"utterances": split.utterances, "hours": split.hours} for name, split in report.splits.items()}
        write(processor, {"settings": chosen, "splits": counts, "tokens": len(processor.tokenizer)}, arguments.output)
        measured = f"global CMVN of {chosen['cmvn_utterances']:,} utterances"
        print(f"{arguments.output}: {len(processor.tokenizer)} tokens ({chosen['tokenizer']}), {measured}")
    own = arguments.corpus != "folder"  # these have recipes, which name their validation split
    recipe = f"scripts/recipes/{arguments.corpus}_strong.yaml" if own else "RECIPE"
    print(
        f"train with: python scripts/train.py --recipe {recipe} --data {arguments.root} "
        f"--output runs/{arguments.corpus} --set data.prepared={arguments.output} data.train_split={'+'.join(train)}"
        + ("" if own else " data.validation_split=SPLIT")
    )


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

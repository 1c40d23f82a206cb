#!/usr/bin/env python
"""Train an n-gram language model on text, for the option --lm of scripts/evaluate.py and scripts/transcribe.py.

    python scripts/train_lm.py DATA more_text.txt --output lm.arpa --order 3 --test DATA --test-split validation
    python scripts/train_lm.py DATA --output lm.arpa --unit character --order 6

Each SOURCE is a text file with one sentence a line, or a folder of data as scripts/train.py takes it. Write the text as
the transcripts are written: same case, no punctuation if they have none. Training takes KenLM's lmplz if it is on the
PATH, else IRSTLM (Debian: apt-get install irstlm); the perplexity of --test is by KenLM (the extra `lm`).
"""

import argparse
import logging
import sys
from pathlib import Path

from program_options import corpora


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", help="text files, or folders of data")
    parser.add_argument("--corpus", choices=corpora(), default="folder", help="the form of those folders")
    parser.add_argument("--split", default="train", help="of folders of data (default: train)")
    parser.add_argument("--output", type=Path, required=True, help="the ARPA file to write")
    parser.add_argument("--order", type=int, default=3, help="length of the longest n-grams, 2 to 6 (default: 3)")
    parser.add_argument("--unit", choices=("word", "character"), default="word", help="default: word")
    parser.add_argument("--tool", choices=("lmplz", "irstlm"), help="default: lmplz where it is found, else irstlm")
    parser.add_argument("--test", type=Path, nargs="+", default=[], help="sources to take the perplexity of")
    parser.add_argument("--test-split", default="validation", help="of folders of data (default: validation)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.input_files import InputFileError, read_text
from hf_entmax_asr.ngram_lm import LanguageModelError, NgramModel, train_ngram
from hf_entmax_asr.recognition.utterances import DataError, read_split


def read_texts(sources: list[Path], split: str, corpus: str) -> list[str]:
    texts: list[str] = []
    for source in sources:
        if source.is_dir():
            found = read_split(str(source), split, corpus)["text"]
        else:
            found = read_text(source).split("\n")
        found = [text for text in found if text.strip()]
        if not found:
            raise InputFileError(f"{source} holds no text")
        texts += found
    return texts


@reports_errors("train_lm.py")
def main() -> int:
    arguments = parse()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        texts = read_texts(arguments.sources, arguments.split, arguments.corpus)
        tests = read_texts(arguments.test, arguments.test_split, arguments.corpus)
        method = train_ngram(texts, arguments.output, order=arguments.order, unit=arguments.unit, tool=arguments.tool)
        print(f"{arguments.output}: {arguments.unit}s, order {arguments.order}, {len(texts):,} sentences ({method})")
        if tests:
            model = NgramModel(arguments.output, unit=arguments.unit)
            units = [unit for text in tests for unit in model.units(text)]
            unknown = sum(unit not in model.unigrams for unit in units)
            print(
                f"perplexity {model.perplexity(tests):.4g} over {len(units):,} {arguments.unit}s and {len(tests):,} "
                f"sentence ends; {unknown:,} {arguments.unit}s unknown"
            )
    except (LanguageModelError, DataError, OSError, InputFileError, ImportError) as error:
        print(f"train_lm.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

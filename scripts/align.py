#!/usr/bin/env python
"""When each word of a corpus is spoken, by a recogniser's own cross-attention: a CTM file.

    python scripts/align.py runs/tiny DATA --split train --lower-case --output train.ctm

CHECKPOINT must have full cross-attention: a converted Whisper, or one trained so. Its maps divide the audio among the
tokens of each transcript (a path as in Whisper's word times). Training takes the file as data.word_times, which the
head penalty "reference" needs; CTM files of other aligners do as well. Utterances that hold more tokens than encoder
positions are left out and counted.
"""

import argparse
import logging
import sys
from pathlib import Path


def layer_and_head(text: str) -> tuple[int, int]:
    layer, head = text.split(".")
    return int(layer), int(head)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("data", help="folder of the data")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the CTM file to write")
    parser.add_argument("--corpus", default="folder", help="form of the data (folder)")
    parser.add_argument("--split", default="train", help="(train)")
    parser.add_argument("--lower-case", action="store_true", help="of the texts, as data.lower_case in training")
    parser.add_argument(
        "--heads", nargs="+", type=layer_and_head, metavar="LAYER.HEAD", help="to follow (default: the best ones)"
    )
    parser.add_argument("--device", default="cpu", help="(cpu)")
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.analysis.phonemes import ctm_lines
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.recognition import CheckpointError, DataError, load_recogniser
from hf_entmax_asr.recognition.utterances import prepare_split, read_split
from hf_entmax_asr.recognition.word_alignment import align_words

SHOWN_EVERY = 500  # utterances


@reports_errors("align.py")
def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    lines: list[str] = []
    done = 0
    try:
        model, processor = load_recogniser(arguments.checkpoint, arguments.device)
        rows = read_split(arguments.data, arguments.split, arguments.corpus, lower_case=arguments.lower_case)
        utterances = prepare_split(rows, processor)
        for done, (name, intervals) in enumerate(align_words(model, processor, utterances, arguments.heads), 1):
            lines += ctm_lines(name, intervals)
            if done % SHOWN_EVERY == 0:
                print(f"  {done:,} of {len(utterances):,}", flush=True)
    except (CheckpointError, DataError, ValueError) as error:
        print(f"align.py: {error}", file=sys.stderr)
        return 1
    write_text_atomically(arguments.output, "".join(lines))
    print(f"{arguments.output}: {done:,} of {len(utterances):,} utterances, {len(lines):,} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Make the attention of a checkpoint sparse without training it: α and a logit scale for each head, by calibration.

    python scripts/sparsify.py runs/tiny DATA --output runs/tiny_sparse --max-relative-error 0.1

Each head gets the sparsest α-entmax that changes what it reads by at most --max-relative-error, measured on a few clips
of DATA (their texts are needed for the decoder). Prints a line a head; training may go on from the result.
"""

import argparse
import logging
import sys
from pathlib import Path


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("data", help="folder of the data")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the sparse checkpoint")
    parser.add_argument("--corpus", default="folder", help="form of the data (folder)")
    parser.add_argument("--split", default="train", help="whose clips are used (train)")
    parser.add_argument("--lower-case", action="store_true", help="of the texts, as data.lower_case in training")
    parser.add_argument("--clips", type=int, default=4, help="how many, evenly spaced over the split (4)")
    parser.add_argument("--max-relative-error", type=float, default=0.1, help="of what a head reads (0.1)")
    parser.add_argument(
        "--kinds", nargs="+", default=("encoder", "decoder", "cross"), choices=("encoder", "decoder", "cross")
    )
    arguments = parser.parse_args(words)
    if arguments.clips < 1:
        parser.error(f"--clips is {arguments.clips}; it must be at least 1")
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import atomic_folder, check_folder_writable, write_text_atomically
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.pretrained import CalibratedHead, sparsify
from hf_entmax_asr.recognition import CheckpointError, DataError, SpeechSeq2SeqCollator, load_recogniser
from hf_entmax_asr.recognition.derived_card import derived_card
from hf_entmax_asr.recognition.utterances import prepare_split, read_split


def table(heads: list[CalibratedHead]) -> str:
    """A line a head, and the mean of each side."""
    lines = [f"{'head':36} {'alpha':>6} {'scale':>6} {'error':>6} {'zeros':>6}"]
    for head in heads:
        name = f"{head.module}, head {head.head}"
        lines.append(f"{name:36} {head.alpha:6.2f} {head.scale:6.2f} {head.relative_error:6.3f} {head.zero_share:6.1%}")
    for ending in ("encoder", "self_attn", "encoder_attn"):
        side = "encoder" if ending == "encoder" else "decoder"
        of_side = [
            h for h in heads if h.module.startswith(side) and (ending == "encoder" or h.module.endswith(f".{ending}"))
        ]
        if of_side:
            name = {"encoder": "encoder", "self_attn": "decoder", "encoder_attn": "cross-attention"}[ending]
            zeros = sum(head.zero_share for head in of_side) / len(of_side)
            lines.append(f"mean, {name}: {zeros:.1%} exact zeros")
    return "\n".join(lines)


@reports_errors("sparsify.py")
def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        if arguments.output.exists():
            raise DataError(f"{arguments.output} exists; name another folder")
        check_folder_writable(arguments.output)  # before the work
        model, processor = load_recogniser(arguments.checkpoint)
        rows = read_split(arguments.data, arguments.split, arguments.corpus, lower_case=arguments.lower_case)
        clips = rows.select(evenly_spaced(len(rows), arguments.clips))
        utterances = prepare_split(clips, processor)
        collate = SpeechSeq2SeqCollator(processor)
        batches = (collate([utterances.example(i)]) for i in range(len(utterances)))
        model, heads = sparsify(
            model, batches, max_relative_error=arguments.max_relative_error, kinds=tuple(arguments.kinds)
        )
        with atomic_folder(arguments.output) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            made = "Its attention was made sparse by calibration (sparsify.py)."
            write_text_atomically(
                folder / "README.md", derived_card(arguments.checkpoint, arguments.output.name, model, made)
            )
    except (CheckpointError, OSError, ValueError) as error:
        print(f"sparsify.py: {error}", file=sys.stderr)
        return 1
    print(table(heads))
    return 0


if __name__ == "__main__":
    sys.exit(main())

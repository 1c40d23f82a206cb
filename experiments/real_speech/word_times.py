#!/usr/bin/env python
"""When each word of a corpus is spoken: by forced alignment of the transcript with PocketSphinx (extra `phonemes`).

    python -m experiments.real_speech.word_times --splits test validation --output WORDS
    python -m experiments.real_speech.word_times --data DATA --splits test --output WORDS

Writes WORDS/SPLIT.ctm, a line a word: utterance, channel 1, start and duration in seconds, the word as the transcript
has it. Utterances that cannot be aligned are not in it; WORDS/SPLIT.json counts them by reason. A split whose files are
there is not aligned again. Takes about 4 CPU-seconds a minute of speech.

How true the times are: frames of 10 ms, from a small model of whole phonemes. On the test split of the corpus of
build_corpus.py the last word ends within 0.1 s of the last sound in three of four utterances, half of them within 0.03.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.real_speech.cache_folders import default_folder


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_folder(), help="folder of a corpus (default: %(default)s)")
    parser.add_argument("--splits", nargs="+", default=["test"], help="(default: test)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from hf_entmax_asr.analysis.phoneme_aligner import SAMPLING_RATE, AlignmentError, PocketsphinxAligner
from hf_entmax_asr.analysis.phonemes import Interval, ctm_lines
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora.folder import load_folder

SHOWN_EVERY = 100  # utterances


def align_words(aligner: PocketsphinxAligner, waveform: Any, text: str) -> list[Interval]:
    """The words of a transcript as it writes them, with their times.

    Raises:
        AlignmentError: it cannot be aligned, or has words that are not spoken as one.
    """
    words = text.split()
    intervals = aligner.align_words(waveform, text)
    if len(words) != len(intervals):
        raise AlignmentError(f"the transcript has {len(words)} words, of which {len(intervals)} are spoken")
    return [Interval(i.start, i.end, word) for i, word in zip(intervals, words, strict=True)]


def write_split(rows: Sequence[dict[str, Any]], ctm: Path, summary: Path) -> dict[str, Any]:
    """Align the utterances of a split and write both files; returns the summary."""
    aligner = PocketsphinxAligner()
    lines: list[str] = []
    failed: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        try:
            waveform = read_audio(row["audio"], sampling_rate=SAMPLING_RATE)
            lines += ctm_lines(row["id"], align_words(aligner, waveform, row["text"]))
        except AlignmentError as error:
            failed[row["id"]] = str(error)
        if number % SHOWN_EVERY == 0:
            print(f"  {number:,} of {len(rows):,}", flush=True)
    found = {
        "utterances": len(rows),
        "aligned": len(rows) - len(failed),
        "words": len(lines),
        "reasons": Counter(re.sub(r": .*", "", reason) for reason in failed.values()),
        "not_aligned": failed,
    }
    write_text_atomically(ctm, "".join(lines))
    write_text_atomically(summary, json.dumps(found, indent=1) + "\n")  # last: with it the split is whole
    return found


def describe(split: str, found: dict[str, Any]) -> str:
    head = f"{split}: {found['aligned']:,} of {found['utterances']:,} utterances, {found['words']:,} words"
    return "\n".join([head, *(f"  {count:,} not aligned: {reason}" for reason, count in found["reasons"].items())])


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    try:
        corpus = load_folder(arguments.data)
        if missing := [split for split in arguments.splits if split not in corpus]:
            raise ValueError(f"{arguments.data} has no split {', '.join(missing)}; it has {', '.join(corpus)}")
        for split in arguments.splits:
            ctm, summary = (arguments.output / f"{split}.{kind}" for kind in ("ctm", "json"))
            if ctm.is_file() and summary.is_file():
                found = json.loads(summary.read_text(encoding="utf-8"))
            else:
                found = write_split(list(corpus[split]), ctm, summary)
            print(describe(split, found), flush=True)
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(f"word_times.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

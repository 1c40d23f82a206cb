#!/usr/bin/env python
"""From a pretrained Whisper to a sparse, monotonic recogniser of one's own audio, with every command shown.

    python -m experiments.from_whisper.road --output pretrained_output

Fetches Whisper tiny.en and a corpus of 4 hours of acted speech (a Debian package), converts, calibrates, aligns,
fine-tunes, scores, draws, transcribes. What is there is not made again, a training that was stopped goes on: start it
anew after an interruption. With --whisper and --data it takes yours instead.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, default=ROOT / "pretrained_output", help="(default: %(default)s)")
    parser.add_argument("--whisper", help="another Whisper: a folder or a Hub name")
    parser.add_argument("--data", type=Path, help="another corpus, with the splits train, validation and test")
    parser.add_argument("--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="override recipe values")
    parser.add_argument("--analyzed", type=int, default=100, help="utterances of the test split to draw (100)")
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from transformers import pipeline
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora.folder import load_folder

RECIPE = ROOT / "scripts" / "recipes" / "whisper_finetune.yaml"
MONOTONIC = (
    "cross_attention=monotonic",
    "monotonic_chunk_size=null",
    "energy_bias_init=-2.5",
    "firing_rule=cumulative",
    "firing_probability=0.7",
)


class StageError(RuntimeError):
    """A command of the road failed; what it said stands above."""


def run(title: str, words: Sequence[str | Path], made: Path) -> None:
    """Run a command of this repository, unless what it makes is there."""
    if made.exists():
        print(f"\n{title}: {made} is there", flush=True)
        return
    command = [str(word) for word in words]
    print(f"\n{title}\n$ python {shlex.join(command)}", flush=True)
    began = time.monotonic()
    if status := subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
        raise StageError(f"{title} ended with status {status}; start again to go on from here")
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


def prepare(arguments: argparse.Namespace, output: Path) -> tuple[str, Path]:
    """The Whisper and the corpus, fetched where none is named."""
    whisper, data = arguments.whisper, arguments.data
    if whisper is None:
        whisper = str(output / "whisper")
        words = ("-m", "experiments.real_speech.whisper_weights", "tiny.en", "--output", whisper)
        run("Weights of Whisper tiny.en", words, Path(whisper))
    if data is None:
        data = output / "corpus"
        words = ("-m", "experiments.real_speech.build_corpus", "amazon_queen", "--output", str(data))
        run("Corpus: Flight of the Amazon Queen", words, data)
    return whisper, data.absolute()


def travel(arguments: argparse.Namespace) -> None:
    """All stages, in order."""
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    whisper, data = prepare(arguments, output)
    full, start, sparse = output / "full", output / "start", output / "sparse"
    convert = ("scripts/convert_whisper.py", whisper, "--min-seconds", "0")
    run("Convert, as it is", (*convert, "--output", full), full)
    run("Convert, monotonic", (*convert, "--output", start, "--config", *MONOTONIC), start)
    kinds = ("--kinds", "encoder", "decoder", "--lower-case")
    run("Calibrate: sparse heads", ("scripts/sparsify.py", start, data, *kinds, "--output", sparse), sparse)
    words = output / "words.ctm"
    run("When each word is spoken", ("scripts/align.py", full, data, "--lower-case", "--output", words), words)
    training, trained = output / "run", output / "trained"  # the second says that training came to its end
    resume = ("--resume",) if (training / "last").exists() else ()
    settings = (
        f"start_from={sparse}",
        "model.head_regularizer=reference",
        "model.head_regularizer_weight=0.0002",
        f"data.word_times={words}",
        *arguments.set,
    )
    run(
        "Fine-tune",
        ("scripts/train.py", "--recipe", RECIPE, "--data", data, "--output", training, *resume, "--set", *settings),
        trained,
    )
    trained.touch()
    best, scored = training / "best", output / "test.jsonl"
    run("Scores, hard", ("scripts/evaluate.py", best, data, "--lower-case", "--output", scored), scored)
    soft = output / "test_soft.jsonl"
    options = ("--lower-case", "--decoding", "soft", "--output", soft)
    run("Scores, soft", ("scripts/evaluate.py", best, data, *options), soft)
    report = output / "report"
    few = ("--lower-case", "--max-utterances", str(arguments.analyzed), "--out", report)
    run("Pictures of what attention does", ("scripts/analyze.py", best, data, *few), report / "index.html")
    transcribe(best, data, output / "transcript.json")


def transcribe(checkpoint: Path, data: Path, file: Path) -> None:
    """A clip of the test split through transformers' pipeline."""
    row = load_folder(data)["test"][0]
    recogniser: Any = pipeline("automatic-speech-recognition", model=str(checkpoint), trust_remote_code=True)
    heard = recogniser({"raw": read_audio(row["audio"], 16_000), "sampling_rate": 16_000})["text"]
    print(f"\nThrough transformers' pipeline, {row['id']}:\n  said:  {row['text'].lower()}\n  heard: {heard}")
    write_text_atomically(file, json.dumps({"id": row["id"], "said": row["text"], "heard": heard}, indent=1) + "\n")


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    disable_progress_bar()
    began = time.monotonic()
    try:
        travel(arguments)
    except StageError as error:
        print(f"road.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes. The recogniser: {arguments.output / 'run' / 'best'}")
    print(f"Pictures: {arguments.output / 'report' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

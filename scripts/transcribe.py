#!/usr/bin/env python
"""Transcribe audio files, or every audio file below a folder.

    python scripts/transcribe.py runs/demo/best recording.wav interviews/ --output transcripts.json

CHECKPOINT is a folder or a Hub repository. Files may be wav, flac, ogg, opus or mp3, of any sampling rate. A file that
cannot be read is reported and does not keep the others from being done; the exit status is then 1.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import check_writable, write_text_atomically
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.ngram_lm import LanguageModelError, add_language_model_options, with_language_model
from hf_entmax_asr.recognition import decoding_as
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.recognition.transcription import (
    Transcript,
    find_audio,
    left_out,
    shown,
    transcribe_files,
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("audio", type=Path, nargs="+", help="files or folders")
    parser.add_argument("--output", default="-", help="file to write, or - for the screen (default)")
    parser.add_argument("--format", choices=("text", "json"), help="default: json for an output file named *.json")
    parser.add_argument("--num-beams", "--num_beams", type=int, default=1, help="beam width (default: 1, greedy)")
    parser.add_argument("--decoding", choices=("hard", "soft"), help="of monotonic heads (default: the checkpoint's)")
    parser.add_argument(
        "--firing-rule", choices=("threshold", "cumulative"), help="when a hard head stops (default: the checkpoint's)"
    )
    parser.add_argument("--max-seconds", type=float, default=60.0, help="longer files are refused (default: 60)")
    add_language_model_options(parser)
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    arguments = parser.parse_args()
    if arguments.format is None:
        arguments.format = "json" if arguments.output.endswith(".json") else "text"
    return arguments


def formatted(transcripts: list[Transcript], form: str, several: bool) -> str:
    """Text: one line per file, with its name where there are several. JSON: a list of objects."""
    if form == "json":
        records = [{k: v for k, v in dataclasses.asdict(t).items() if v is not None} for t in transcripts]
        return json.dumps(records, ensure_ascii=False, indent=2) + "\n"
    done = [t for t in transcripts if t.error is None]
    return "".join(f"{t.file}\t{t.text}\n" if several else f"{t.text}\n" for t in done)


@reports_errors("transcribe.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    if arguments.output != "-":
        check_writable(Path(arguments.output))  # before the work
    files = find_audio(arguments.audio)
    if passed_over := left_out(arguments.audio):
        suffixes = ", ".join(sorted({shown(path.suffix.lower() or path.name) for path in passed_over}))
        print(f"transcribe.py: {len(passed_over)} files are left out, not named as audio: {suffixes}", file=sys.stderr)
    if not files:
        print(f"transcribe.py: no audio files in {', '.join(map(str, arguments.audio))}", file=sys.stderr)
        return 1
    try:
        model, processor = load_recogniser(arguments.checkpoint, arguments.device, any_system=True)
        model = with_language_model(model, processor, arguments)
    except (CheckpointError, LanguageModelError, FileNotFoundError, ImportError) as error:
        print(f"transcribe.py: {error}", file=sys.stderr)
        return 1
    transcripts = []
    to_screen = arguments.output == "-"
    with decoding_as(model, arguments.decoding, arguments.firing_rule):
        for transcript in transcribe_files(
            model, processor, files, max_seconds=arguments.max_seconds, num_beams=arguments.num_beams
        ):
            transcripts.append(transcript)
            if transcript.error is not None:
                print(f"{transcript.file}: {transcript.error}", file=sys.stderr)
            elif to_screen and arguments.format == "text":
                print(formatted([transcript], "text", len(files) > 1), end="", flush=True)
    if not to_screen:
        text = formatted(transcripts, arguments.format, len(files) > 1)
        write_text_atomically(Path(arguments.output), text)
    elif arguments.format == "json":
        print(formatted(transcripts, "json", len(files) > 1), end="")
    return 1 if any(t.error is not None for t in transcripts) else 0


if __name__ == "__main__":
    sys.exit(main())

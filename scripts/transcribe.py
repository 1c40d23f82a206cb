#!/usr/bin/env python
"""Transcribe audio files, or every audio file below a folder.

    python scripts/transcribe.py runs/demo/best recording.wav interviews/ --output transcripts.json
    python scripts/transcribe.py runs/demo/best interviews/ --output-folder texts --format srt,json --resume
    accelerate launch scripts/transcribe.py runs/demo/best interviews/ --output-folder texts

CHECKPOINT is a folder or a Hub repository. Files may be wav, flac, ogg, opus, mp3 or m4a, of any sampling rate and any
length: those above --piece-seconds are cut at pauses. A file that cannot be read is reported and does not keep the
others from being done; the exit status is then 1. A run that was stopped goes on with --resume.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from program_options import DECODING, TRANSCRIPT_FORMS, add_decoding_options, add_language_model_options


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("audio", type=Path, nargs="+", help="files or folders")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", default="-", help="one file for all recordings, or - for the screen (default)")
    where.add_argument("--output-folder", type=Path, help="a folder, for a file for each recording and form")
    parser.add_argument(
        "--format",
        type=forms,
        help=f"{', '.join(TRANSCRIPT_FORMS)}, several with commas between (default: by the output's name, else txt)",
    )
    parser.add_argument("--resume", action="store_true", help="leave out what an earlier run that was stopped has done")
    parser.add_argument("--num-beams", "--num_beams", type=int, default=1, help="beam width (default: 1, greedy)")
    add_decoding_options(parser)
    parser.add_argument(
        "--piece-seconds", type=float, default=30.0, help="longer files are cut at their pauses (default: 30)"
    )
    parser.add_argument("--max-seconds", type=float, help="longer files are refused (default: none)")
    add_language_model_options(parser)
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    arguments = parser.parse_args()
    if arguments.format is None:
        suffix = Path(arguments.output).suffix.lower()[1:]
        arguments.format = (suffix if suffix in TRANSCRIPT_FORMS and arguments.output_folder is None else "txt",)
    if arguments.output_folder is None and len(arguments.format) > 1:
        parser.error(f"{len(arguments.format)} forms of output need --output-folder")
    if arguments.resume and arguments.output_folder is None and arguments.output == "-":
        parser.error("--resume needs --output or --output-folder: what is printed is not kept")
    return arguments


def forms(names: str) -> tuple[str, ...]:
    """The forms of output; "text" is another name of "txt"."""
    found = tuple(dict.fromkeys({"text": "txt"}.get(name, name) for name in names.lower().split(",")))
    if unknown := [name for name in found if name not in TRANSCRIPT_FORMS]:
        raise argparse.ArgumentTypeError(f"{', '.join(map(repr, unknown))} is none of {', '.join(TRANSCRIPT_FORMS)}")
    return found


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import check_folder_writable, check_writable, is_stream, write_text_atomically
from hf_entmax_asr.audio import announced_seconds
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.model.long_audio import PieceRule
from hf_entmax_asr.ngram_lm import with_language_model
from hf_entmax_asr.recognition import decoding_as
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.journal import Journal, file_version
from hf_entmax_asr.recognition.processes import Processes, processes
from hf_entmax_asr.recognition.transcript_forms import OF_ONE_RECORDING, WITH_TIMES, written_as
from hf_entmax_asr.recognition.transcript_places import TranscriptFolder, recording_names
from hf_entmax_asr.recognition.transcription import Transcript, left_out, shown, transcribe_files

SECONDS_PER_BATCH = 480.0  # of audio recognised together, so that pieces of similar length can share a batch
SECONDS_PER_SCREEN = 120.0  # where somebody is looking


@dataclass
class Run:
    """What is to be done, and where it goes."""

    arguments: argparse.Namespace
    team: Processes
    names: dict[Path, str]

    def __post_init__(self) -> None:
        arguments = self.arguments
        self.words = not WITH_TIMES.isdisjoint(arguments.format)
        self.to_screen = arguments.output_folder is None and arguments.output == "-"
        self.folder: TranscriptFolder | None = None
        journal: Path | None = None
        if arguments.output_folder is not None:
            check_folder_writable(arguments.output_folder)  # before the work
            self.folder = TranscriptFolder(arguments.output_folder, arguments.format)
            journal = arguments.output_folder / ".journal"
        elif not self.to_screen:
            output = Path(arguments.output)
            check_writable(output)
            journal = None if is_stream(output) else output.parent / f".{output.name}.journal"
        self.journal = None if journal is None else Journal(journal, self.settings())

    def settings(self) -> dict[str, Any]:
        """What the texts depend on."""
        given = vars(self.arguments)
        names = ["num_beams", *DECODING, "piece_seconds", "max_seconds"]
        names += ["lm", "lm_weight", "insertion_bonus", "lm_unit", "unknown_words"]
        weights = Path(self.arguments.checkpoint) / "model.safetensors"
        return {
            "checkpoint": self.arguments.checkpoint,
            "weights": file_version(weights),
            "words": self.words,
            **{name: str(given[name]) if isinstance(given[name], Path) else given[name] for name in names},
        }

    def earlier(self) -> dict[Path, Transcript]:
        """What an earlier run has done, of all processes; without --resume it is forgotten."""
        found: dict[str, Transcript] = {}
        if self.journal is not None and self.arguments.resume:
            found = self.journal.read()
        elif self.journal is not None:
            self.journal.remove()
        known = dict(self.team.gather(list(found.items())))  # and nobody begins before the journal is read, or gone
        return {file: known[key] for file in self.names if (key := str(file.absolute())) in known}

    def keep(self, file: Path, transcript: Transcript) -> None:
        """Writes what is finished; a transcript in the journal stands in its files already."""
        if transcript.error is not None:
            return
        if self.folder is not None:
            self.folder.write(self.names[file], transcript)
        if self.journal is not None:
            self.journal.add(file.absolute(), transcript)

    def pending(self, earlier: dict[Path, Transcript]) -> list[Path]:
        """The files of this process: those of similar size together, the largest first, but as given for the screen."""
        files = [file for file in self.names if file not in earlier]
        if not self.to_screen or self.team.world > 1:
            files.sort(key=lambda file: -((file_version(file) or [0])[0]))
        mine = self.team.share(files)
        if self.folder is not None:
            for file in mine:
                self.folder.tidy(self.names[file])
            for file in self.team.share(list(earlier)):  # in forms that the earlier run did not write
                self.folder.write(self.names[file], earlier[file], only_missing=True)
        return mine

    def transcribe(self, files: list[Path], bar: Any) -> Iterator[tuple[Path, Transcript]]:
        """Each file with what became of it, which is kept before the next is begun."""
        arguments = self.arguments
        model, processor = load_recogniser(arguments.checkpoint, arguments.device or self.team.device, any_system=True)
        model = with_language_model(model, processor, arguments)
        with ExitStack() as stack:
            stack.enter_context(decoding_as(model, **{name: getattr(arguments, name) for name in DECODING}))
            if self.journal is not None:
                stack.enter_context(self.journal)
            done = transcribe_files(
                model,
                processor,
                files,
                seconds_per_batch=SECONDS_PER_SCREEN if self.to_screen else SECONDS_PER_BATCH,
                max_seconds=arguments.max_seconds,
                num_beams=arguments.num_beams,
                piece_rule=PieceRule(longest_seconds=arguments.piece_seconds),
                words=self.words,
                progress=bar.update,
            )
            for file, transcript in zip(files, done, strict=True):
                self.keep(file, transcript)
                yield file, transcript

    def finish(self, transcripts: dict[Path, Transcript]) -> None:
        """Writes one file for all, or prints what has not been printed; for the main process."""
        files = [file for file in self.names if file in transcripts]
        form = self.arguments.format[0]
        if self.folder is None and not (self.to_screen and form == "txt" and self.team.world == 1):
            several = form == "json" or len(self.names) > 1
            text = written_as(form, [transcripts[f] for f in files], [self.names[f] for f in files], several)
            if self.to_screen:
                print(text, end="")
            else:
                write_text_atomically(Path(self.arguments.output), text)
        failed = any(transcript.error is not None for transcript in transcripts.values())
        if self.journal is not None and self.folder is None and not failed:
            self.journal.remove()


def announce(arguments: argparse.Namespace) -> dict[Path, str]:
    """The names of the recordings; what is left out is said."""
    names = recording_names(arguments.audio)
    if passed_over := left_out(arguments.audio):
        suffixes = ", ".join(sorted({shown(path.suffix.lower() or path.name) for path in passed_over}))
        print(f"transcribe.py: {len(passed_over)} files are left out, not named as audio: {suffixes}", file=sys.stderr)
    if not names:
        raise ValueError(f"no audio files in {', '.join(map(str, arguments.audio))}")
    single = OF_ONE_RECORDING.intersection(arguments.format)
    if len(names) > 1 and single and arguments.output_folder is None:
        raise ValueError(
            f"{len(names)} recordings do not fit one file of {', '.join(sorted(single))}: use --output-folder"
        )
    return names


@reports_errors("transcribe.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    team = processes()
    run = Run(arguments, team, announce(arguments) if team.is_main else recording_names(arguments.audio))
    earlier = run.earlier()
    files = run.pending(earlier)
    shows_bar = team.is_main and sys.stderr.isatty()
    total = sum(announced_seconds(file) or 0.0 for file in files) if shows_bar else None
    transcripts: dict[Path, Transcript] = {}
    shape = "{percentage:3.0f}% |{bar}| {n:,.0f} of {total:,.0f} s of audio, {elapsed} < {remaining}"
    with tqdm(total=total or None, disable=not shows_bar, bar_format=shape if total else None) as bar:
        for file, transcript in run.transcribe(files, bar) if files else ():
            transcripts[file] = transcript
            bar.clear()
            if transcript.error is not None:
                print(f"{transcript.file}: {transcript.error}", file=sys.stderr)
            elif run.to_screen and arguments.format == ("txt",) and team.world == 1:
                print(written_as("txt", [transcript], [], len(run.names) > 1), end="", flush=True)
    everything = earlier | dict(team.gather(list(transcripts.items())))
    if team.is_main:
        run.finish(everything)
    return 1 if any(transcript.error is not None for transcript in everything.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a long run has done, kept on the disk as it goes, so that a run that was stopped can go on.

A journal is a folder of JSON Lines files, one a process and run: first a line with the settings, then one line a
recording. A line is flushed to the disk before the next recording is begun. A kill can leave half a line at an end of a
file, which reading passes over; nothing is ever written behind it, for each run has a file of its own.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, TextIO

from hf_entmax_asr.recognition.transcript_forms import as_record, from_record
from hf_entmax_asr.recognition.transcription import Transcript

SUFFIX = ".jsonl"


class Journal:
    """The journal in `folder`, of a run with these settings."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder, self.settings = folder, settings
        self._file: TextIO | None = None

    def read(self) -> dict[str, Transcript]:
        """By file the transcripts of earlier runs, as far as the files are what they were; failures are left out.

        Raises:
            ValueError: an earlier run had other settings.
        """
        done: dict[str, Transcript] = {}
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            lines = _whole_lines(path)
            if not lines:
                continue
            self._check(path, lines[0])
            for line in lines[1:]:
                if line["version"] == file_version(Path(line["path"])):
                    done[line["path"]] = from_record(line["transcript"])
        return done

    def _check(self, path: Path, settings: dict[str, Any]) -> None:
        for name in {**self.settings, **settings}:
            if self.settings.get(name) != settings.get(name):
                raise ValueError(
                    f"{path} is of a run with {name} = {settings.get(name)!r}, now it is {self.settings.get(name)!r}: "
                    "go on with the settings of that run, or begin anew without --resume."
                )

    def add(self, path: Path, transcript: Transcript) -> None:
        """Adds a recording, and returns when it is on the disk."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, _ = tempfile.mkstemp(SUFFIX, dir=self.folder)
            self._file = os.fdopen(descriptor, "w", encoding="utf-8")
            self._write(self.settings)
        self._write({"path": str(path), "version": file_version(path), "transcript": as_record(transcript)})

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Forgets everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def file_version(path: Path) -> list[int] | None:
    """What changes when a file does: its size and when it was written; None where it is not there."""
    try:
        state = path.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines up to the first that is not whole."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines

"""Where transcripts of many recordings go: a file for each recording and form, under the recording's name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.recognition.transcript_forms import written_as
from hf_entmax_asr.recognition.transcription import Transcript, find_audio


def recording_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for every audio file of `find_audio`: its path below the folder that was given, without its suffix where
    no other file has that name; else with it.

    Raises:
        ValueError: two files would have the same name.
    """
    relative: dict[Path, Path] = {}
    for path in paths:
        for file in find_audio([path]):
            relative.setdefault(file, file.relative_to(path) if path.is_dir() else Path(file.name))
    bare = Counter(place.with_suffix("") for place in relative.values())
    names: dict[Path, str] = {}
    owners: dict[str, Path] = {}
    for file, place in relative.items():
        name = str(place if bare[place.with_suffix("")] > 1 else place.with_suffix(""))
        if (other := owners.setdefault(name, file)) is not file:
            raise ValueError(f"{other} and {file} would both be written as {name}: transcribe them in two calls.")
        names[file] = name
    return names


@dataclass(frozen=True)
class TranscriptFolder:
    """A folder with a file for each recording and form."""

    folder: Path
    forms: tuple[str, ...]

    def path(self, name: str, form: str) -> Path:
        return self.folder / f"{name}.{form}"

    def write(self, name: str, transcript: Transcript, only_missing: bool = False) -> None:
        """Every file of a transcript, each whole or not at all."""
        for form in self.forms:
            path = self.path(name, form)
            if not (only_missing and path.exists()):
                write_text_atomically(path, written_as(form, [transcript], [name], several=False))

    def tidy(self, name: str) -> None:
        """Takes away what a process that was killed had half written for this recording; nobody writes it now."""
        for form in self.forms:
            path = self.path(name, form)
            for left in path.parent.glob(f".{path.name[:40]}.*.partial") if "*" not in name and "[" not in name else ():
                left.unlink(missing_ok=True)

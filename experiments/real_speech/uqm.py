"""The recordings of the space game "The Ur-Quan Masters" (1992, voices of 1994) and the lines spoken in them.

Two zip archives, the game's content and the addon of voices. In them, a folder a role, here `spathi`:

    3dovoice/spathi/spathi-000.ogg   a reply, Ogg Vorbis
    3dovoice/spathi/spathi.txt       all lines; where the addon has none, base/comm/spathi/spathi.txt of the content:
        #(KEY)<tab>spathi-000.ogg
        a line of the subtitle a row; entries without a recording are not spoken
    3dovoice/spathi/spathi.ts        #(KEY) 8502,3188,5979      how long each line but the last takes, in ms
"""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.real_speech.corpus_folder import ContainerError

_ENTRY = re.compile(r"#\((?P<key>[^)\n]*)\)[ \t]*(?P<rest>[^\n]*)")


@dataclass(frozen=True)
class Reply:
    """A recording and its lines.

    Attributes:
        name: of the recording, without suffix.
        role: who speaks.
        key: the game's name of the reply.
        audio: Ogg Vorbis; None where the archive lacks the recording.
        lines: as the game shows them one after another.
        seconds: how long each line but the last takes; None where they are not told or do not fit the lines.
    """

    name: str
    role: str
    key: str
    audio: bytes | None
    lines: tuple[str, ...]
    seconds: tuple[float, ...] | None


def read_replies(voice: Path, content: Path) -> Iterator[Reply]:
    """The entries that name a recording, role by role.

    Raises:
        ContainerError: an archive is missing or damaged, or lacks the text of a role.
    """
    try:
        with zipfile.ZipFile(voice) as voices, zipfile.ZipFile(content) as texts:
            files = set(voices.namelist())
            for times_file in sorted(name for name in files if re.fullmatch(r"3dovoice/(\w+)/\1\.ts", name)):
                yield from _role(times_file.split("/")[1], voices, texts, files)
    except FileNotFoundError as error:
        raise ContainerError(f"there is no archive {error.filename}") from error
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ContainerError(f"{voice.name} or {content.name} is damaged: {error}") from error


def _role(role: str, voices: zipfile.ZipFile, texts: zipfile.ZipFile, files: set[str]) -> Iterator[Reply]:
    folder = f"3dovoice/{role}"
    archive, name = (voices, f"{folder}/{role}.txt")
    if name not in files:
        archive, name = texts, f"base/comm/{role}/{role}.txt"
    try:
        subtitles = archive.read(name).decode("utf-8")
    except KeyError as error:
        raise ContainerError(f"there is no text of {role}: {name} is in neither archive") from error
    times = _times(f"{folder}/{role}.ts", voices.read(f"{folder}/{role}.ts").decode("utf-8"))
    for key, recording, lines in read_entries(subtitles):
        if not recording:
            continue
        path = f"{folder}/{recording}"
        seconds = times.get(key)
        yield Reply(
            name=recording.removesuffix(".ogg"),
            role=role,
            key=key,
            audio=voices.read(path) if path in files else None,
            lines=lines,
            seconds=seconds if seconds is not None and len(seconds) == len(lines) - 1 else None,
        )


def read_entries(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The entries of a role's text: (key, recording or "", lines)."""
    heads = list(_ENTRY.finditer(text))
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        body = text[head.end() : following.start() if following else len(text)]
        recording = (head["rest"].split() or [""])[0]
        yield head["key"], recording, tuple(line.strip() for line in body.splitlines() if line.strip())


def _times(name: str, text: str) -> dict[str, tuple[float, ...]]:
    """Durations in seconds by key."""
    found = {}
    for head in _ENTRY.finditer(text):
        try:
            found[head["key"]] = tuple(int(ms) / 1000 for ms in head["rest"].split(",") if ms.strip())
        except ValueError as error:
            raise ContainerError(f"{name} is damaged at the times of {head['key']}: {error}") from error
    return found

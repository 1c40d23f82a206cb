"""The recordings of the adventure game "Flight of the Amazon Queen" (1995, freeware) and the lines spoken in them.

The talkie version is one file, queen.1c: a table of names, then the files. Numbers are big-endian.

    queen.1c  'QTBL', version (6 bytes), 2 bytes, compression (1 byte; 1 is MP3), u16 count, then per file: name (12
              bytes), bundle (u8), offset (u32), size (u32)
    *.SB      a recording
    *.DOG     a dialogue: what Joe King, whom one plays, and another character say, by the number of the line
    *.CUT     a cut-scene: lines in the order in which they are said, by characters it does not name
    QUEEN2.JAS  texts of the game, among them what Joe says about things, one a line

A line is cut into recordings at its stage directions, `*` and two characters; the name of a recording is made of the
names of the dialogue or scene, of the line, and of the part. Of texts that make one name, the game speaks the first.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.real_speech.corpus_folder import ContainerError

MP3 = 1
JOE = "JOE"
_PREFIX = 20  # bytes before the data of a .DOG or .CUT file; offsets count from there
_RESPONSES = 40  # the remarks of QUEEN2.JAS are numbered behind so many stock answers


@dataclass(frozen=True)
class Clip:
    """A recording and its line.

    Attributes:
        name: of the recording, without .SB.
        audio: its bytes, an MP3 stream.
        text: the line as the game shows it.
        speaker: the character; None in cut-scenes.
        source: the file that holds the line.
    """

    name: str
    audio: bytes
    text: str
    speaker: str | None
    source: str


@dataclass(frozen=True)
class _Line:
    text: str
    speaker: str | None
    source: str


def read_clips(container: bytes) -> tuple[list[Clip], list[str]]:
    """The recordings with a line, by name, and the names of those without one (noises, stock answers, unused takes).

    Raises:
        ContainerError: not a queen.1c with MP3 recordings, or damaged.
    """
    files = read_files(container)
    lines: dict[str, _Line] = {}
    for name in sorted(files):
        read = {"DOG": _dialogue, "CUT": _scene}.get(name.rpartition(".")[2])
        if name == "QUEEN2.JAS":
            read = _remarks
        if read is None:
            continue
        try:
            for base, text, speaker in read(name, files[name]):
                for part, words in enumerate(spoken_parts(text), 1):
                    lines.setdefault(f"{base}{part:x}".upper(), _Line(words, speaker, name))
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise ContainerError(f"{name} in the container is damaged: {error}") from error
    recordings = {name.removesuffix(".SB"): data for name, data in files.items() if name.endswith(".SB")}
    clips = [
        Clip(name, recordings[name], lines[name].text, lines[name].speaker, lines[name].source)
        for name in sorted(recordings.keys() & lines.keys())
    ]
    return clips, sorted(recordings.keys() - lines.keys())


def read_files(container: bytes) -> dict[str, bytes]:
    """The files of queen.1c by name.

    Raises:
        ContainerError: another format, or cut short.
    """
    if container[:4] != b"QTBL" or len(container) < 15:
        raise ContainerError(f"not a queen.1c: it begins with {container[:4]!r} instead of b'QTBL'")
    compression, count = struct.unpack_from(">BH", container, 12)
    if compression != MP3:
        raise ContainerError(f"the recordings have compression {compression}; only {MP3} (MP3) can be read")
    if len(container) < 15 + 21 * count:
        raise ContainerError(f"cut short: {len(container)} bytes do not hold a table of {count} files")
    files = {}
    for name, _, offset, size in struct.iter_unpack(">12sBII", container[15 : 15 + 21 * count]):
        known = name.rstrip(b"\0 ").decode("latin-1")
        if offset + size > len(container):
            raise ContainerError(f"cut short: {known} ends at {offset + size}, the container at {len(container)}")
        files[known] = container[offset : offset + size]
    return files


def spoken_parts(line: str) -> list[str]:
    """A line cut at its stage directions: `*` and two characters, for *XY (walk to) eleven more."""
    parts, first = [], 0
    while (star := line.find("*", first)) >= 0:
        parts.append(line[first:star])
        first = star + (14 if line[star + 1 : star + 3] == "XY" else 3)
    return [*parts, line[first:]]


def _dialogue(name: str, file: bytes) -> Iterator[tuple[str, str, str]]:
    """(name of the recordings without the part, line, speaker) of a .DOG file."""
    data = file[_PREFIX:]
    levels, _, key, joe_lines, person_lines = struct.unpack_from(">5h", data, 0)
    person_at, _, greetings_at = struct.unpack_from(">3H", data, 22)
    joe_at = 32 + 96 * abs(levels)
    person = name.removesuffix(".DOG").rstrip("0123456789")
    for letter, speaker, at, count in (("J", JOE, joe_at, joe_lines), ("P", person, person_at, person_lines)):
        for _ in range(count):
            (number,) = struct.unpack_from(">h", data, at + 2)
            line, at = _string(data, at + 4, align=4)
            if number >= 0:
                yield f"{key:02d}{number:04x}{letter}", line, speaker
    if struct.unpack_from(">h", data, joe_at + 2) == (0,):  # Joe speaks first
        yield f"{key:02d}SSSSJ", _string(data, joe_at + 4, align=4)[0], JOE
    # What the two say when all is said.
    line, at = _string(data, greetings_at, align=2)
    yield f"{key:02d}XXXXP", line, person
    yield f"{key:02d}XXXXJ", _string(data, at, align=2)[0], JOE


def _scene(name: str, file: bytes) -> Iterator[tuple[str, str, None]]:
    """The lines of a .CUT file: one at the entry, one for each action."""
    data = file[_PREFIX:]
    (actions,) = struct.unpack_from(">h", data, 2)
    (at,) = struct.unpack_from(">H", data, 8)
    for number in range(abs(actions) + 1):
        line, at = _string(data, at, align=2)
        yield f"{name.removesuffix('.CUT').ljust(5, '_')}{number:02d}", line, None


def _remarks(name: str, file: bytes) -> Iterator[tuple[str, str, str]]:
    """Joe's remarks; lines of the file that are something else have no recording."""
    for number, line in enumerate(file.decode("latin-1").split("\r\n"), 1):
        yield f"JOE{_RESPONSES + number:04d}", line, JOE


def _string(data: bytes, at: int, align: int) -> tuple[str, int]:
    """The string at `at` (its length, its characters) and where the next thing begins: at a multiple of `align`,
    but right behind an empty string."""
    length = data[at]
    end = at + 1 + length
    if end > len(data):
        raise IndexError(f"a text of {length} characters at {at} goes beyond the end")
    text = data[at + 1 : end].decode("latin-1")
    return text, -(-end // align) * align if length else end

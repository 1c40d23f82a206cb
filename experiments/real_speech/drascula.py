"""The recordings of the adventure game "Drascula: The Vampire Strikes Back" (1996, freeware) and what is said in them.

drascula.dat  texts: from the bytes 01 F5 4E 42 on, a table a character in the order of TABLES: u16 count, then six
              languages, English first: u16 size and a block of it: 2 bytes, then entries of u16 length, which counts
              itself, and the string, ended and filled up by NULs. Big-endian.
D12.ALS       a recording, raw unsigned 8-bit at 11,025 Hz: of the table D, the text number 12
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from experiments.real_speech.corpus_folder import ContainerError

SAMPLING_RATE = 11_025
LANGUAGES = 6
START = bytes.fromhex("01F54E42")
# The letters that the names of a character's recordings begin with -> who speaks.
TABLES = {
    "": "HACKER",  # the hero; a few lines are of people with one line each
    "D": "DRASCULA",
    "B": "DRUNKARD",
    "BJ": "BILLIE JEAN",
    "E": "BLIND MAN",
    "I": "IGOR",
    "L": "WEREWOLF",
    "P": "PIANIST",
    "T": "BARTENDER",
    "VB": "VON BRAUN",
}


@dataclass(frozen=True)
class Clip:
    """A recording and its text, which is empty for noises."""

    name: str
    speaker: str
    text: str
    waveform: np.ndarray


def read_texts(data: bytes) -> dict[str, list[str]]:
    """The English texts of a drascula.dat, by table.

    Raises:
        ContainerError: the texts are not there or cut short.
    """
    at = data.find(START)
    if at < 0:
        raise ContainerError(f"drascula.dat has no texts: the bytes {START.hex(' ')} are not in it")
    tables: dict[str, list[str]] = {}
    try:
        for name in TABLES:
            (count,) = struct.unpack_from(">H", data, at)
            at += 2
            for language in range(LANGUAGES):
                (size,) = struct.unpack_from(">H", data, at)
                block = data[at + 2 : at + 2 + size]
                at += 2 + size
                if len(block) < size:
                    raise ContainerError(f"drascula.dat is cut short: the texts {name!r} end at {at:,}")
                if language == 0:
                    tables[name] = _strings(name, block, count)
    except struct.error as error:
        raise ContainerError(f"drascula.dat is cut short: {error}") from error
    return tables


def _strings(name: str, block: bytes, count: int) -> list[str]:
    found: list[str] = []
    at = 2
    while len(found) < count:
        (length,) = struct.unpack_from(">H", block, at)
        if length < 2 or at + length > len(block):
            raise ContainerError(f"drascula.dat is damaged: text {len(found)} of {name!r} has length {length}")
        # A lone accented letter is written in the code page of DOS.
        found.append(block[at + 2 : at + length].split(b"\0")[0].decode("cp437"))
        at += length
    return found


def read_clips(folder: Path) -> list[Clip]:
    """The recordings that have a place in a table of texts, in the order of the tables.

    Raises:
        ContainerError: drascula.dat is missing or damaged.
    """
    try:
        texts = read_texts((folder / "drascula.dat").read_bytes())
    except FileNotFoundError as error:
        raise ContainerError(f"there is no drascula.dat in {folder}") from error
    clips = []
    for path in sorted(folder.glob("*.ALS")):
        match = re.fullmatch(r"([A-Z]*)(\d+)", path.stem)
        if match is None or int(match[2]) >= len(texts.get(match[1], ())):
            continue
        samples = np.frombuffer(path.read_bytes(), np.uint8)
        waveform = (samples.astype(np.float32) - 128) / 128
        clips.append(Clip(path.stem, TABLES[match[1]], texts[match[1]][int(match[2])], waveform))
    order = list(TABLES.values())
    return sorted(clips, key=lambda clip: (order.index(clip.speaker), int(re.sub(r"\D", "", clip.name))))

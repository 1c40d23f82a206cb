"""A game's speech as a folder that training reads: a folder a split, with a metadata.csv beside the clips."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

SUFFIX = ".mp3"
COLUMNS = ("file_name", "text", "speaker", "raw_text", "source")
COMPRESSION = 0.5  # of libsndfile's MP3: 33 kbit/s of mono at 11,025 Hz, 22 dB above its error


class CorpusError(RuntimeError):
    """The corpus cannot be made; the message says what to do."""


class ContainerError(ValueError):
    """A file of a game that is not what its reader knows; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Utterance:
    """A clip and what is spoken in it.

    Attributes:
        name: of the clip, without suffix.
        split: the folder it goes to.
        audio: an MP3 stream.
        text: as it is spoken.
        speaker: the character; None where nobody is named.
        subtitle: as the game shows it.
        source: the file of the game that holds the subtitle.
    """

    name: str
    split: str
    audio: bytes
    text: str
    speaker: str | None
    subtitle: str
    source: str


@dataclass(frozen=True)
class SplitCounts:
    """What a split holds; `hours` are rounded to a hundredth."""

    utterances: int
    hours: float
    speakers: int

    def __str__(self) -> str:
        return f"{self.utterances:,} utterances, {self.hours:.2f} hours, {self.speakers} named speakers"


def write_splits(utterances: Iterable[Utterance], splits: Iterable[str], folder: Path) -> dict[str, SplitCounts]:
    """Write the splits into `folder`, which is made; returns what they hold.

    Raises:
        CorpusError: a clip cannot be read.
    """
    rows: dict[str, list[tuple[str, ...]]] = {name: [] for name in splits}
    seconds = dict.fromkeys(rows, 0.0)
    speakers: dict[str, set[str]] = {name: set() for name in rows}
    for name in rows:
        (folder / name).mkdir(parents=True)
    for clip in utterances:
        try:
            info = soundfile.info(io.BytesIO(clip.audio))
        except soundfile.LibsndfileError as error:
            raise CorpusError(f"the recording {clip.name} cannot be read: {error.error_string}") from error
        (folder / clip.split / (clip.name + SUFFIX)).write_bytes(clip.audio)
        row = (clip.name + SUFFIX, clip.text, clip.speaker or "", clip.subtitle.strip(), clip.source)
        rows[clip.split].append(row)
        seconds[clip.split] += info.frames / info.samplerate
        if clip.speaker:
            speakers[clip.split].add(clip.speaker)
    for name, lines in rows.items():
        with (folder / name / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *lines])
    return {
        name: SplitCounts(len(lines), round(seconds[name] / 3600, 2), len(speakers[name]))
        for name, lines in rows.items()
    }


def differences(found: dict[str, SplitCounts], expected: dict[str, SplitCounts], tolerance: float) -> str:
    """The splits whose counts differ, one a line.

    Args:
        tolerance: share by which utterances and hours may differ.
    """

    def alike(a: SplitCounts, b: SplitCounts) -> bool:
        near = (math.isclose(*pair, rel_tol=tolerance) for pair in ((a.utterances, b.utterances), (a.hours, b.hours)))
        return all(near) and a.speakers == b.speakers

    return "\n".join(
        f"  {name}: {found[name]}; expected {expected[name]}"
        for name in found
        if not alike(found[name], expected[name])
    )


def mp3(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """A mono waveform as an MP3 stream; what exceeds full scale is turned down, not cut off."""
    buffer = io.BytesIO()
    loud = max(1.0, float(np.abs(waveform).max(initial=0)))
    soundfile.write(
        buffer, waveform / loud, sampling_rate, format="MP3", bitrate_mode="CONSTANT", compression_level=COMPRESSION
    )
    return buffer.getvalue()

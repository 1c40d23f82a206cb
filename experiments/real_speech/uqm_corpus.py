"""The corpus of "The Ur-Quan Masters": replies of 26 roles, cut at pauses between their lines.

Ogg Vorbis at 11,025 Hz, cut and written as MP3. 13 actors play the roles, most of them disguised as some creature: by
effort of the voice, by filters, by noises. A role is in one split only, and roles that are one character or one family
are in the same; but an actor may be in several. `test` has voices that a good recogniser understands, `test_other`
those that it does not; `validation` has some of both. All others train.

A reply is cut where a pause is near the end of a line by the game's table of times (pauses.py); lines without a pause
between them stay together, up to LONGEST seconds. Pieces that say more or less in their time than the role's other ones
by far are left out, since their lines are probably not theirs.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile
from experiments.real_speech.corpus_folder import CorpusError, SplitCounts, Utterance, mp3
from experiments.real_speech.debian_packages import Package
from experiments.real_speech.game import Game
from experiments.real_speech.pauses import cut_times, find_pauses
from experiments.real_speech.spoken_text import Speaker, UnspeakableError
from experiments.real_speech.uqm import Reply, read_replies

CONTENT = "usr/share/games/uqm/content/packages/uqm-0.8.0-content.uqm"
VOICE = "usr/share/games/uqm/content/addons/uqm-0.8.0-voice.uqm"

SPLITS = {
    "validation": ("chmmr", "mycon", "shofixti"),
    "test": ("arilou", "supox", "syreen"),
    "test_other": ("umgah", "yehat", "yehatrebels"),
}
SYNTHETIC = ("probe",)
LONGEST = 20.0  # seconds of a piece
SLOWEST, FASTEST = 0.4, 2.0  # letters a second, as a share of the role's median

SPOKEN = {"AU": "A U", "BCE": "B C E", "C.": "C"}
spoken_text = Speaker(SPOKEN, signs=r"[*~]", numbers=True)
# What stands between ` and ', where ' is no apostrophe.
_QUOTED = re.compile(r"`((?:[^`']|'(?=\w))*)'(?!\w)")


@dataclass(frozen=True)
class _Piece:
    """Some lines of a reply and their part of its recording."""

    name: str
    lines: str
    text: str
    waveform: np.ndarray
    sampling_rate: int

    @property
    def rate(self) -> float:
        """Letters a second."""
        return sum(map(str.isalpha, self.text)) * self.sampling_rate / len(self.waveform)


def split_of(role: str) -> str:
    return next((split for split, roles in SPLITS.items() if role in roles), "train")


def read(tree: Path, left_out: Counter[str]) -> Iterator[Utterance]:
    """The utterances of the unpacked packages."""
    for role, replies in groupby(read_replies(tree / VOICE, tree / CONTENT), key=lambda reply: reply.role):
        if role in SYNTHETIC:
            left_out["replies in a synthetic voice"] += sum(1 for _ in replies)
            continue
        pieces = [piece for reply in _once(replies, left_out) for piece in cut(reply, left_out)]
        median = float(np.median([piece.rate for piece in pieces])) if pieces else 0.0
        for piece in pieces:
            if not SLOWEST * median <= piece.rate <= FASTEST * median:
                left_out["pieces whose text is too long or too short for them"] += 1
                continue
            audio = mp3(piece.waveform, piece.sampling_rate)
            yield Utterance(piece.name, split_of(role), audio, piece.text, role.upper(), piece.lines, f"{role}.txt")


def _once(replies: Iterator[Reply], left_out: Counter[str]) -> Iterator[Reply]:
    """The replies whose recording is there and was not met before."""
    seen = set()
    for reply in replies:
        if reply.audio is None:
            left_out["replies whose recording is not in the package"] += 1
        elif reply.name in seen:
            left_out["replies with the recording of another"] += 1
        else:
            seen.add(reply.name)
            yield reply


def cut(reply: Reply, left_out: Counter[str]) -> Iterator[_Piece]:
    """The pieces of a reply that can be written down and are short enough.

    Raises:
        CorpusError: its recording cannot be read.
    """
    if not reply.lines:
        left_out["replies without text"] += 1
        return
    try:
        waveform, sampling_rate = soundfile.read(io.BytesIO(reply.audio or b""), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise CorpusError(f"the recording {reply.name} cannot be read: {error.error_string}") from error
    cuts: list[float | None] = [None] * (len(reply.lines) - 1)
    if reply.seconds is not None:
        ends = np.cumsum(reply.seconds).tolist()
        cuts = cut_times(find_pauses(waveform, sampling_rate), ends)
    lines = without_quotes(reply.lines)
    start, first = 0, 0
    for number, time in enumerate([*cuts, len(waveform) / sampling_rate], 1):
        if time is None:
            continue
        end, together = round(time * sampling_rate), " ".join(lines[first:number])
        part = waveform[start:end]
        if len(part) > LONGEST * sampling_rate:
            left_out[f"pieces of more than {LONGEST:.0f} s without a pause to cut at"] += 1
        elif len(part):
            try:
                text = spoken_text(together)
            except UnspeakableError:
                left_out["pieces with a number or sign that may be spoken in several ways"] += 1
            else:
                name = reply.name if number - first == len(lines) else f"{reply.name}-{first:02d}"
                yield _Piece(name, " ".join(reply.lines[first:number]), text, part, sampling_rate)
        start, first = end, number


def without_quotes(lines: tuple[str, ...]) -> list[str]:
    """The lines without quotation marks, which may be opened in one and closed in another."""
    return _QUOTED.sub(r" \1 ", "\n".join(lines)).replace("`", " ").split("\n")


GAME = Game(
    title="The Ur-Quan Masters",
    packages=(Package("uqm-voice", "non-free"), Package("uqm-content", "non-free")),
    copyright="usr/share/doc/uqm-voice/copyright",
    read=read,
    form=1,
    expected={
        "train": SplitCounts(5674, 8.65, 17),
        "validation": SplitCounts(432, 0.61, 3),
        "test": SplitCounts(729, 1.03, 3),
        "test_other": SplitCounts(427, 0.68, 3),
    },
    tolerance=0.01,
)

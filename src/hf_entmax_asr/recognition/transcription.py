"""Transcribing files of any kind, length and number, where one bad file never costs the others."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_entmax_asr.audio import AUDIO_SUFFIXES, audio_blocks
from hf_entmax_asr.error_messages import described
from hf_entmax_asr.model.long_audio import PieceRule, pieces_at_pauses
from hf_entmax_asr.model.words import TimedText, joined
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.timed_recognition import Recognised, recognise_timed


@dataclass(frozen=True)
class Transcript:
    """What became of one file: its text, or the reason why there is none; its words where they were asked for."""

    file: str
    text: str | None = None
    seconds: float | None = None
    error: str | None = None
    words: tuple[TimedText, ...] | None = None


def find_audio(paths: Sequence[Path]) -> list[Path]:
    """The files, and for each folder every audio file below it, by name; a path that does not exist is kept.

    A file named outright is taken whatever its suffix. Folders behind links are read too, each once.
    """
    return [file for path in paths for file in (_files_below(path) if path.is_dir() else [path]) if _wanted(path, file)]


def left_out(paths: Sequence[Path]) -> list[Path]:
    """The files below the folders that `find_audio` passes over, for their suffix is not one of audio."""
    return [file for path in paths if path.is_dir() for file in _files_below(path) if not _wanted(path, file)]


def _wanted(path: Path, file: Path) -> bool:
    return file is path or file.suffix.lower() in AUDIO_SUFFIXES


def _files_below(folder: Path) -> list[Path]:
    """Every file below a folder, hidden ones aside; a link back to a folder above is not followed for ever."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        state = os.stat(where)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders.sort()
        found += [Path(where) / name for name in files if not name.startswith(".")]
    return sorted(found)


def shown(name: str | os.PathLike) -> str:
    """A file's name as it can be printed: bytes that are not UTF-8, line breaks and other controls are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def transcribe_files(
    model: Any,
    processor: Any,
    files: Sequence[str | Path],
    *,
    seconds_per_batch: float = 120.0,
    max_seconds: float | None = None,
    num_beams: int = 1,
    piece_rule: PieceRule | None = None,
    words: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Transcript]:
    """One Transcript per file, in order.

    Files are read block by block and recognised in pieces cut at pauses, those of about `seconds_per_batch` of audio
    together: what is held does not grow with the length of a recording.

    Args:
        max_seconds: longer files are refused; None takes any length.
        piece_rule: which files are cut, and where; by default those above 30 s.
        words: whether to tell every word with its times, which takes one more pass of the decoder.
        progress: called with the seconds of audio that were done since the last call.
    """
    rule = PieceRule() if piece_rule is None else piece_rule
    work = _Work(model, processor, seconds_per_batch, max_seconds, num_beams, rule, words, progress)
    for file in files:
        work.read(file)
        yield from work.finished()
    work.recognise()
    yield from work.finished()


@dataclass
class _Piece:
    """A stretch of a recording: its start in seconds; features (T, F) until it is recognised, then what was said."""

    start: float
    features: torch.Tensor | None
    said: Recognised | None = None


@dataclass
class _Recording:
    """One file as far as it has come."""

    name: str
    samples: int = 0
    pieces: list[_Piece] = field(default_factory=list)
    error: str | None = None
    read: bool = False

    @property
    def finished(self) -> bool:
        return self.read and all(piece.said is not None for piece in self.pieces)


@dataclass
class _Work:
    """Files that are read, pieces that wait to be recognised together, and recordings that wait for their turn."""

    model: Any
    processor: Any
    seconds_per_batch: float
    max_seconds: float | None
    num_beams: int
    piece_rule: PieceRule
    words: bool
    progress: Callable[[float], None] | None
    recordings: deque[_Recording] = field(default_factory=deque)
    waiting: list[_Piece] = field(default_factory=list)
    waiting_samples: int = 0
    unreported: int = 0  # samples that were read since progress was last told

    def __post_init__(self) -> None:
        self.collate = SpeechSeq2SeqCollator(self.processor)
        self.rate = self.processor.feature_extractor.sampling_rate

    def read(self, file: str | Path) -> None:
        """Reads a file and recognises what there is enough of."""
        recording = _Recording(shown(file))
        self.recordings.append(recording)
        try:
            for start, waveform in pieces_at_pauses(self._blocks(file, recording), self.rate, self.piece_rule):
                features = self.collate([{"audio": waveform}])["input_features"][0]
                recording.pieces.append(_Piece(start / self.rate, features))
                self.waiting.append(recording.pieces[-1])
                self.waiting_samples += len(waveform)
                if self.waiting_samples >= self.seconds_per_batch * self.rate:
                    self.recognise()
        except Exception as error:  # whatever is wrong with one file, the others are still to be done
            said = described(error).removeprefix(f"{file}: ").replace(str(file), recording.name)
            recording.error = " ".join(said.split())
            self.waiting = [piece for piece in self.waiting if not any(piece is own for own in recording.pieces)]
            recording.pieces.clear()
        recording.read = True
        if not self.waiting:
            self._report()

    def _blocks(self, file: str | Path, recording: _Recording) -> Iterator[np.ndarray]:
        for block in audio_blocks(file, self.rate):
            recording.samples += len(block)
            self.unreported += len(block)
            seconds = recording.samples / self.rate
            if self.max_seconds is not None and seconds > self.max_seconds:
                raise ValueError(f"it lasts {seconds:.1f} s or more, the limit is {self.max_seconds:g} s")
            yield block
        if recording.samples < self.processor.feature_extractor.shortest_samples:
            raise ValueError(f"it lasts {recording.samples / self.rate:.3f} s, less than one analysis window")

    def recognise(self) -> None:
        """Recognises all pieces that wait."""
        features = [piece.features for piece in self.waiting if piece.features is not None]
        said = recognise_timed(self.model, self.processor, features, words=self.words, num_beams=self.num_beams)
        for piece, of_piece in zip(self.waiting, said, strict=True):
            piece.said, piece.features = of_piece, None
        self.waiting, self.waiting_samples = [], 0
        self._report()

    def finished(self) -> Iterator[Transcript]:
        """The recordings that are done, as far as none before them is not."""
        while self.recordings and self.recordings[0].finished:
            recording = self.recordings.popleft()
            if recording.error is not None:
                yield Transcript(recording.name, error=recording.error)
                continue
            said = [(piece.start, piece.said) for piece in recording.pieces if piece.said is not None]
            words = None
            if self.words:
                words = tuple(
                    replace(word, start=start + word.start, end=start + word.end)
                    for start, of_piece in said
                    for word in of_piece.words or ()
                )
            text = joined([of_piece.text for _, of_piece in said])
            yield Transcript(recording.name, text, round(recording.samples / self.rate, 3), words=words)

    def _report(self) -> None:
        if self.progress is not None and self.unreported:
            self.progress(self.unreported / self.rate)
        self.unreported = 0

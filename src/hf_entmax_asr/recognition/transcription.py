"""Transcribing files of any kind and length, where one bad file never costs the others."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_entmax_asr.audio import AUDIO_SUFFIXES, read_audio
from hf_entmax_asr.error_messages import described
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.evaluation import recognise


@dataclass(frozen=True)
class Transcript:
    """What became of one file: its text, or the reason why there is none."""

    file: str
    text: str | None = None
    seconds: float | None = None
    error: str | None = None


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
    max_seconds: float = 60.0,
    num_beams: int = 1,
) -> Iterator[Transcript]:
    """One Transcript per file, in order, recognised in groups of about `seconds_per_batch` of audio.

    A file above `max_seconds` is refused: attention costs grow with the square of the length, and a model reads
    lengths that it was not trained on badly.
    """
    rate = processor.feature_extractor.sampling_rate
    group: list[Transcript] = []
    waveforms: list[Any] = []
    for file in files:
        try:
            waveform = read_audio(str(file), sampling_rate=rate)
            seconds = len(waveform) / rate
            if seconds > max_seconds:
                raise ValueError(f"it lasts {seconds:.1f} s, the limit is {max_seconds:g} s; cut it at pauses first")
            if len(waveform) < processor.feature_extractor.shortest_samples:
                raise ValueError(f"it lasts {seconds:.3f} s, less than one analysis window")
            features = SpeechSeq2SeqCollator(processor)([{"audio": waveform}])["input_features"][0]
            group.append(Transcript(shown(file), seconds=round(seconds, 3)))
            waveforms.append(features)
        except Exception as error:  # whatever is wrong with one file, the others are still to be done
            said = described(error).removeprefix(f"{file}: ").replace(str(file), shown(file))
            group.append(Transcript(shown(file), error=" ".join(said.split())))
        if sum(item.seconds or 0 for item in group) >= seconds_per_batch:
            yield from _recognised(model, processor, group, waveforms, num_beams)
            group, waveforms = [], []
    yield from _recognised(model, processor, group, waveforms, num_beams)


def _recognised(
    model: Any, processor: Any, group: list[Transcript], features: list[Any], num_beams: int
) -> Iterator[Transcript]:
    collate = SpeechSeq2SeqCollator(processor)
    texts = iter(
        recognise(
            model,
            processor.tokenizer,
            [len(f) for f in features],
            lambda indices: collate([{"input_features": features[i]} for i in indices]),
            num_beams=num_beams,
        )
    )
    for item in group:
        yield item if item.error is not None else Transcript(item.file, next(texts), item.seconds)

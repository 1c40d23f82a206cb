"""Transcribing files of any kind and length, where one bad file never costs the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_entmax_asr.audio import AUDIO_SUFFIXES, read_audio
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

    A file named outright is taken whatever its suffix.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
        else:
            found.append(path)
    return found


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
            group.append(Transcript(str(file), seconds=round(seconds, 3)))
            waveforms.append(features)
        except Exception as error:  # whatever is wrong with one file, the others are still to be done
            group.append(Transcript(str(file), error=str(error).removeprefix(f"{file}: ") or type(error).__name__))
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

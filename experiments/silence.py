#!/usr/bin/env python
"""What silence, pauses and noise around speech do to a recogniser, and what it makes of audio without speech.

    python -m experiments.silence runs/mine/best my_corpus --split test --utterances 100

Prints the word error rate of the utterances as they are and with zeros or faint noise before, within and behind them;
and which clips of zeros, noise, hum and music alone get a text at all, which none should. Within is between two words
where the times of words are known, at the widest gap that lies in the inner half; else at the quietest place there,
which in fluent speech is often inside a word.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("data", help="folder of the data")
    parser.add_argument("--split", default="test", help="sub-folder of the data (default: test)")
    parser.add_argument("--utterances", type=int, default=100, help="evenly spaced over the split (default: 100)")
    parser.add_argument("--seconds", type=float, nargs="+", default=SECONDS, help="lengths of the silences")
    parser.add_argument("--times", help="CTM file of the words (default: the data's word_times.json, if there is one)")
    parser.add_argument("--music", type=Path, nargs="+", default=(), help="recordings in which nobody speaks or sings")
    parser.add_argument("--lower-case", action="store_true", help="compare the texts in lower case")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import numpy as np

from hf_entmax_asr.analysis.phonemes import Interval, labels_of
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.augmentation import quietest_place, tune
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.metrics import error_counts
from hf_entmax_asr.recognition import SpeechSeq2SeqCollator, recognise
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.utterances import DataError, read_split
from hf_entmax_asr.recognition.word_times import true_words

Change = Callable[[int, np.ndarray], np.ndarray]  # of the place within a waveform (samples,), and of the waveform
FAINT = {"zeros": 0.0, "noise of one bit": 1 / 32768, "noise at -60 dB": 1e-3}  # amplitudes, of full scale
ALONE_SECONDS = (1, 5, 30)


def place_between_words(words: Sequence[Interval], waveform: np.ndarray, rate: int) -> int:
    """The middle of the widest gap between two words, of those in the inner half of a waveform (samples,); the gap
    nearest to its middle where there are none in that half. 0 where there is but one word: before it."""
    gaps = [((a.end + b.start) / 2 * rate, b.start - a.end) for a, b in itertools.pairwise(words)]
    inner = [gap for gap in gaps if len(waveform) / 4 < gap[0] < 3 * len(waveform) / 4]
    if inner:
        return round(max(inner, key=lambda gap: gap[1])[0])
    return round(min((place for place, _ in gaps), key=lambda place: abs(place - len(waveform) / 2), default=0))


def with_silence(silence: np.ndarray, where: str, within: int, waveform: np.ndarray) -> np.ndarray:
    """A waveform (samples,) with silence before it, behind it, or at the sample `within`."""
    place = {"before": 0, "within": within, "behind": len(waveform)}[where]
    return np.concatenate([waveform[:place], silence, waveform[place:]])


def silences(seconds: float, rate: int) -> dict[str, Change]:
    """Changes of a waveform (samples,), by what they add and where."""
    changes: dict[str, Change] = {}
    for name, amplitude in FAINT.items():
        noise = np.random.default_rng(0).standard_normal(round(seconds * rate))
        silence = (amplitude * noise).astype(np.float32)
        for where in ("before", "within", "behind"):
            changes[f"{seconds:g} s of {name} {where}"] = partial(with_silence, silence, where)
    return changes


def without_speech(rate: int, music: Sequence[Path] = ()) -> dict[str, np.ndarray]:
    """Clips in which nobody speaks, by name."""
    recordings = {path: read_audio(path, rate) for path in music}
    clips: dict[str, np.ndarray] = {}
    for seconds in ALONE_SECONDS:
        count = seconds * rate
        noise = np.random.default_rng(0).standard_normal(count).astype(np.float32)
        hum = np.sin(2 * np.pi * 50 * np.arange(count) / rate).astype(np.float32)
        clips[f"{seconds} s of zeros"] = np.zeros(count, np.float32)
        clips[f"{seconds} s of noise of one bit"] = noise / 32768
        clips[f"{seconds} s of noise at -30 dB"] = noise * 10 ** (-30 / 20)
        clips[f"{seconds} s of hum"] = 0.1 * hum
        notes = tune(count, rate, np.random.default_rng(0))
        clips[f"{seconds} s of a tune"] = (0.1 * notes / np.abs(notes).max()).astype(np.float32)
        for recording, waveform in recordings.items():
            clips[f"{seconds} s of {recording.name}"] = waveform[:count]
    return clips


def texts_of(model: Any, processor: Any, waveforms: list[np.ndarray]) -> list[str]:
    collate, extractor = SpeechSeq2SeqCollator(processor), processor.feature_extractor
    frames = [extractor.num_frames(len(waveform)) for waveform in waveforms]
    return recognise(
        model, processor.tokenizer, frames, lambda indices: collate([{"audio": waveforms[i]} for i in indices])
    )


def places_within(
    arguments: argparse.Namespace, ids: Sequence[str], waveforms: Sequence[np.ndarray], rate: int
) -> list[int | None]:
    """Where silence within an utterance goes, as a sample of its waveform (samples,); None where its words are not
    known."""
    if arguments.times is None and not (Path(arguments.data) / arguments.split / "word_times.json").exists():
        print("The times of words are not known (--times): silence within goes to the quietest place.")
        return [quietest_place(waveform, rate // 20) for waveform in waveforms]
    words = true_words(arguments.data, arguments.split, arguments.times)
    found = [labels_of(words, name) for name in ids]
    return [place_between_words(known, w, rate) if known else None for known, w in zip(found, waveforms, strict=True)]


@reports_errors("silence.py")
def main() -> int:
    arguments = parse()
    model, processor = load_recogniser(arguments.checkpoint)
    rate = processor.feature_extractor.sampling_rate
    rows = read_split(arguments.data, arguments.split)
    rows = rows.select(evenly_spaced(len(rows), arguments.utterances))
    heard = [read_audio(item, rate) for item in rows["audio"]]
    placed = zip(places_within(arguments, rows["id"], heard, rate), heard, rows["text"], strict=True)
    known = [(place, waveform, text) for place, waveform, text in placed if place is not None]
    if not known:
        raise DataError(
            f"no utterance of {arguments.split} has words with times in {arguments.times or arguments.data}"
        )
    places, waveforms, texts = zip(*known, strict=True)
    fold: Callable[[str], str] = str.lower if arguments.lower_case else str
    references = [fold(text) for text in texts]

    def rate_of(change: Change) -> float:
        recognised = texts_of(model, processor, list(map(change, places, waveforms)))
        return 100 * error_counts(references, [fold(text) for text in recognised]).rate

    print(f"{arguments.checkpoint}, {len(places)} utterances of {arguments.split}")
    print("\n| added | WER % | more |\n|---|---|---|")
    plain = rate_of(lambda place, waveform: waveform)
    print(f"| nothing | {plain:.2f} | |", flush=True)
    for seconds in arguments.seconds:
        for name, change in silences(seconds, rate).items():
            found = rate_of(change)
            print(f"| {name} | {found:.2f} | {found - plain:+.2f} |", flush=True)
    print("\n| nobody speaks | text |\n|---|---|")
    for name, clip in without_speech(rate, arguments.music).items():
        print(f"| {name} | {texts_of(model, processor, [clip])[0]!r} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Sentences composed of the single-word recordings of a voice-prompt corpus, with the exact time of every word.

A telephone exchange speaks numbers, dates and short phrases by playing one recorded word after another; this module
does the same with `sample_corpus/`, for training and for measuring alignments: no other real speech at hand has word
times that are known to the sample. What it is not: these are studio clips of one voice, each word spoken alone (about
0.7 s, slower than in running speech), most of them recorded once. A model that reads unseen sentences of them without
a fault has learned these recordings, not English.
"""

import csv
import hashlib
import itertools
import json
import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora import sentences
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.corpora.sentences import draw_splits
from hf_entmax_asr.input_files import read_json

SAMPLING_RATE = 16_000
SPEECH_BELOW_PEAK_DB = 40.0  # a 10 ms window belongs to the word when it is at most this far below the loudest one
MARGIN_S = 0.03  # kept on both sides of the speech, for onsets and releases too weak for that
FADE_S = 0.01  # at both outer ends of the margins
EDGE_S = (0.05, 0.30)  # silence before the first and after the last word
PAUSE_S = (0.0, 0.15)  # between the margins of two words
LONG_PAUSE_S = (0.15, 0.40)
LONG_PAUSE_SHARE = 0.15
GAIN_DB = (-14.0, 2.0)  # of the whole sentence
NOISE_DBFS = (-75.0, -55.0)  # a low white noise under the whole sentence, as a quiet room and line have
MANIFEST = "composition.json"


class WordTime(NamedTuple):
    """A word and where its speech starts and ends, in seconds from the start of the file."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Recording:
    """One word as recorded: `waveform` (samples,) float32 with margins; the speech is waveform[start:end]."""

    waveform: np.ndarray
    start: int
    end: int


@dataclass(frozen=True)
class Composition:
    """A composed sentence: its text, the time of each word, and the waveform (samples,) float32 at 16 kHz."""

    text: str
    words: tuple[WordTime, ...]
    waveform: np.ndarray


def speech_bounds(waveform: np.ndarray) -> tuple[int, int]:
    """Return where the speech in a waveform (samples,) at 16 kHz starts and ends (samples, the end excluded).

    Speech reaches from the first to the last place where three 10 ms windows in a row, 5 ms apart, are within 40 dB of
    the loudest window; a click sounds in two only. Raises ValueError when nothing sounds so long, or the waveform is
    shorter than the three windows.
    """
    hop, window = SAMPLING_RATE // 200, SAMPLING_RATE // 100
    if len(waveform) < window + 2 * hop:
        raise ValueError(f"{len(waveform)} samples are too few to find speech in: at least {window + 2 * hop} wanted")
    power = (np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), window)[::hop] ** 2).mean(axis=1)
    loud = (power > 0) & (power >= power.max() * 10 ** (-SPEECH_BELOW_PEAK_DB / 10))
    places = np.flatnonzero(loud[:-2] & loud[1:-1] & loud[2:])
    if not len(places):
        raise ValueError("the waveform is silent, or nothing but clicks")
    return int(places[0]) * hop, (int(places[-1]) + 2) * hop + window


def load_recordings(corpus_root: str | Path) -> dict[str, list[Recording]]:
    """Read the single-word clips of a corpus folder, trimmed to the word with 30 ms margins: word -> its recordings."""
    recordings: dict[str, list[Recording]] = defaultdict(list)
    margin, fade = int(MARGIN_S * SAMPLING_RATE), int(FADE_S * SAMPLING_RATE)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / fade)
    for clip in _clips(corpus_root):
        if " " in clip["text"]:
            continue
        waveform = read_audio(clip["audio"], SAMPLING_RATE)
        try:
            start, end = speech_bounds(waveform)
        except ValueError as error:
            raise ValueError(f"clip {clip['id']}: {error}") from error
        first = max(0, start - margin)
        kept = waveform[first : end + margin].copy()
        kept[:fade] *= ramp
        kept[-fade:] *= ramp[::-1]
        recordings[clip["text"]].append(Recording(kept, start - first, end - first))
    return dict(recordings)


def render(text: str, recordings: Mapping[str, Sequence[Recording]], random: np.random.Generator) -> Composition:
    """Speak `text` with recorded words: which recording of a word, the pauses, the gain and the noise are drawn.

    Raises ValueError when `text` is empty or a word has no recording.
    """
    words = text.split()
    if not words or any(word not in recordings for word in words):
        missing = [word for word in words if word not in recordings]
        raise ValueError(
            f"cannot speak {text!r}: " + (f"no recording of {', '.join(missing)}" if missing else "no words")
        )
    takes = [recordings[word][int(random.integers(len(recordings[word])))] for word in words]
    long = random.random(len(words) - 1) < LONG_PAUSE_SHARE
    pauses = np.where(long, random.uniform(*LONG_PAUSE_S, len(long)), random.uniform(*PAUSE_S, len(long)))
    gaps = np.round(np.array([random.uniform(*EDGE_S), *pauses]) * SAMPLING_RATE).astype(int)
    starts = np.cumsum(gaps) + np.cumsum([0, *(len(take.waveform) for take in takes[:-1])])  # (words,) samples
    length = starts[-1] + len(takes[-1].waveform) + round(random.uniform(*EDGE_S) * SAMPLING_RATE)

    speech = np.zeros(length, np.float32)
    for take, start in zip(takes, starts, strict=True):
        speech[start : start + len(take.waveform)] = take.waveform
    gain = min(10 ** (random.uniform(*GAIN_DB) / 20), 0.98 / np.abs(speech).max())
    noise = 10 ** (random.uniform(*NOISE_DBFS) / 20) * random.standard_normal(length, np.float32)
    times = (
        WordTime(word, float(start + take.start) / SAMPLING_RATE, float(start + take.end) / SAMPLING_RATE)
        for word, take, start in zip(words, takes, starts, strict=True)
    )
    return Composition(" ".join(words), tuple(times), np.clip(gain * speech + noise, -1, 1).astype(np.float32))


def compose(corpus_root: str | Path, seed: int, count: int, exclude: Collection[str] = ()) -> Iterator[Composition]:
    """Yield `count` compositions with distinct texts, none of them in `exclude`; the same seed gives the same ones.

    Two seeds may give a sentence twice: for splits without a sentence in common use `draw_splits` or
    `write_compositions`. Raises ValueError when the corpus lacks a recording of a drawn word.
    """
    texts = draw_splits(seed, {"all": count}, exclude)["all"]
    recordings = load_recordings(corpus_root)
    for index, text in enumerate(texts):
        yield render(text, recordings, np.random.default_rng([seed, index]))


def split_prompts(
    clips: Iterable[Mapping[str, Any]], heldout_share: float, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Split clips (each with a "text") into train and held-out ones, at least `heldout_share` of them held out.

    Clips of one text stay together, so no held-out text is in training. Raises ValueError for a share outside [0, 1).
    """
    if not 0 <= heldout_share < 1:
        raise ValueError(f"heldout_share must be at least 0 and below 1, got {heldout_share}")
    by_text: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for clip in clips:
        by_text[clip["text"]].append(clip)
    texts = sorted(by_text)
    wanted = math.ceil(heldout_share * sum(map(len, by_text.values())))
    parts: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for index in np.random.default_rng(seed).permutation(len(texts)):
        parts[len(parts[1]) < wanted].extend(by_text[texts[index]])
    return parts


def write_compositions(
    corpus_root: str | Path,
    output: str | Path,
    *,
    seed: int = 0,
    train: int = 5000,
    validation: int = 100,
    test: int = 200,
    heldout_share: float = 0.15,
    longest_prompt_s: float = 20.0,
) -> dict[str, Any]:
    """Write a corpus of composed sentences and whole prompts in the audiofolder convention; return its summary.

        output/train               `train` compositions (ids audio/…) and the whole prompts not held out (prompts/…)
        output/validation, test    compositions; no sentence stands in two splits, none equals a prompt
        output/heldout_prompts     whole prompts, about `heldout_share` of them; none of their texts is in train

    Each holds FLAC files at 16 kHz, metadata.csv, and word_times.json for `read_word_times` (compositions only: the
    times inside a whole prompt are not known). Prompts longer than `longest_prompt_s` seconds are left out and named
    in the summary. Everything is written beside `output` and renamed at the end; an `output` made before from the same
    corpus, code and parameters is left as it is, one made from others is replaced.

    Raises FileExistsError when `output` holds something else; ValueError as `draw_splits`, `split_prompts`, `render`.
    """
    output = Path(output).resolve()
    counts = {"train": train, "validation": validation, "test": test}
    parameters = {
        "seed": seed,
        **counts,
        "heldout_share": heldout_share,
        "longest_prompt_s": longest_prompt_s,
        "corpus": _fingerprint(Path(corpus_root)),
        "code": hashlib.sha256(Path(__file__).read_bytes() + Path(sentences.__file__).read_bytes()).hexdigest(),
    }
    if (output / MANIFEST).is_file():
        made = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        if made["parameters"] == parameters:
            return made["summary"]
    elif output.exists():
        raise FileExistsError(f"{output} exists and was not written by write_compositions: choose another folder")

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        new = Path(temporary) / "new"
        summary = _write_splits(new, Path(corpus_root), seed, counts, heldout_share, longest_prompt_s)
        manifest = {"parameters": parameters, "summary": summary}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if output.exists():
            output.rename(Path(temporary) / "old")
        new.rename(output)
    return summary


def read_word_times(root: str | Path) -> dict[str, dict[str, list[WordTime]]]:
    """Read the word times of a corpus that `write_compositions` wrote: split -> id (as in `load_folder`) -> words.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is damaged.
    """
    files = sorted(Path(root).glob("*/word_times.json"))
    if not files:
        raise FileNotFoundError(f"no word_times.json in the folders of {root}: write_compositions makes them")
    return {file.parent.name: _word_times(file) for file in files}


def _word_times(file: Path) -> dict[str, list[WordTime]]:
    """ValueError where it is not a list of words with finite times, in order, for each id."""
    tree, found = read_json(file), {}
    for identity, words in tree.items() if isinstance(tree, dict) else [("the file", tree)]:
        try:
            times = [WordTime(*word) for word in words]
            good = all(isinstance(w.word, str) and 0 <= w.start_s <= w.end_s < math.inf for w in times)
            good &= all(a.start_s <= b.start_s for a, b in itertools.pairwise(times))
        except TypeError:
            good = False
        if not good or not isinstance(tree, dict):
            raise ValueError(f"{file}: {identity} is no list of [word, start, end] in seconds, in order")
        found[identity] = times
    return found


def _clips(corpus_root: str | Path) -> list[dict[str, Any]]:
    splits = load_folder(corpus_root)
    if list(splits) != ["train"]:
        raise ValueError(f"{corpus_root} has the splits {', '.join(splits)}; one metadata.csv at its top is wanted")
    return list(splits["train"])


def _vocabulary(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in text.split()}


def _fingerprint(corpus_root: Path) -> str:
    """A hash of metadata.csv and of the name and size of every file in the corpus."""
    digest = hashlib.sha256((corpus_root / "metadata.csv").read_bytes() if corpus_root.is_dir() else b"")
    for path in sorted(corpus_root.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(corpus_root).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _write_splits(
    folder: Path, corpus_root: Path, seed: int, counts: Mapping[str, int], heldout_share: float, longest_prompt_s: float
) -> dict[str, Any]:
    """Compose and write all splits into the new `folder`; return the summary."""
    clips = _clips(corpus_root)
    prompts = [clip for clip in clips if " " in clip["text"]]
    kept = [clip for clip in prompts if clip["duration"] <= longest_prompt_s]
    known, heldout = split_prompts(kept, heldout_share, seed)
    texts = draw_splits(seed, counts, exclude={clip["text"] for clip in prompts})
    recordings = load_recordings(corpus_root)
    speakers = {clip["speaker"] for clip in clips}
    speaker = speakers.pop() if len(speakers) == 1 else None
    splits = {}
    for number, (split, lines) in enumerate(texts.items()):
        randoms = (np.random.default_rng([seed, number, index]) for index in range(len(lines)))
        composed = (render(text, recordings, random) for text, random in zip(lines, randoms, strict=True))
        splits[split] = _write_split(folder / split, composed, speaker, known if split == "train" else [])
    splits["heldout_prompts"] = _write_split(folder / "heldout_prompts", [], speaker, heldout)
    if (corpus_root / "LICENSE").is_file():
        shutil.copy(corpus_root / "LICENSE", folder)
    train_words = _vocabulary([*texts["train"], *(clip["text"] for clip in known)])
    unseen = _vocabulary(clip["text"] for clip in heldout) - train_words
    return {
        "splits": splits,
        "train_vocabulary": len(train_words),
        "heldout_words_not_in_train": sorted(unseen),
        "characters": "".join(sorted({character for word in train_words | unseen for character in word})),
        "prompts_left_out_for_length": sorted(clip["id"] for clip in prompts if clip["duration"] > longest_prompt_s),
    }


def _write_split(
    folder: Path, composed: Iterable[Composition], speaker: str | None, prompts: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write audio, metadata.csv and word_times.json of one split; return how much it holds."""
    rows: list[tuple[str, str, str]] = []
    times: dict[str, list[WordTime]] = {}
    samples = 0

    def write(identity: str, waveform: np.ndarray, text: str, speaker: str | None) -> None:
        nonlocal samples
        path = folder / f"{identity}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, SAMPLING_RATE, subtype="PCM_16")
        rows.append((f"{identity}.flac", text, speaker or ""))
        samples += len(waveform)

    folder.mkdir(parents=True)
    for index, composition in enumerate(composed):
        identity = f"audio/{index:05d}"
        write(identity, composition.waveform, composition.text, speaker)
        times[identity] = list(composition.words)
    for clip in prompts:
        identity = f"prompts/{clip['id'].removeprefix('clips/')}"
        write(identity, read_audio(clip["audio"], SAMPLING_RATE), clip["text"], clip["speaker"])
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("file_name", "text", "speaker"), *rows])
    (folder / "word_times.json").write_text(json.dumps(times), encoding="utf-8")
    return {
        "clips": len(rows),
        "hours": round(samples / SAMPLING_RATE / 3600, 3),
        "words": sum(len(text.split()) for _, text, _ in rows),
        "megabytes": round(sum(path.stat().st_size for path in folder.rglob("*.flac")) / 1e6, 1),
    }

#!/usr/bin/env python
"""Make a corpus of 4.5 hours of real, transcribed English out of a package that every Debian mirror has.

    python -m experiments.real_speech.build_corpus
    python -m experiments.real_speech.build_corpus --deb flight-of-the-amazon-queen_1.0.0-9_all.deb --output DATA

The package holds the talkie version of an adventure game, played by professional actors: 6,543 recorded lines, MP3 at
11,025 Hz, with their subtitles. They are written as scripts/train.py takes them (one folder a split, with a
metadata.csv), with the recordings as they are, into a cache outside the repository. The game may be given away free of
charge; its audio is not published with this project, so that everyone fetches it from Debian.

Splits: the lines of dialogue name their character, and a character is in one split only (VALIDATION and TEST below name
theirs; all others train). Cut-scenes name nobody and train. Two things to know when reading a score: characters of the
validation and test splits also speak in cut-scenes, and a cast of a few actors plays all of them, so the voices of the
test split are not unheard, its characters' dialogues are.

Text: upper case; letters, apostrophes and spaces only; numbers, titles and abbreviations as they are spoken. The column
raw_text has the subtitle, speaker the character, source the file of the game.
"""

import argparse
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile
from experiments.real_speech.amazon_queen import Clip, ContainerError, read_clips

PACKAGE = "flight-of-the-amazon-queen"
CONTAINER = "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"
COPYRIGHT = "usr/share/doc/flight-of-the-amazon-queen/copyright"
MARKER = "corpus.json"  # written last; a folder that has it is whole
FORM = 1  # of the corpus; raised when texts or splits change

VALIDATION = ("AND", "BUD", "FRANK", "IAN", "LOU", "MAN", "SHOWERAM")
TEST = ("CHEF", "HENRY", "JOHN", "KLUNK", "LARIS", "LOLA", "NAOMI", "ORACLE", "SEC")
LEFT_OUT = {"COMIC381": "its subtitle, &#($!!, does not say what is spoken"}

SPOKEN = {
    "1940's": "nineteen forties",
    "1948": "nineteen forty eight",
    "1844": "eighteen forty four",
    "1922": "nineteen twenty two",
    "13th": "thirteenth",
    "19:00": "nineteen hundred",
    "24": "twenty four",
    "26": "twenty six",
    "50": "fifty",
    "100": "a hundred",
    "2B": "to be",
    "X7": "X seven",
    "Mr.": "mister",
    "Mr": "mister",
    "Ms.": "miz",
    "Dr.": "doctor",
    "vs.": "versus",
    "ID": "I D",
    "IQs": "I Qs",
    # A message in code, spelled out.
    "GSRH": "G S R H",
    "RH": "R H",
    "HVXIVG": "H V X I V G",
    "NVHHZTV": "N V H H Z T V",
}
_SPOKEN = re.compile(r"(?<![\w.])(?:" + "|".join(sorted(map(re.escape, SPOKEN), key=len, reverse=True)) + r")(?!\w)")
_ABBREVIATION = re.compile(r"\b(?:[A-Z]\.){2,}")
_SIGNS = re.compile(r"\^_|@@")  # a trademark sign, hearts


class CorpusError(RuntimeError):
    """The corpus cannot be made; the message says what to do."""


@dataclass(frozen=True)
class SplitCounts:
    """What a split holds; `hours` are rounded to a hundredth."""

    utterances: int
    hours: float
    speakers: int


EXPECTED = {
    "train": SplitCounts(5455, 3.73, 14),
    "validation": SplitCounts(445, 0.31, 7),
    "test": SplitCounts(643, 0.49, 9),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=default_folder(), help="folder to write (default: %(default)s)")
    parser.add_argument("--deb", type=Path, help=f"the package {PACKAGE}, in place of fetching it with apt-get")
    return parser.parse_args()


def default_folder() -> Path:
    """In the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_entmax_asr" / "real_speech"


def spoken_text(subtitle: str) -> str:
    """A subtitle as it is spoken: upper case, with letters, apostrophes and spaces only.

    Raises:
        CorpusError: there is a digit or a sign in it that has no rule.
    """
    text = _SPOKEN.sub(lambda match: SPOKEN[match[0]], _SIGNS.sub(" ", subtitle))
    text = _ABBREVIATION.sub(lambda match: match[0].replace(".", " "), text)
    text = re.sub(r'[.,!?:"()<>-]', " ", text).upper()
    words = [word for word in text.split() if word != "'"]
    if not words or not all(re.fullmatch("[A-Z']+", word) for word in words):
        raise CorpusError(f"no rule says how to speak the subtitle {subtitle!r}; add one to SPOKEN in build_corpus.py")
    return " ".join(words)


def split_of(speaker: str | None) -> str:
    """The split of a character's lines; None, nobody named, trains."""
    return "validation" if speaker in VALIDATION else "test" if speaker in TEST else "train"


def build(deb: Path | None, output: Path, expected: dict[str, SplitCounts]) -> dict[str, SplitCounts]:
    """Write the corpus to `output`, or nothing at all.

    Args:
        deb: the package; None fetches it.
        expected: what each split must hold.

    Raises:
        CorpusError: no MP3, no package, damage, other counts than expected.
    """
    if "MP3" not in soundfile.available_formats():
        raise CorpusError(
            f"libsndfile {soundfile.__libsndfile_version__} cannot read MP3; use 1.1 or newer: pip install -U soundfile"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".real_speech-", dir=output.parent) as scratch:
        tree, corpus = Path(scratch) / "package", Path(scratch) / "corpus"
        unpack(deb or fetch(Path(scratch)), tree)
        try:
            clips, _ = read_clips((tree / CONTAINER).read_bytes())
        except FileNotFoundError as error:
            raise CorpusError(f"the package has no {CONTAINER}; {PACKAGE} is the package that does") from error
        except ContainerError as error:
            raise CorpusError(f"{CONTAINER} of the package: {error}") from error
        counts = write_corpus([clip for clip in clips if clip.name not in LEFT_OUT], corpus)
        if counts != expected:
            raise CorpusError(
                f"the package does not hold what it should, so no corpus is written:\n{differences(counts, expected)}"
            )
        if (tree / COPYRIGHT).is_file():
            shutil.copy(tree / COPYRIGHT, corpus / "copyright")
        marker = {"form": FORM, "package": PACKAGE, "splits": {name: asdict(c) for name, c in counts.items()}}
        (corpus / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        if output.exists():  # of an older form, as main has checked
            output.rename(Path(scratch) / "old")
        corpus.rename(output)
    return counts


def fetch(folder: Path) -> Path:
    """The package, from the mirrors this machine is set up for."""
    by_hand = f"Get the file from https://packages.debian.org/{PACKAGE} and give it with --deb."
    try:
        done = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CorpusError(f"there is no apt-get on this machine. {by_hand}") from error
    found = list(folder.glob("*.deb"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CorpusError(
            f"apt-get download {PACKAGE} failed: {reason}\nRun `apt-get update` first. If that does not help: {by_hand}"
        )
    return found[0]


def unpack(deb: Path, tree: Path) -> None:
    """The files of a package."""
    if not deb.is_file():
        raise CorpusError(f"there is no package at {deb}")
    try:
        done = subprocess.run(["dpkg-deb", "-x", str(deb), str(tree)], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CorpusError("there is no dpkg-deb on this machine; install dpkg") from error
    if done.returncode:
        raise CorpusError(f"{deb} cannot be unpacked: {done.stderr.strip()}")


def write_corpus(clips: Sequence[Clip], corpus: Path) -> dict[str, SplitCounts]:
    """Write the splits; returns what they hold."""
    rows: dict[str, list[tuple[str, ...]]] = {"train": [], "validation": [], "test": []}
    seconds = dict.fromkeys(rows, 0.0)
    speakers: dict[str, set[str]] = {name: set() for name in rows}
    for name in rows:
        (corpus / name).mkdir(parents=True)
    for clip in clips:
        split = split_of(clip.speaker)
        try:
            info = soundfile.info(io.BytesIO(clip.audio))
        except soundfile.LibsndfileError as error:
            raise CorpusError(f"the recording {clip.name} cannot be read: {error.error_string}") from error
        (corpus / split / f"{clip.name}.mp3").write_bytes(clip.audio)
        text = spoken_text(clip.text)
        rows[split].append((f"{clip.name}.mp3", text, clip.speaker or "", clip.text.strip(), clip.source))
        seconds[split] += info.frames / info.samplerate
        speakers[split] |= {clip.speaker} - {None}
    for name, lines in rows.items():
        with (corpus / name / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file_name", "text", "speaker", "raw_text", "source"), *lines])
    return {
        name: SplitCounts(len(lines), round(seconds[name] / 3600, 2), len(speakers[name]))
        for name, lines in rows.items()
    }


def differences(found: dict[str, SplitCounts], expected: dict[str, SplitCounts]) -> str:
    """Where the counts differ, one line a split."""
    return "\n".join(
        f"  {n}: {describe(found[n])}; expected {describe(expected[n])}" for n in found if found[n] != expected[n]
    )


def describe(counts: SplitCounts) -> str:
    return f"{counts.utterances:,} utterances, {counts.hours:.2f} hours, {counts.speakers} named speakers"


def finished(output: Path) -> dict[str, SplitCounts] | None:
    """What the corpus at `output` holds, or None where one is to be made.

    Raises:
        CorpusError: there is something else.
    """
    try:
        marker = json.loads((output / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if output.exists():
            raise CorpusError(f"{output} is there but was not made by this program; name another --output") from None
        return None
    if marker.get("form") != FORM:
        return None
    return {name: SplitCounts(**counts) for name, counts in marker["splits"].items()}


def main() -> int:
    arguments = parse()
    output = arguments.output.absolute()
    try:
        counts = finished(output)
        state = "already there" if counts else "made"
        counts = counts or build(arguments.deb, output, EXPECTED)
    except CorpusError as error:
        print(f"build_corpus.py: {error}", file=sys.stderr)
        return 1
    print(f"{output} ({state})")
    for name, split in counts.items():
        print(f"  {name}: {describe(split)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The corpus of "Flight of the Amazon Queen": 6,543 lines of dialogue and cut-scenes, 4.5 hours, with their subtitles.

The talkie version of an adventure game, played by professional actors; MP3 at 11,025 Hz, kept as it is. The lines of
dialogue name their character, and a character is in one split only (VALIDATION and TEST below name theirs; all others
train). Cut-scenes name nobody and train. Two things to know when reading a score: characters of the validation and test
splits also speak in cut-scenes, and a cast of a few actors plays all of them, so the voices of the test split are not
unheard, its characters' dialogues are.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from experiments.real_speech.amazon_queen import read_clips
from experiments.real_speech.corpus_folder import ContainerError, SplitCounts, Utterance
from experiments.real_speech.debian_packages import Package
from experiments.real_speech.game import Game
from experiments.real_speech.spoken_text import Speaker

CONTAINER = "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"
VALIDATION = ("AND", "BUD", "FRANK", "IAN", "LOU", "MAN", "SHOWERAM")
TEST = ("CHEF", "HENRY", "JOHN", "KLUNK", "LARIS", "LOLA", "NAOMI", "ORACLE", "SEC")
LEFT_OUT = {"COMIC381": "a subtitle, &#($!!, that does not say what is spoken"}

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
spoken_text = Speaker(SPOKEN, signs=r"\^_|@@")  # a trademark sign, hearts


def split_of(speaker: str | None) -> str:
    """The split of a character's lines; None, nobody named, trains."""
    return "validation" if speaker in VALIDATION else "test" if speaker in TEST else "train"


def read(tree: Path, left_out: Counter[str]) -> Iterator[Utterance]:
    """The utterances of the unpacked package."""
    try:
        clips, _ = read_clips((tree / CONTAINER).read_bytes())
    except FileNotFoundError as error:
        raise ContainerError(f"the package has no {CONTAINER}; {GAME.packages[0].name} is the one that does") from error
    except ContainerError as error:
        raise ContainerError(f"{CONTAINER} of the package: {error}") from error
    for clip in clips:
        if clip.name in LEFT_OUT:
            left_out[LEFT_OUT[clip.name]] += 1
            continue
        text = spoken_text(clip.text)
        yield Utterance(clip.name, split_of(clip.speaker), clip.audio, text, clip.speaker, clip.text, clip.source)


GAME = Game(
    title="Flight of the Amazon Queen",
    packages=(Package("flight-of-the-amazon-queen"),),
    copyright="usr/share/doc/flight-of-the-amazon-queen/copyright",
    read=read,
    form=1,
    expected={
        "train": SplitCounts(5455, 3.73, 14),
        "validation": SplitCounts(445, 0.31, 7),
        "test": SplitCounts(643, 0.49, 9),
    },
)

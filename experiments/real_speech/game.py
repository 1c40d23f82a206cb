"""What a corpus is made of: one record a game."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.real_speech.corpus_folder import SplitCounts, Utterance
from experiments.real_speech.debian_packages import Package


@dataclass(frozen=True)
class Game:
    """A game whose speech makes a corpus.

    Attributes:
        title: of the game.
        packages: of Debian that hold it.
        copyright: file of the packages that is kept with the corpus.
        read: gives the utterances of the unpacked packages, and counts what it leaves out, by reason, in its second
            argument.
        form: of the corpus; raised when texts, clips or splits change.
        expected: what each split must hold.
        tolerance: share by which the counts may differ, where they depend on how a library decodes.
    """

    title: str
    packages: tuple[Package, ...]
    copyright: str
    read: Callable[[Path, Counter[str]], Iterator[Utterance]]
    form: int
    expected: dict[str, SplitCounts]
    tolerance: float = 0.0

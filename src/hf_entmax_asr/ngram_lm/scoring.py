"""An n-gram model from an ARPA file, read by KenLM: log probabilities of words or characters, and of texts."""

import logging
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hf_entmax_asr.tokenization import WORD_BOUNDARY

logger = logging.getLogger(__name__)

UNITS = ("word", "character")
MARKS = ("<s>", "</s>", "<unk>", "<UNK>")
UNKNOWN = ("<unk>", "<UNK>")
UNKNOWN_WORDS = 10_000_000  # that share the probability of <unk>; IRSTLM's upper bound of a dictionary
LONGEST_LINE = 2**20  # bytes; n-grams take some hundreds
LOG_10 = math.log(10)

State = Any  # kenlm.State: hashable, compares by value


class LanguageModelError(ValueError):
    """A language model that cannot be read, trained or used as asked."""


class NgramModel:
    """Log probabilities (natural) of an n-gram model.

    A unit that the model does not know has the probability of <unk> divided by `unknown_words`: <unk> stands for all
    unknown words together, and a recogniser that spells can write many. Without <unk> in the file, an unknown unit has
    probability 1 / unknown_words in every context.

    Attributes:
        unit: "word" or "character"; of characters a space is one too, written as the word boundary symbol.
        order: length of the longest n-grams.
        unigrams: log probability of each unit by itself, sentence marks and <unk> left out.
        unknown: log probability of one unknown unit by itself.
    """

    def __init__(self, path: str | Path, *, unit: str | None = None, unknown_words: int = UNKNOWN_WORDS) -> None:
        """Read an ARPA file (not a binary of KenLM: its vocabulary could not be read).

        Args:
            unit: "word" or "character"; by default character where every entry is one character.
            unknown_words: how many unknown words share the probability of <unk>.

        Raises:
            ImportError: KenLM is not installed.
            FileNotFoundError: there is no such file.
            LanguageModelError: it is not an ARPA file that KenLM can read, or an argument is out of range.
        """
        try:
            import kenlm
        except ImportError as error:
            raise ImportError(
                "an n-gram language model is read through KenLM, which is not installed: "
                "pip install 'hf_entmax_asr[lm]' (it needs a C++ compiler and cmake)"
            ) from error
        if unit not in (None, *UNITS):
            raise LanguageModelError(f"unit is {unit!r}; use 'word' or 'character'")
        if unknown_words < 1:
            raise LanguageModelError(f"unknown_words is {unknown_words}; it must be at least 1")
        self.path = Path(path)
        check_arpa(self.path)
        listed = dict(read_unigrams(self.path))
        self.unigrams = {unit: score for unit, score in listed.items() if unit not in MARKS}
        if not self.unigrams:
            raise LanguageModelError(f"{path} knows no words: its section \\1-grams: is empty")
        self.unit = unit or ("character" if all(len(entry) == 1 for entry in self.unigrams) else "word")
        settings = kenlm.Config()
        settings.show_progress, settings.arpa_complain = False, kenlm.ARPALoadComplain.NONE
        try:
            self._model = kenlm.Model(str(self.path), settings)
        except (OSError, RuntimeError) as error:
            raise LanguageModelError(f"KenLM cannot read {path}: {' '.join(str(error).split())}") from error
        self._make_state = kenlm.State
        self.order: int = self._model.order
        self._share = math.log(unknown_words)
        self._closed = not any(name in listed for name in UNKNOWN)
        if self._closed:
            logger.warning(f"{path} has no <unk>: an unknown {self.unit} has probability 1 / {unknown_words}")
        self.unknown = -self._share + max((listed[name] for name in UNKNOWN if name in listed), default=0.0)

    def start(self) -> State:
        """The state at the start of a sentence."""
        state = self._make_state()
        self._model.BeginSentenceWrite(state)
        return state

    def advance(self, state: State, unit: str) -> tuple[State, float]:
        """The state behind `unit`, and log p(unit | state). The given state is not changed."""
        following = self._make_state()
        score = self._model.BaseScore(state, unit, following) * LOG_10
        if unit not in self.unigrams:
            score = -self._share + (0.0 if self._closed else score)
        return following, score

    def end(self, state: State) -> float:
        """log p(</s> | state)."""
        return self._model.BaseScore(state, "</s>", self._make_state()) * LOG_10

    def units(self, text: str) -> list[str]:
        """The units of a text: words, or characters from the first that is not a space."""
        if self.unit == "word":
            return text.split()
        return list(text.lstrip().replace(" ", WORD_BOUNDARY))

    def log_probability(self, text: str) -> float:
        """log p of a text with its end."""
        state, total = self.start(), 0.0
        for unit in self.units(text):
            state, score = self.advance(state, unit)
            total += score
        return total + self.end(state)

    def perplexity(self, texts: Iterable[str]) -> float:
        """Per unit, the ends of the texts counted as units.

        Raises:
            LanguageModelError: no texts.
        """
        texts = list(texts)
        if not texts:
            raise LanguageModelError("there are no texts to take the perplexity of")
        total = sum(self.log_probability(text) for text in texts)
        return math.exp(-total / sum(len(self.units(text)) + 1 for text in texts))


def check_arpa(path: Path) -> None:
    """Look at what KenLM trusts: a negative count ends the process, a line without an end takes all memory.

    Raises:
        FileNotFoundError: there is no such file.
        LanguageModelError: it is not an ARPA file.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no language model {path}")
    if not path.is_file():
        raise LanguageModelError(f"{path} is no regular file")
    without_end = 0  # bytes since the last line end
    with path.open("rb") as file:
        header = file.read(LONGEST_LINE)
        file.seek(0)
        while block := file.read(LONGEST_LINE):
            first = block.find(b"\n")
            if without_end + (first if first >= 0 else len(block)) > LONGEST_LINE:
                raise LanguageModelError(f"{path} is not an ARPA file: it has a line of more than {LONGEST_LINE} bytes")
            without_end = len(block) - 1 - block.rfind(b"\n") if first >= 0 else without_end + len(block)
    if b"\\1-grams:" not in header:
        raise LanguageModelError(f"{path} is not an ARPA file: it has no section \\1-grams:")
    announced = re.findall(rb"^ngram[ \t]+(\d+)[ \t]*=[ \t]*(\S+)[ \t\r]*$", header.partition(b"\\1-grams:")[0], re.M)
    if not announced or b"\\data\\" not in header:
        raise LanguageModelError(f"{path} is not an ARPA file: it does not begin with \\data\\ and its counts")
    size = path.stat().st_size
    for place, (order, count) in enumerate(announced, 1):
        if int(order) != place or not count.isdigit() or not 0 <= int(count) <= size:
            line = f"ngram {order.decode()}={count.decode(errors='replace')}"
            raise LanguageModelError(f"{path} is not an ARPA file: it announces {line}, and has {size} bytes")


def read_unigrams(path: Path) -> Iterator[tuple[str, float]]:
    """(unit, log probability) lines of the section \\1-grams:."""
    inside, number = False, 0
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                number += 1
                line = line.strip("\r\n")
                if inside and (not line or line.startswith("\\")):
                    return
                if inside:
                    # Fields are separated by tabs or spaces: log10 probability, unit, perhaps a back-off weight.
                    fields = re.split("[ \t]+", line)
                    score = float(fields[0])
                    if not math.isfinite(score):
                        raise ValueError(f"{score} is no probability")
                    yield fields[1], score * LOG_10
                inside = inside or line.strip() == "\\1-grams:"
    except (UnicodeDecodeError, IndexError, ValueError) as error:
        where = f", line {number}" if inside else ""
        raise LanguageModelError(f"{path}{where} is not an ARPA file in UTF-8 ({error})") from error
    if not inside:
        raise LanguageModelError(f"{path} is not an ARPA file: it has no section \\1-grams:")

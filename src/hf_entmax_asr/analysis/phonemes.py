"""Phoneme labels in time: read from TextGrid or CTM files, ordered by articulation, brought to encoder positions."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_entmax_asr.input_files import InputFileError, check_regular

SILENCE = "SIL"
# ARPAbet by place of articulation from the lips to the glottis, then vowels from front to back. W is labial and velar.
ARTICULATION = {
    "labial": ("P", "B", "M", "F", "V", "W"),
    "dental": ("TH", "DH"),
    "alveolar": ("T", "D", "N", "S", "Z", "L"),
    "palatal": ("CH", "JH", "SH", "ZH", "R", "Y"),
    "velar": ("K", "G", "NG"),
    "glottal": ("HH",),
    "front vowel": ("IY", "IH", "EY", "EH", "AE"),
    "central vowel": ("AH", "ER"),
    "back vowel": ("AA", "AO", "OW", "UH", "UW"),
    "diphthong": ("AY", "AW", "OY"),
    "silence": (SILENCE,),
}
OTHER = "other"
SILENT_LABELS = frozenset(
    {"", "sil", "sp", "spn", "nsn", "silence", "pau", "h#", "<eps>", "<sil>", "<p:>", "<s>", "</s>"}
)
PHONE_TIERS = ("phones", "phone", "phonemes", "phoneme", "segments", "MAU")
LABEL_SUFFIXES = (".TextGrid", ".ctm")
MOST_CLASSES = 200
NO_CLASS = -1


class LabelError(ValueError):
    """A file of labels that cannot be read; the message names file, place and reason."""


@dataclass(frozen=True)
class Interval:
    """A label from `start` to `end`, in seconds."""

    start: float
    end: float
    label: str


def phoneme(label: str) -> str:
    """The class of a label: ARPAbet (in small letters too, as in TIMIT) without stress (AH0) and position (AH0_B).

    Every silence and noise is SIL. Labels of other alphabets stay as they are, but for letters that ARPAbet has too.
    """
    bare = re.sub(r"_[BIES]$", "", label.strip())
    if bare.lower().strip("+") in SILENT_LABELS:
        return SILENCE
    unstressed = re.sub(r"(?<=[A-Z])[012]$", "", bare.upper())
    return unstressed if unstressed in _PLACES else bare


_PLACES = {name: place for place, names in ARTICULATION.items() for name in names}


def place_of(name: str) -> str:
    """The group of a class, such as "labial"; "other" for what is not ARPAbet."""
    return _PLACES.get(name, OTHER)


def phoneme_classes(names: Iterable[str] | None = None) -> tuple[str, ...]:
    """Classes in the order of `ARTICULATION`, what is not ARPAbet behind in alphabetical order, silence last.

    Args:
        names: the classes there are, as `phoneme` gives them; None: all of ARPAbet.

    Raises:
        LabelError: more than 200 classes, such as when words were read for phonemes.
    """
    given = set(_PLACES if names is None else names)
    known = [name for name in _PLACES if name in given and name != SILENCE]
    classes = (*known, *sorted(given - set(_PLACES)), *({SILENCE} & given))
    if len(classes) > MOST_CLASSES:
        raise LabelError(
            f"the labels have {len(classes)} classes, such as {', '.join(classes[-6:-1])}; at most {MOST_CLASSES} are "
            "phonemes. Name the tier of the phonemes."
        )
    return classes


def labels_at_positions(
    intervals: Sequence[Interval], positions: int, seconds_per_position: float, classes: Sequence[str]
) -> Tensor:
    """The class at each encoder position: (positions,) indices into `classes`, −1 where there is none.

    Position j stands for the audio from j to j + 1 times `seconds_per_position`; the label at its middle counts, and an
    interval holds its start, not its end. Intervals must be in order.
    """
    index = {name: number for number, name in enumerate(classes)}
    result = torch.full((positions,), NO_CLASS, dtype=torch.long)
    middles = (torch.arange(positions, dtype=torch.float64) + 0.5) * seconds_per_position
    for interval in intervals:
        first, end = torch.searchsorted(middles, torch.tensor([interval.start, interval.end], dtype=torch.float64))
        result[int(first) : int(end)] = index.get(phoneme(interval.label), NO_CLASS)
    return result


def read_label_folder(folder: str | Path, tier: str | None = None) -> dict[str, list[Interval]]:
    """Phonemes by utterance: `ID.TextGrid` files below `folder`, and the utterances named in its `*.ctm` files.

    A TextGrid is named after its file, `speaker/0001.TextGrid` as "0001", or "speaker/0001" where several are called
    0001. Find the labels of an utterance with `labels_of`.

    Raises:
        FileNotFoundError: there is no such folder, or nothing of the kind in it.
        LabelError: a file that cannot be read, or an utterance that is labelled twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of labels.")
    files = sorted(path for path in folder.rglob("*") if path.suffix in LABEL_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder} holds no file that ends in {' or '.join(LABEL_SUFFIXES)}.")
    stems = Counter(path.stem for path in files if path.suffix == ".TextGrid")
    labels: dict[str, list[Interval]] = {}
    for path in files:
        name = path.stem if stems[path.stem] == 1 else path.relative_to(folder).with_suffix("").as_posix()
        read = read_ctm(path) if path.suffix == ".ctm" else {name: read_textgrid(path, tier)}
        twice = labels.keys() & read.keys()
        if twice:
            raise LabelError(f"{path}: {', '.join(sorted(twice)[:5])} has labels in another file too.")
        labels |= read
    return labels


def labels_of(labels: Mapping[str, Sequence[Interval]], utterance: str) -> Sequence[Interval] | None:
    """The labels of an utterance, or None: under its whole id ("train/speaker/0001"), or else under the longest end of
    it that has any ("speaker/0001", "0001")."""
    while utterance not in labels:
        _, slash, utterance = utterance.partition("/")
        if not slash:
            return None
    return labels[utterance]


def read_ctm(path: str | Path) -> dict[str, list[Interval]]:
    """Intervals by utterance from a CTM file: `utterance channel start duration label [confidence]` in each line.

    Raises:
        LabelError: a line that is not of this form, overlapping labels, or no label at all; it names the line.
    """
    path = Path(path)
    labels: dict[str, list[Interval]] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        fields = line.split()
        try:
            if len(fields) not in (5, 6):
                raise ValueError
            start, duration = float(fields[2]), float(fields[3])
            if not (math.isfinite(start) and math.isfinite(duration)):
                raise ValueError
        except ValueError:
            raise LabelError(
                f"{path}, line {number}: {line.strip()[:80]!r} is not 'utterance channel start duration label' in "
                "seconds."
            ) from None
        labels.setdefault(fields[0], []).append(Interval(start, start + duration, fields[4]))
    if not labels:
        raise LabelError(f"{path} holds no label.")
    return {name: _in_order(sorted(found, key=lambda i: i.start), f"{path}, {name}") for name, found in labels.items()}


def ctm_lines(
    utterance: str, intervals: Iterable[Interval], confidences: Iterable[float | None] = itertools.repeat(None)
) -> list[str]:
    """The intervals of an utterance as lines of a CTM file, each with its end of line, and with its confidence where
    there are any."""
    return [
        f"{utterance} 1 {i.start:.2f} {i.end - i.start:.2f} {i.label}{'' if sure is None else f' {sure:.4f}'}\n"
        for i, sure in zip(intervals, confidences, strict=False)
    ]


def read_textgrid(path: str | Path, tier: str | None = None) -> list[Interval]:
    """The intervals of one tier of a Praat TextGrid, in the long or the short text form, UTF-8, UTF-16 or Latin-1.

    Args:
        tier: its name; None takes the first of `PHONE_TIERS` that exists (any case; also behind a speaker's name, as in
            "Anna - phones"), or the only interval tier.

    Raises:
        LabelError: a binary, chronological, damaged or cut file, no such tier, or several that it could be.
    """
    path = Path(path)
    tiers = _textgrid_tiers(path)
    names = ", ".join(repr(name) for name, _ in tiers) or "none"
    if tier is not None:
        found = [intervals for name, intervals in tiers if name == tier]
    elif len(tiers) == 1:
        found = [tiers[0][1]]
    else:
        wanted = [known.lower() for known in PHONE_TIERS]
        ranked = sorted(
            (wanted.index(last), number)
            for number, (name, _) in enumerate(tiers)
            if (last := name.lower().rpartition(" - ")[2].strip()) in wanted
        )
        found = [tiers[number][1] for rank, number in ranked if rank == ranked[0][0]]
    if len(found) != 1:
        asked = "the phonemes" if tier is None else repr(tier)
        raise LabelError(f"{path}: {len(found)} interval tiers could be {asked}; it has {names}. Name one of them.")
    return _in_order(found[0], str(path))


# Praat reads quoted strings, numbers and flags that stand free, and passes over everything else, "intervals [1]:" too.
_TOKEN = re.compile(
    r'"(?P<text>(?:[^"]|"")*)"|(?P<flag><\w+>)|(?<!\S)(?P<number>[+-]?\d[\d.]*(?:[eE][+-]?\d+)?)|![^\n]*'
    r"|(?<== )(?P<wrong>[^\s\"<!]\S*)"  # what stands for a value and is none, as "xmin = nan"
)


def _textgrid_tiers(path: Path) -> list[tuple[str, list[Interval]]]:
    """(name, intervals) of every interval tier."""
    text = _text(path)
    if text.startswith("ooBinaryFile"):
        raise LabelError(f"{path} is a binary TextGrid; save it in Praat as a text file.")
    if "chronological TextGrid" in text[:100]:
        raise LabelError(f"{path} is a chronological TextGrid; save it in Praat as an ordinary text file.")
    tokens = _Tokens(path, text)
    if not tokens.text().startswith("ooTextFile") or tokens.text() != "TextGrid":
        raise LabelError(f'{path} is not a TextGrid: it does not begin with "ooTextFile" and "TextGrid".')
    tokens.number(), tokens.number()  # the whole time
    if tokens.flag() != "<exists>":
        return []
    tiers = []
    for _ in range(tokens.count()):
        kind, name = tokens.text(), tokens.text()
        tokens.number(), tokens.number()
        size = tokens.count()
        if kind == "IntervalTier":
            tiers.append((name, [Interval(tokens.number(), tokens.number(), tokens.text()) for _ in range(size)]))
        elif kind == "TextTier":
            for _ in range(size):
                tokens.number(), tokens.text()
        else:
            raise LabelError(f"{path}: the tier {name!r} is a {kind!r}; there are IntervalTier and TextTier.")
    return tiers


class _Tokens:
    """The free-standing strings, numbers and flags of a Praat text file, one after the other."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.whole = path, text
        self.tokens = (match for match in _TOKEN.finditer(text) if match.lastgroup)

    def text(self) -> str:
        return self._next("text").replace('""', '"')

    def flag(self) -> str:
        return self._next("flag")

    def number(self) -> float:
        written = self._next("number")
        try:
            return float(written)
        except ValueError:
            raise LabelError(f"{self.path}: {written!r} is no number.") from None

    def count(self) -> int:
        number = self.number()
        if not 0 <= number <= len(self.whole) or number != int(number):  # more there cannot be
            raise LabelError(f"{self.path} announces {number:g} of something; it has {len(self.whole)} characters.")
        return int(number)

    def _next(self, kind: str) -> str:
        match = next(self.tokens, None)
        if match is None:
            raise LabelError(f"{self.path} ends where a {kind} should follow; the file is cut short.")
        if match.lastgroup != kind:
            line = self.whole.count("\n", 0, match.start()) + 1
            raise LabelError(f"{self.path}, line {line}: a {kind} should stand where {match.group()[:40]!r} stands.")
        return match.group(kind)


def _in_order(intervals: list[Interval], where: str) -> list[Interval]:
    """The intervals, after a look at their times; labels may touch, not overlap (but for a millisecond of rounding)."""
    before = 0.0
    for interval in intervals:
        if not (before - 1e-3 <= interval.start <= interval.end < math.inf):
            raise LabelError(
                f"{where}: the label {interval.label!r} from {interval.start} to {interval.end} s begins before "
                f"{before} s or ends before it begins."
            )
        before = interval.end
    return intervals


def _text(path: Path) -> str:
    try:
        check_regular(path)
    except InputFileError as error:
        raise LabelError(str(error)) from error
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", "latin-1"]
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise LabelError(f"{path} begins as UTF-16 but is not; it is cut short or damaged.")

"""What a corpus on disk was found to hold, and what is wrong with it: counted, with paths, and said in one place.

One rule for every corpus. *Harmless* is what the corpora have as they are shipped, and what can be put right without
a guess: audio without a transcript is left out (AISHELL-1 has 325 such recordings), an archive beside its extracted
folder is not read. *Damage* is everything that should not be: a transcript without audio, audio cut short, bytes that
are not UTF-8. Damage is refused, all of it told at once, unless `bad_utterances="drop"` leaves those utterances out.
Neither happens without a word in the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

LISTED_PATHS = 5  # how many paths a message names of each kind

NO_TRANSCRIPT = "audio files without a transcript, left out"
SUPERSEDED = "speaker archives beside their extracted folder, not read"
LISTED_TWICE = "utterances listed twice, used once"
NEAREST_TEXT = "utterances with different transcripts, of which that nearest to the audio is used"
OTHER_SUFFIX = "folders with audio in another form than it was published in, read as it is"
HARMLESS = frozenset({NO_TRANSCRIPT, SUPERSEDED, LISTED_TWICE, NEAREST_TEXT, OTHER_SUFFIX})

NO_AUDIO = "transcripts or index entries without audio"
BAD_AUDIO = "audio files that are damaged, cut short or empty"
BAD_ARCHIVE = "speaker archives that are damaged or cut short"
BAD_ENCODING = "transcript lines that are not UTF-8 (convert the file: iconv -f gb18030 -t utf-8)"
NO_ENTRIES = "indices without an entry"
BAD_LINE = "lines that are not in the corpus's format"
TWO_TEXTS = "utterances with two different transcripts"
EMPTY_TEXT = "transcripts without a word"

Findings = dict[str, list[str]]  # what is the matter -> where, one entry each


class CorpusError(ValueError):
    """A corpus with damage; the message counts it and names the first paths of each kind."""


@dataclass
class SplitReport:
    """One split: utterances and hours of speech (None while streaming, where nothing is read ahead)."""

    expected: int | None  # utterances of the split as published, None where there is no such number
    utterances: int | None = None
    hours: float | None = None
    speakers: int | None = None
    findings: Findings = field(default_factory=dict)

    @property
    def mismatch(self) -> bool:
        """Whether the count is known and is not the published one."""
        return None not in (self.expected, self.utterances) and self.expected != self.utterances


@dataclass
class CorpusReport:
    """A whole corpus: its splits, the splits that are not there (with where they were looked for), and its findings."""

    corpus: str
    root: str
    splits: dict[str, SplitReport] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    findings: Findings = field(default_factory=dict)  # of no split in particular

    @property
    def damage(self) -> Findings:
        """Everything that is not harmless, over all splits."""
        total: Findings = {}
        for findings in (self.findings, *(split.findings for split in self.splits.values())):
            for what, where in findings.items():
                if what not in HARMLESS:
                    total.setdefault(what, []).extend(where)
        return total

    @property
    def needs_attention(self) -> bool:
        """Whether there is anything that its reader should know beyond the counts."""
        found = self.findings or any(split.findings or split.mismatch for split in self.splits.values())
        return bool(found or self.missing)

    def __str__(self) -> str:
        lines = [f"{self.corpus} in {self.root}"]
        for name, split in self.splits.items():
            lines.append(f"  {name}: {_counts(split)}")
            lines += [f"    {line}" for line in describe(split.findings)]
        lines += [f"  {name}: not there ({where})" for name, where in self.missing.items()]
        lines += [f"  {line}" for line in describe(self.findings)]
        return "\n".join(lines)


def _counts(split: SplitReport) -> str:
    if split.utterances is None:
        expected = "" if split.expected is None else f", {split.expected:,} utterances as published"
        return f"streamed{expected}"
    parts = [f"{split.utterances:,} utterances"]
    if split.mismatch:
        parts.append(f"NOT the {split.expected:,} of the published split")
    if split.hours is not None:
        parts.append(f"{split.hours:,.2f} hours" if split.hours >= 1 else f"{split.hours * 60:.2f} minutes")
    if split.speakers:
        parts.append("1 speaker" if split.speakers == 1 else f"{split.speakers:,} speakers")
    return ", ".join(parts)


def describe(findings: Mapping[str, list[str]]) -> list[str]:
    """One line for each kind of finding: how many, what, and the first few places."""
    lines = []
    for what, where in findings.items():
        more = f" and {len(where) - LISTED_PATHS} more" if len(where) > LISTED_PATHS else ""
        lines.append(f"{len(where):,} {what}: {', '.join(where[:LISTED_PATHS])}{more}")
    return lines

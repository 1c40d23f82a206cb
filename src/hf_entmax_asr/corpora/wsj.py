"""WSJ: CSR-I and CSR-II of the LDC (LDC93S6A/B, LDC94S13A/B; Paul and Baker 1992), read Wall Street Journal text.

    11-1.1/wsj0/si_tr_s/01i/01ic0201.wv1          a disc of the LDC: SPHERE with embedded shorten, 16 kHz
    wsj0/si_tr_s/01i/01ic0201.wv1                 the same in CSTR's single tree, without the discs
    11-13.1/wsj0/doc/indices/train/tr_s_wv1.ndx   11_1_1:wsj0/si_tr_s/01i/01ic0201.wv1
    11-4.1/wsj0/transcrp/dots/…/01ic0200.dot      MR. SMITH SAID ... (01ic0201)

Names may be upper case throughout, as they are on some copies of the discs. The splits, their indices and the text
are those of Kaldi's recipe (egs/wsj/s5: wsj_data_prep.sh, cstr_wsj_data_prep.sh, normalize_transcript.pl).
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_entmax_asr.audio.sphere import require_av
from hf_entmax_asr.corpora.building import BadUtterances, Listing, file_signature, utf8_lines
from hf_entmax_asr.corpora.corpus import ShardedCorpus
from hf_entmax_asr.corpora.report import (
    BAD_LINE,
    LISTED_TWICE,
    NEAREST_TEXT,
    NO_AUDIO,
    NO_ENTRIES,
    NO_TRANSCRIPT,
    Findings,
)
from hf_entmax_asr.corpora.rows import finding, utterance
from hf_entmax_asr.text import TextRule

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict


class _Index(NamedTuple):
    """An index file, with the disc whose copy counts."""

    disc: str
    path: str


_SI84 = _Index("11_13_1", "wsj0/doc/indices/train/tr_s_wv1.ndx")
INDICES = {
    "train_si284": (_SI84, _Index("13_34_1", "wsj1/doc/indices/si_tr_s.ndx")),
    "train_si84": (_SI84,),
    "test_dev93": (_Index("13_34_1", "wsj1/doc/indices/h1_p0.ndx"),),
    "test_eval92": (_Index("11_13_1", "wsj0/doc/indices/test/nvp/si_et_20.ndx"),),
    "test_eval93": (_Index("13_32_1", "wsj1/doc/indices/wsj1/eval/h1_p0.ndx"),),
}
EXPECTED = {
    "train_si284": 37_416,
    "train_si84": 7_138,
    "test_dev93": 503,
    "test_eval92": 333,
    "test_eval93": 213,
}
NOISE = "<NOISE>"
_EXCLUDED = ("11_2_1", "wsj0/si_tr_s/401/")  # a speaker that the index lists and the split leaves out
_SUFFIXES = (".wv1", ".dot", ".ndx")
_UTTERANCES_PER_SHARD = 256
_INDEX_LINE = re.compile(r"([0-9_]+):\s*/?(\S+)")
_DOT_LINE = re.compile(r"(.*)\((\w{8})\)")
_DISC_ID = re.compile(r"(\d\d)[-_](\d+)[._](\d)")  # of a folder, 11-1.1, and in the indices, 11_1_1


def load_wsj(
    root: str | os.PathLike,
    streaming: bool = False,
    *,
    splits: Sequence[str] | str | None = None,
    bad_utterances: BadUtterances = "refuse",
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> "DatasetDict | IterableDatasetDict":
    """WSJ as `train_si284`, `train_si84`, `test_dev93`, `test_eval92`, `test_eval93`, as far as the discs are there.

    Columns are those of `load_folder`; the text is normalised by `normalise_wsj`. Rows hold the path of their `.wv1`
    file. Each file is decoded once while the cache is made, since only that tells whether a compressed file is whole.

    Args:
        root: the folder of the discs (11-1.1 … 13-34.1, at most two levels below) or of the single tree (wsj0, wsj1).
        streaming: return `IterableDatasetDict`, which reads the files as one goes through it and caches nothing. Its
            audio column is a plain struct of path and bytes, for `read_audio` as well.
        splits: the splits to read; None takes those whose indices are there.
        bad_utterances: "refuse" a corpus with damage, or "drop" the damaged utterances (rule: corpora/report.py). An
            indexed file on a disc that is not there counts as damage.
        cache_dir: for the Arrow files; None is the cache of the datasets library.
        num_proc: processes that check the audio files when the cache is made.
    Raises:
        FileNotFoundError: no discs, no index, or not that of a split that was named.
        CorpusError: damage; the message counts it and names paths.
        ImportError: PyAV, which decodes the audio, is not installed.
    """
    return CORPUS.read(
        root, streaming, splits=splits, bad_utterances=bad_utterances, cache_dir=cache_dir, num_proc=num_proc
    ).splits


def list_wsj(root: Path, splits: Sequence[str] | None) -> Listing:
    """The indexed utterances of each split, without decoding them; raises what `load_wsj` says."""
    require_av()
    disc_files, listing = _DiscFiles(root), Listing(root)
    transcripts = _Transcripts(disc_files, listing.findings)
    for split in splits or INDICES:
        indices = {index: disc_files.find(index.disc, index.path) for index in INDICES[split]}
        absent = [f"{_disc_name(index.disc)}/{index.path}" for index, path in indices.items() if path is None]
        if absent:
            listing.missing[split] = f"no index {' and no index '.join(absent)}"
            continue
        entries: dict[str, _Entry] = {}
        for path in indices.values():
            listed = list(_read_index(Path(path or ""), split, disc_files, transcripts, listing.findings))
            if not listed:
                listing.findings.setdefault(NO_ENTRIES, []).append(f"{split} {path}")
            for entry in listed:
                if entry.name in entries:
                    listing.findings.setdefault(LISTED_TWICE, []).append(f"{split} {entry.where}")
                entries.setdefault(entry.name, entry)
        if not entries:
            listing.missing[split] = f"no entries in {' and '.join(map(str, indices.values()))}"
            continue
        ordered = [entries[name] for name in sorted(entries)]
        listing.shards[split] = [
            _EntryBlock(tuple(ordered[start : start + _UTTERANCES_PER_SHARD]))
            for start in range(0, len(ordered), _UTTERANCES_PER_SHARD)
        ]
    return listing


def normalise_wsj(text: str) -> str:
    """A detailed orthographic transcription (.dot) as words, by the rules of Kaldi's normalize_transcript.pl.

    Upper case; `\\` (a quoted character) goes; %PERCENT and .POINT, of the 1993 tests, become words; --DASH becomes
    -DASH, as in CMU's dictionary; [<x] and [x>] (a noise over the neighbouring word), [x/] and [/x] (over a stretch of
    words), ~ (utterance cut off) and . (pause) go; any other [x] is a noise of its own, <NOISE>; <word> (deleted by the
    speaker's correction, but pronounced) becomes word.
    """
    words = (_normalised(word.upper().replace("\\", "")) for word in text.split())
    return " ".join(word for word in words if word)


_WHOLE_WORDS = {"%PERCENT": "PERCENT", ".POINT": "POINT", "--DASH": "-DASH", "~": "", ".": ""}
_NOISE_OVER_WORDS = re.compile(r"\[<\w+\]|\[\w+>\]|.*\[\w+/\]|.*\[/\w+\]")
_NOISE = re.compile(r"\[\w+\]")
_DELETED_WORD = re.compile(r"<([\w']+)>")


def _normalised(word: str) -> str:
    if word in _WHOLE_WORDS:
        return _WHOLE_WORDS[word]
    if _NOISE_OVER_WORDS.fullmatch(word):
        return ""
    if _NOISE.search(word):
        return NOISE
    deleted = _DELETED_WORD.fullmatch(word)
    return deleted[1] if deleted else word


class _Entry(NamedTuple):
    """An indexed utterance; no path or no text where none was found. `where` is the entry as the index has it."""

    name: str
    path: str | None
    text: str | None
    where: str


@dataclass(frozen=True)
class _EntryBlock:
    """Consecutive entries of a split: a shard."""

    entries: tuple[_Entry, ...]

    def signature(self) -> Iterator[str]:
        yield from (f"{entry.where} {entry.text}" for entry in self.entries)
        yield from file_signature(entry.path for entry in self.entries if entry.path)

    def rows(self) -> Iterator[dict[str, Any]]:
        for entry in self.entries:
            if entry.path is None:
                yield finding(NO_AUDIO, entry.where)
            elif entry.text is None:
                yield finding(NO_TRANSCRIPT, entry.path)
            else:  # the first three characters of an id are the speaker's code
                yield utterance(entry.name, entry.path, normalise_wsj(entry.text), entry.name[:3])


def _read_index(
    path: Path, split: str, disc_files: "_DiscFiles", transcripts: "_Transcripts", findings: Findings
) -> Iterator[_Entry]:
    for number, line in utf8_lines(path, findings):
        if line.startswith(";"):
            continue
        match = _INDEX_LINE.fullmatch(line)
        if match is None:
            place = f"{path}:{number} ({line[:40]})"
            if place not in findings.setdefault(BAD_LINE, []):  # si84 and si284 share an index
                findings[BAD_LINE].append(place)
            continue
        disc, name = match[1], match[2].lower()
        if disc == _EXCLUDED[0] and name.startswith(_EXCLUDED[1]):
            continue
        if not name.endswith(".wv1"):  # the index of eval92 leaves the suffix out
            name += ".wv1"
        audio, utterance_id = disc_files.find(disc, name), Path(name).stem
        absent_disc = "" if disc_files.holds(disc) else f" (there is no disc {_disc_name(disc)})"
        text = transcripts.find(utterance_id, name) if audio else None
        yield _Entry(utterance_id, audio, text, f"{_disc_name(disc)}/{name}{absent_disc}")


def _disc_name(disc: str) -> str:
    match = _DISC_ID.fullmatch(disc)
    return f"{match[1]}-{match[2]}.{match[3]}" if match else disc


@dataclass
class _DiscFiles:
    """All audio, transcript and index files below a root, by disc (None: not on a disc) and lower-case path."""

    root: Path
    files: dict[str | None, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise FileNotFoundError(f"corpus folder {self.root} does not exist")
        for base in _index_roots(self.root):
            match = _DISC_ID.fullmatch(base.name)
            self._add("_".join(match.groups()) if match else None, base)
        if not any(self.files.values()):
            raise FileNotFoundError(
                f"{self.root} holds no WSJ: neither discs (11-1.1 … 13-34.1) nor folders wsj0 and wsj1 with their files"
            )

    def _add(self, disc: str | None, base: Path) -> None:
        files = self.files.setdefault(disc, {})
        for top in _wsj_folders(base):
            for folder, _, names in os.walk(top):
                for name in names:
                    if name.lower().endswith(_SUFFIXES):
                        path = os.path.join(folder, name)
                        files[os.path.relpath(path, base).lower()] = path

    def holds(self, disc: str) -> bool:
        """Whether the disc is there, or may be: in a single tree there is no telling."""
        return disc in self.files or None in self.files

    def find(self, disc: str, path: str) -> str | None:
        """A file of a disc, or of any other: the index of eval93 says 13_32_1 where it means 13_33_1."""
        for files in (self.files.get(disc, {}), *self.files.values()):
            if path in files:
                return files[path]
        return None


def _wsj_folders(folder: Path) -> list[Path]:
    return [child for child in sorted(folder.iterdir()) if child.name.lower() in ("wsj0", "wsj1") and child.is_dir()]


def _index_roots(root: Path) -> list[Path]:
    """The folders that paths in the indices start from: the discs or, where there are none, the single tree."""
    discs = [folder for folder in _folders(root, depth=3) if _DISC_ID.fullmatch(folder.name)]
    if discs:
        return discs
    trees = (root.parent,) if root.name.lower() in ("wsj0", "wsj1") else (root, *_folders(root, depth=1))
    return [next((tree for tree in trees if _wsj_folders(tree)), root)]


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """The folders at most so many levels below; not those within a disc."""
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            yield child
            if depth > 1 and not _DISC_ID.fullmatch(child.name):
                yield from _folders(child, depth - 1)


class _Transcripts:
    """Finds the transcript of an utterance: that of 01ic0201 stands in a file 01ic0200.dot, which is read once."""

    def __init__(self, disc_files: _DiscFiles, findings: Findings) -> None:
        self.findings = findings
        self.paths: dict[str, list[str]] = {}  # by the six characters of speaker and session
        self.texts: dict[str, dict[str, str]] = {}  # by file, then by utterance
        self.found: dict[str, str | None] = {}
        for files in disc_files.files.values():
            for name, path in sorted(files.items()):
                if name.endswith(".dot"):
                    self.paths.setdefault(Path(name).stem[:6], []).append(path)

    def find(self, name: str, audio: str) -> str | None:
        """The text of the utterance `name` whose audio file is `audio`, None where there is none."""
        if name not in self.found:
            texts = {path: texts[name] for path in self.paths.get(name[:6], ()) if name in (texts := self._read(path))}
            folders = set(Path(audio).parts)
            nearest = max(texts, key=lambda path: len(folders & set(path.lower().split(os.sep))), default=None)
            if nearest is not None and len(set(texts.values())) > 1:
                self.findings.setdefault(NEAREST_TEXT, []).append(f"{name} ({nearest})")
            self.found[name] = None if nearest is None else texts[nearest]
        return self.found[name]

    def _read(self, path: str) -> dict[str, str]:
        if path not in self.texts:
            self.texts[path] = texts = {}
            for number, line in utf8_lines(Path(path), self.findings):
                match = _DOT_LINE.fullmatch(line)
                if match is None:
                    self.findings.setdefault(BAD_LINE, []).append(f"{path}:{number} ({line[:40]})")
                else:
                    texts[match[2].lower()] = match[1].strip()
        return self.texts[path]


# Kaldi's scoring filter: marks that are not words, two signs, and four slips of the reference transcripts.
_UNSCORED_MARKS = re.compile(f"{NOISE}|<SPOKEN_NOISE>|<UNK>|[:*]")
_TRANSCRIPT_SLIPS = {
    "-HOLDER": "HOLDER",
    "COMPAIGN": "CAMPAIGN",
    "APPROACHES-": "APPROACHES",
    "RESEACHERS": "RESEARCHERS",
}


def _as_scored(text: str) -> str:
    text = _UNSCORED_MARKS.sub("", text)
    for slip, right in _TRANSCRIPT_SLIPS.items():
        text = text.replace(slip, right)
    return " ".join(text.split())


CORPUS = ShardedCorpus(
    name="wsj",
    splits=EXPECTED,
    list_shards=list_wsj,
    train_splits=("train_si284", "train_si84"),  # the larger holds the smaller
    validation_split="test_dev93",
    symbols=(NOISE,),
    scoring_rule=TextRule(
        "wsj",
        "no <NOISE>, <SPOKEN_NOISE>, <UNK>, colons and asterisks; four slips of the transcripts put right",
        "Kaldi, egs/wsj/s5/local/wer_output_filter",
        _as_scored,
        recounts="noises go, broken words are joined",
    ),
    recipe="wsj_strong.yaml",
)

"""AISHELL-1 (Bu et al. 2017, arXiv 1709.05522; openslr.org/33): 178 hours of read Mandarin, 400 speakers, 16 kHz WAV.

data_aishell/transcript/aishell_transcript_v0.8.txt      BAC009S0002W0122 而 对 楼市 成交 抑制 作用 最 大 的 限 购
data_aishell/wav/train/S0002/BAC009S0002W0122.wav        after extraction of the archive below
data_aishell/wav/S0002.tar.gz                            as it comes: one archive a speaker, holding train/S0002/*
"""

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hf_entmax_asr.corpora.building import BadUtterances, Listing, file_signature, folder_signature, utf8_lines
from hf_entmax_asr.corpora.corpus import ShardedCorpus
from hf_entmax_asr.corpora.report import (
    BAD_ARCHIVE,
    BAD_LINE,
    LISTED_TWICE,
    NO_AUDIO,
    NO_TRANSCRIPT,
    SUPERSEDED,
    TWO_TEXTS,
)
from hf_entmax_asr.corpora.rows import finding, utterance
from hf_entmax_asr.input_files import InputFileError, check_regular
from hf_entmax_asr.text import TextRule

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

# Recordings with a transcript (Kaldi's recipe keeps these): 141,600 of the 141,925 that are shipped.
EXPECTED = {"train": 120_098, "dev": 14_326, "test": 7_176}
TRANSCRIPT = "aishell_transcript_v0.8.txt"
_ID = re.compile(r"BAC009(S\d{4})W\d{4}")
_ARCHIVE = ".tar.gz"
LARGEST_ARCHIVE = 2**29  # bytes
_ARCHIVE_ERRORS = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)
_FULL_WIDTH_LATIN = {
    full: full - 0xFEE0 for first, last in (("Ａ", "Ｚ"), ("ａ", "ｚ")) for full in range(ord(first), ord(last) + 1)
}


def load_aishell1(
    root: str | os.PathLike,
    streaming: bool = False,
    *,
    splits: Sequence[str] | str | None = None,
    bad_utterances: BadUtterances = "refuse",
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> "DatasetDict | IterableDatasetDict":
    """AISHELL-1 as `train`, `dev` and `test`, from a folder as it was unpacked (see the module).

    Columns are those of `load_folder`; the text is normalised by `normalise_aishell1`. Rows hold the path of their WAV
    file. A speaker's archive that was not extracted is read once, and its audio kept in the Arrow cache (17 GB for the
    whole corpus), because single recordings cannot be reached in a compressed archive.

    Args:
        root: `data_aishell`, the folder that holds it, or its `wav` folder.
        streaming: return `IterableDatasetDict`, which reads the files as one goes through it and caches nothing. Its
            audio column is a plain struct of path and bytes, for `read_audio` as well.
        splits: the splits to read; None takes those that are there.
        bad_utterances: "refuse" a corpus with damage, or "drop" the damaged utterances (rule: corpora/report.py).
        cache_dir: for the Arrow files; None is the cache of the datasets library.
        num_proc: processes that check the audio files when the cache is made.
    Raises:
        FileNotFoundError: no transcript, no split, or not one of those that were named.
        CorpusError: damage; the message counts it and names paths.
    """
    return CORPUS.read(
        root, streaming, splits=splits, bad_utterances=bad_utterances, cache_dir=cache_dir, num_proc=num_proc
    ).splits


def list_aishell1(root: Path, splits: Sequence[str] | None) -> Listing:
    """The speakers and transcripts of each split, without reading audio; raises what `load_aishell1` says."""
    wanted, base = splits or tuple(EXPECTED), _corpus_folder(root)
    listing = Listing(base)
    texts = _read_transcript(base / "transcript" / TRANSCRIPT, listing)
    sources = _find_speakers(base / "wav", listing)
    for split, speakers in sources.items():
        if split in wanted and speakers:
            listing.shards[split] = [
                _Speaker(name, source, texts.get(name, {})) for name, source in sorted(speakers.items())
            ]
        elif split in wanted:
            listing.missing[split] = f"no speakers, extracted or as {_ARCHIVE}, in {base / 'wav' / split}"
    absent = texts.keys() - {name for speakers in sources.values() for name in speakers}
    if absent and all(sources.values()):  # else they belong to the split that is missing
        lost = [f"{base / 'wav'}/*/{name}/{entry}.wav" for name in sorted(absent) for entry in sorted(texts[name])]
        listing.findings.setdefault(NO_AUDIO, []).extend(lost)
    return listing


def normalise_aishell1(text: str) -> str:
    """Full-width Latin letters become ASCII, letters upper case, and the spaces between words go.

    The transcripts are segmented into words, but Mandarin is scored in characters: WeNet's AISHELL recipe removes the
    spaces; its multi_cn recipe, and lhotse after it, narrow the full-width letters that occur (a, b, c, k, t) and
    make them upper case.
    """
    return "".join(text.translate(_FULL_WIDTH_LATIN).upper().split())


@dataclass(frozen=True)
class _Speaker:
    """One speaker's transcripts (as written, by id) and folder or archive."""

    name: str
    source: str
    texts: dict[str, str]

    def signature(self) -> Iterator[str]:
        yield from (f"{name} {text}" for name, text in self.texts.items())
        yield from folder_signature(self.source) if os.path.isdir(self.source) else file_signature([self.source])

    def rows(self) -> Iterator[dict[str, Any]]:
        seen = set()
        try:
            for path, content in _recordings(self.source):
                name = Path(path).stem
                if name not in self.texts:
                    yield finding(NO_TRANSCRIPT, path)
                    continue
                seen.add(name)
                yield utterance(name, path, normalise_aishell1(self.texts[name]), self.name, content)
        except _ARCHIVE_ERRORS as error:
            lost = len(self.texts.keys() - seen)
            yield finding(BAD_ARCHIVE, f"{self.source} ({error}; {lost} of its recordings could not be read)")
            return
        for name in sorted(self.texts.keys() - seen):
            yield finding(NO_AUDIO, os.path.join(self.source, f"{name}.wav"))


def _recordings(source: str) -> Iterator[tuple[str, bytes | None]]:
    """Path of each WAV file, and its bytes if it lies in an archive; sorted in a folder, as packed in an archive."""
    if os.path.isdir(source):
        yield from ((entry.path, None) for entry in _entries_by_name(source) if entry.name.endswith(".wav"))
        return
    with gzip.open(source) as unpacked:
        with tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for member in archive:
                _check_size(member.offset_data + member.size, source)
                if member.isfile() and member.name.endswith(".wav"):
                    content = archive.extractfile(member)
                    yield f"{source}/{member.name.removeprefix('./')}", content.read() if content else b""
        while unpacked.read(1 << 20):  # gzip compares its checksum at the very end
            _check_size(unpacked.tell(), source)


def _check_size(unpacked_bytes: int, source: str) -> None:
    """tarfile.ReadError for an archive that holds far more than a speaker's recordings, 45 MB, however small it is."""
    if unpacked_bytes > LARGEST_ARCHIVE:
        raise tarfile.ReadError(
            f"{source} unpacks to more than {LARGEST_ARCHIVE:,} bytes; it is no archive of a speaker"
        )


def _entries_by_name(folder: str | Path) -> list[os.DirEntry]:
    return sorted(os.scandir(str(folder)), key=lambda entry: entry.name)


def _corpus_folder(root: Path) -> Path:
    """The folder that holds `wav` and `transcript`: `root`, one below, or one above."""
    for base in (root, root / "data_aishell", root.parent):
        if (base / "wav").is_dir() and (base / "transcript" / TRANSCRIPT).is_file():
            return base
    if not root.is_dir():
        raise FileNotFoundError(f"corpus folder {root} does not exist")
    outer = sorted(path.name for path in root.glob("*.tgz"))
    hint = f"; extract {outer[0]} first (tar xzf {outer[0]})" if outer else ""
    raise FileNotFoundError(f"{root} holds no AISHELL-1: there is no wav/ beside transcript/{TRANSCRIPT}{hint}")


def _read_transcript(path: Path, listing: Listing) -> dict[str, dict[str, str]]:
    """Speaker -> id -> text as written."""
    texts: dict[str, dict[str, str]] = {}
    for number, line in utf8_lines(path, listing.findings):
        name, *words = line.split(None, 1)
        match = _ID.fullmatch(name)
        if match is None:
            listing.findings.setdefault(BAD_LINE, []).append(f"{path}:{number} ({line[:40]})")
            continue
        text, of_speaker = "".join(words), texts.setdefault(match[1], {})
        if name in of_speaker:
            what = LISTED_TWICE if of_speaker[name] == text else TWO_TEXTS
            listing.findings.setdefault(what, []).append(f"{path}:{number} ({name})")
            continue
        of_speaker[name] = text
    return texts


def _find_speakers(wav: Path, listing: Listing) -> dict[str, dict[str, str]]:
    """Split -> speaker -> folder, or archive where there is no folder."""
    sources: dict[str, dict[str, str]] = {
        split: {entry.name: entry.path for entry in _entries_by_name(wav / split) if entry.is_dir()}
        if (wav / split).is_dir()
        else {}
        for split in EXPECTED
    }
    extracted = {name for speakers in sources.values() for name in speakers}
    for folder in (wav, *(wav / split for split in EXPECTED)):
        for archive in sorted(folder.glob(f"*{_ARCHIVE}")):
            speaker = archive.name.removesuffix(_ARCHIVE)
            if speaker in extracted:
                listing.findings.setdefault(SUPERSEDED, []).append(str(archive))
                continue
            try:
                check_regular(archive)
                split = folder.name if folder != wav else _split_within(archive)
            except (*_ARCHIVE_ERRORS, InputFileError) as error:
                listing.findings.setdefault(BAD_ARCHIVE, []).append(f"{archive} ({error})")
                continue
            sources[split][speaker] = str(archive)
    return sources


def _split_within(archive: Path) -> str:
    """The split that an archive's first recording is filed under; only the archive's beginning is read."""
    with tarfile.open(archive) as members:
        for member in members:
            for part in PurePosixPath(member.name).parts:
                if part in EXPECTED:
                    return part
    raise tarfile.ReadError(f"nothing in it is filed under {', '.join(EXPECTED)}")


CORPUS = ShardedCorpus(
    name="aishell1",
    splits=EXPECTED,
    list_shards=list_aishell1,
    validation_split="dev",
    word_boundary=False,
    scoring_rule=TextRule(
        "aishell1",
        "full-width letters as ASCII, upper case, no spaces; the score to quote is the CER",
        "WeNet's recipes aishell (spaces) and multi_cn (letters); the transcripts are loaded in this form",
        normalise_aishell1,
        recounts="words are joined",
    ),
    scoring_unit="character",
    recipe="aishell1_strong.yaml",
)

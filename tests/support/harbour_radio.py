"""Harbour radio, a corpus that does not exist: recordings, and beside them one file with what was said.

ROOT/train/0001.wav
ROOT/train/transcripts.tsv      0001<TAB>starboard engine is out
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_entmax_asr.corpora.building import Listing, folder_signature, utf8_lines
from hf_entmax_asr.corpora.corpus import ShardedCorpus
from hf_entmax_asr.corpora.report import NO_AUDIO, NO_TRANSCRIPT, Findings
from hf_entmax_asr.corpora.rows import finding, finding_rows, utterance

PUBLISHED = {"train": 4, "dev": 2, "test": None}  # utterances of each split, where they are known


def list_splits(root: Path, splits: Sequence[str] | None) -> Listing:
    """What there is to read, without reading it."""
    listing = Listing(root)
    for split in splits or PUBLISHED:
        if (root / split / "transcripts.tsv").is_file():
            listing.shards[split] = [Recordings(str(root / split))]
        else:
            listing.missing[split] = f"no transcripts.tsv in {root / split}"
    return listing


@dataclass(frozen=True)
class Recordings:
    """A shard, which one process reads in one go: here a whole split."""

    folder: str

    def signature(self) -> Iterator[str]:
        yield from folder_signature(self.folder)

    def rows(self) -> Iterator[dict[str, Any]]:
        folder, findings = Path(self.folder), Findings()
        lines = [line.partition("\t") for _, line in utf8_lines(folder / "transcripts.tsv", findings)]
        texts = {name: text.upper() for name, _, text in lines}
        recorded = {path.stem: path for path in sorted(folder.glob("*.wav"))}
        for name, path in recorded.items():
            yield utterance(name, path, texts[name], None) if name in texts else finding(NO_TRANSCRIPT, str(path))
        findings[NO_AUDIO] = [f"{folder}/{name}.wav" for name in texts if name not in recorded]
        yield from finding_rows(findings)


CORPUS = ShardedCorpus(name="harbour_radio", splits=PUBLISHED, list_shards=list_splits, validation_split="dev")

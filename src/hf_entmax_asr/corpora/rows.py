"""A row of a corpus: one utterance, or what is the matter with what should have been one.

Columns: `id` (string), `audio` (`{"path", "bytes"}`, undecoded: give it to `hf_entmax_asr.audio.read_audio`), `text`,
`speaker` (string or None), `duration` (seconds).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_entmax_asr.audio import audio_duration, read_audio
from hf_entmax_asr.corpora.report import BAD_AUDIO, EMPTY_TEXT, Findings

if TYPE_CHECKING:
    from datasets import Dataset, Features

SAMPLING_RATE = 16_000  # that an Audio column announces; files keep their own until they are read


def utterance(
    name: str, path: str | os.PathLike, text: str, speaker: str | None, content: bytes | None = None
) -> dict[str, Any]:
    """The row of an utterance, or of what is wrong with its text or audio.

    `content` is the file itself where `path` leads into an archive; it is then kept in the row. Otherwise the row has
    the path alone, and the audio is read when it is needed. A file that the system cannot read (OSError) says nothing
    about the corpus: the error ends the reading, and nothing is kept of it.
    """
    if not text:
        return finding(EMPTY_TEXT, f"{name} ({path})")
    try:
        duration = audio_duration(Path(path) if content is None else content)
    except ValueError as error:
        return finding(BAD_AUDIO, f"{path} ({error})")
    audio = {"path": os.fspath(path), "bytes": content}
    found = {"finding": None, "where": None}
    return {"id": name, "audio": audio, "text": text, "speaker": speaker, "duration": duration, **found}


def finding(what: str, where: str) -> dict[str, Any]:
    """The row of something that is not an utterance; `what` is one of the kinds of report.py."""
    empty = {"id": None, "audio": None, "text": None, "speaker": None, "duration": None}
    return {**empty, "finding": what, "where": where}


def finding_rows(findings: Findings) -> Iterator[dict[str, Any]]:
    """The rows of all that was found on the way to some utterances."""
    for what, places in findings.items():
        yield from (finding(what, where) for where in places)


def row_features(with_findings: bool = False) -> "Features":
    """The columns as they are written, with what is the matter where a row is no utterance."""
    # Audio() cannot encode without torchcodec even with decode=False; a plain struct can, and casts to it.
    from datasets import Features, Value

    columns: dict[str, Any] = {
        "id": Value("string"),
        "audio": {"path": Value("string"), "bytes": Value("binary")},
        "text": Value("string"),
        "speaker": Value("string"),
        "duration": Value("float64"),
    }
    return Features(columns | ({"finding": Value("string"), "where": Value("string")} if with_findings else {}))


def decoded(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The same rows, their audio read: `{"path", "array", "sampling_rate"}`, as pipelines of transformers take it."""
    if "audio" not in batch:
        return batch
    read = [
        {"path": audio["path"], "array": read_audio(audio, SAMPLING_RATE), "sampling_rate": SAMPLING_RATE}
        for audio in batch["audio"]
    ]
    return {**batch, "audio": read}


def with_audio_column(rows: "Dataset") -> "Dataset":
    """The same rows, their `audio` marked as audio that the datasets library must not decode."""
    from datasets import Audio

    return rows.cast_column("audio", Audio(SAMPLING_RATE, decode=False))

"""The list of a folder corpus, `metadata.csv` or `metadata.jsonl`: read whole, or refused with file, line and fix."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from hf_entmax_asr.input_files import InputFileError, check_regular

CSV, JSONL = "metadata.csv", "metadata.jsonl"
NAME_COLUMN = "file_name"
TEXT_COLUMNS = ("text", "transcription", "sentence")  # the first that is there holds the text
_HALF = re.compile("[\ud800-\udfff]")  # of a character: JSON can name one, UTF-8 cannot write it
LONGEST_FIELD = 131_072  # characters; csv's own limit, said here in a message that helps


class MetadataError(ValueError):
    """A list that cannot be read; the message names the file, the line and the fix."""


class Entry(NamedTuple):
    """One line: a file and what is said in it."""

    file_name: str
    text: str
    speaker: str | None


def find_metadata(folder: Path) -> Path | None:
    """The list in a folder, None without one; MetadataError where there are two."""
    found = [folder / name for name in (CSV, JSONL) if os.path.lexists(folder / name)]
    if len(found) > 1:
        raise MetadataError(f"{folder} has both {CSV} and {JSONL}: keep one of them")
    return found[0] if found else None


def read_metadata(file: Path, text_column: str | None = None) -> list[Entry]:
    """The entries of a list, in order.

    Args:
        text_column: the column of the text; by default the first there is of `TEXT_COLUMNS`.

    Raises:
        MetadataError: it is not UTF-8, has a line that is cut, open or too long, more or fewer fields than columns, or
            lacks a column.
    """
    content = _decoded(file)
    records = _csv_records(file, content) if file.name == CSV else _jsonl_records(file, content)
    entries: list[Entry] = []
    text_name = text_column
    for line, record in records:
        if text_name is None:
            text_name = next((name for name in TEXT_COLUMNS if name in record), TEXT_COLUMNS[0])
        missing = [name for name in (NAME_COLUMN, text_name) if name not in record]
        if missing:
            where = "" if file.name == CSV else f", line {line}"
            raise MetadataError(f"{file}{where}: no column {' and no column '.join(missing)}; found {list(record)}")
        values = [record.get(name) for name in (NAME_COLUMN, text_name, "speaker")]
        for name, value in zip((NAME_COLUMN, text_name, "speaker"), values, strict=True):
            if value is not None and not isinstance(value, (str, int)):
                raise MetadataError(f"{file}, line {line}: {name} is {value!r}; it must be text")
            if isinstance(value, str) and _HALF.search(value):
                raise MetadataError(f"{file}, line {line}: {name} is {value!a}, half of a character; it must be text")
            if isinstance(value, str) and ("\n" in value or "\r" in value):
                raise MetadataError(
                    f"{file}, line {line}: the {name} that begins here goes over several lines; is a quotation mark "
                    "left open? Write it on one line"
                )
        name, text, speaker = (str("" if value is None else value).strip() for value in values)
        entries.append(Entry(PurePosixPath(name).as_posix() if name else "", text, speaker or None))
    return entries


def _decoded(file: Path) -> str:
    """The text of a file in UTF-8, with or without a mark at its beginning."""
    try:
        check_regular(file)
    except InputFileError as error:
        raise MetadataError(str(error)) from error
    content = file.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise MetadataError(f"{file} is UTF-16; convert it: iconv -f utf-16 -t utf-8 OLD > NEW")
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise MetadataError(f"{file}, line {line}: there is a zero byte; the file is damaged, or UTF-16 or UTF-32")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise MetadataError(
            f"{file}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; convert the file, for example: "
            "iconv -f cp1252 -t utf-8 OLD > NEW"
        ) from None


def _csv_records(file: Path, content: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: field}) of each row; empty lines are passed over."""
    for number, line in enumerate(content.split("\n"), 1):
        if len(line) > LONGEST_FIELD:
            raise MetadataError(f"{file}, line {number}: it has {len(line):,} characters; no transcript has so many")
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        columns = next(reader, [])
        if len(set(columns)) < len(columns):
            raise MetadataError(f"{file}, line 1: a column is there twice: {columns}")
        if not columns or NAME_COLUMN not in columns:
            yield 1, dict.fromkeys(columns, "")
            return
        begins = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(columns):
                raise MetadataError(
                    f"{file}, line {begins}: {len(fields)} fields under {len(columns)} columns: "
                    f"{','.join(fields)[:80]!r}. A text with a comma in it stands in quotation marks"
                )
            if fields:
                yield begins, dict(zip(columns, fields, strict=True))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise MetadataError(
            f"{file}, line {reader.line_num}: {error}; is a quotation mark left open? Within a quoted field each "
            "is doubled"
        ) from error


def _jsonl_records(file: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of each line; empty lines are passed over."""
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MetadataError(f"{file}, line {number}: no JSON: {str(error)[:100]}") from error
        if not isinstance(record, dict):
            raise MetadataError(f"{file}, line {number}: a {type(record).__name__}, not an object with {NAME_COLUMN}")
        yield number, record

"""Reads model.bin, the one file CTranslate2 keeps a model's weights in, without CTranslate2.

Little-endian. A str is a u16 length, which counts a final NUL, and the bytes:

    u32 version (6) | str specification | u32 revision
    u32 n, then n variables: str name | u8 rank | u32 x rank shape | u8 type | u32 bytes | data
    u32 n, then n aliases:   str name | str target
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VERSION = 6
TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


class ModelFileError(ValueError):
    """The file is not what it should be; the message says where."""


@dataclass(frozen=True)
class Ctranslate2Model:
    """What a model.bin holds.

    Attributes:
        specification: the kind of model, such as WhisperSpec.
        revision: of the specification.
        variables: by name; read-only views of the file's bytes, scalars of rank 0.
        aliases: names of variables that are stored under another name.
    """

    specification: str
    revision: int
    variables: dict[str, np.ndarray]
    aliases: dict[str, str]


class _Cursor:
    """Reads on through the bytes and refuses to read past their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, length: int, what: str) -> memoryview:
        if self.at + length > len(self.data):
            raise ModelFileError(
                f"the file is cut short: {what} takes {length:,} bytes from byte {self.at:,}, but the file ends at "
                f"{len(self.data):,}; fetch it again"
            )
        self.at += length
        return memoryview(self.data)[self.at - length : self.at]

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize("<" + form), what))[0])

    def text(self, what: str) -> str:
        raw = bytes(self.take(self.number("H", f"the length of {what}"), what))
        try:
            return raw.removesuffix(b"\0").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{what} before byte {self.at:,} is no text: {raw[:40]!r}; the file is damaged"
            ) from error


def read_model(path: Path) -> Ctranslate2Model:
    """The weights in a model.bin.

    Raises:
        ModelFileError: another version, a type nobody knows, sizes that contradict each other, a file cut short, or
            bytes behind its end.
    """
    return parse_model(path.read_bytes())


def parse_model(data: bytes) -> Ctranslate2Model:
    """What read_model does, from the bytes of the file."""
    cursor = _Cursor(data)
    version = cursor.number("I", "the version")
    if version != VERSION:
        raise ModelFileError(
            f"the file begins with version {version}; only version {VERSION} of CTranslate2's model.bin is read"
        )
    specification = cursor.text("the specification")
    revision = cursor.number("I", "the revision")
    variables = dict(_variable(cursor) for _ in range(cursor.number("I", "the number of variables")))
    aliases = {}
    for _ in range(cursor.number("I", "the number of aliases")):
        name = cursor.text("the name of an alias")
        aliases[name] = cursor.text(f"the target of the alias {name}")
        if aliases[name] not in variables:
            raise ModelFileError(f"the alias {name} means {aliases[name]}, which the file does not hold")
    if cursor.at != len(data):
        raise ModelFileError(f"the file goes on for {len(data) - cursor.at:,} bytes behind its end at {cursor.at:,}")
    return Ctranslate2Model(specification, revision, variables, aliases)


def _variable(cursor: _Cursor) -> tuple[str, np.ndarray]:
    name = cursor.text("the name of a variable")
    shape = tuple(cursor.number("I", f"the shape of {name}") for _ in range(cursor.number("B", f"the rank of {name}")))
    code = cursor.number("B", f"the type of {name}")
    if code not in TYPES:
        raise ModelFileError(f"{name} has type {code}; known are {', '.join(map(str, TYPES))}")
    dtype = np.dtype(TYPES[code])
    length = cursor.number("I", f"the size of {name}")
    expected = dtype.itemsize
    for size in shape:  # in Python's integers, which do not overflow
        expected *= size
    if length != expected:
        raise ModelFileError(
            f"{name} of shape {shape} and type {dtype} takes {expected:,} bytes; the file says {length:,}"
        )
    return name, np.frombuffer(cursor.take(length, name), dtype).reshape(shape)

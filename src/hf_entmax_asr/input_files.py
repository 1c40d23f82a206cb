"""Files that are read: regular ones, in UTF-8 or JSON where they must be; an error names the file and its fault."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_entmax_asr.error_messages import in_one_line

# What transformers may read of a folder of a model; each holds an object.
_SETTINGS = (
    *("config", "generation_config", "processor_config", "preprocessor_config", "tokenizer", "tokenizer_config"),
    *("special_tokens_map", "added_tokens", "vocab", "normalizer", "model.safetensors.index"),
)
_STREAMS = (("dev",), ("proc",))  # where the shell puts what it pipes into a program


class InputFileError(ValueError):
    """A file that cannot be read; the message begins with its name."""


def check_regular(path: Path) -> None:
    """See that a file is there and has an end: a pipe would be waited for, a device never ends.

    What the shell pipes into a program (/dev/stdin, /dev/fd/63) is taken.

    Raises:
        FileNotFoundError: it is not there.
        InputFileError: it is something else.
    """
    if path.is_file() or (path.exists() and path.absolute().parts[1:2] in _STREAMS):
        return
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    raise InputFileError(f"{path} is a {'folder' if path.is_dir() else 'pipe or device'}; it must be a regular file")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputFileError: it is no regular file, not UTF-8, or holds zero bytes.
        OSError: it cannot be read.
    """
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputFileError(f"{path} is not UTF-8, convert it: {error}") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputFileError(f"{path}, line {line}: holds zero bytes, which no text does")
    return text


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputFileError: it is no regular file, not UTF-8 or not JSON.
        OSError: it cannot be read.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path} is not JSON: {in_one_line(error)}") from error


def check_model_folder(folder: Path) -> None:
    """See that all files of a model that its readers may open have the right form.

    Settings must be JSON objects, weights in a regular file; links count as what they lead to.

    Raises:
        InputFileError: one has not.
        OSError: one cannot be read.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and path.stem in _SETTINGS:
            if not isinstance(value := read_json(path), dict):
                raise InputFileError(f"{path} holds a {type(value).__name__}; it must be a JSON object")
        elif path.match("model*.safetensors"):
            check_regular(path)


def tensor_types(path: Path) -> dict[str, str]:
    """The type of each tensor in a safetensors file, as "F32", by its header alone.

    Raises:
        InputFileError: it is no regular file, or its header is damaged or does not fit its length.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise InputFileError(f"{path} cannot be read: {in_one_line(error)}") from error


def check_fractions(path: Path) -> None:
    """InputFileError where a safetensors file of weights holds whole numbers."""
    for name, kind in tensor_types(path).items():
        if not kind.startswith(("F", "BF")):
            raise InputFileError(f"{path}: {name} holds numbers of type {kind}; weights are fractions")

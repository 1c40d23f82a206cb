"""The worked examples of docs/extending.md: changes of the package as diffs, and code that uses what they add."""

import os
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

from support.apart import run_apart
from support.markdown_pages import ROOT, Page

SOURCE = ROOT / "src"


@dataclass(frozen=True)
class WorkedExample:
    """A named example of a page: diffs against the repository, then Python that needs them."""

    page: Page
    name: str

    def _code(self, language: str) -> list[str]:
        blocks = self.page.marked("example")
        return [block.code for block in blocks if (block.argument, block.language) == (self.name, language)]

    @property
    def diff(self) -> str:
        return "".join(self._code("diff"))

    @property
    def program(self) -> str:
        return "\n".join(self._code("python"))

    def apply(self, folder: Path) -> Path:
        """Copy src/ into `folder` and change it as the diffs say; returns the changed copy.

        Raises:
            AssertionError: a diff does not fit the sources any more.
        """
        copy = shutil.copytree(SOURCE, folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        apart = {"GIT_CEILING_DIRECTORIES": str(folder.parent)}  # from a repository that the folder may lie in
        done = _run(["git", "apply", "--recount", "--whitespace=nowarn", "-"], folder, apart, self.diff)
        assert done.returncode == 0, f"{self.page.name}, example {self.name!r}, does not fit src/: {done.stderr}"
        return copy

    def run(self, source: Path, folder: Path) -> str:
        """What the Python blocks print, run in a process of their own on the changed copy.

        Raises:
            AssertionError: they fail.
        """
        first = f"""\
            import warnings
            warnings.simplefilter("error")
            import hf_entmax_asr
            assert hf_entmax_asr.__file__.startswith({str(source)!r}), hf_entmax_asr.__file__
            """
        (folder / "example.py").write_text(textwrap.dedent(first) + self.program, encoding="utf-8")
        done = run_apart(folder / "example.py", folder=folder, search=source)
        assert done.returncode == 0, f"{self.page.name}, example {self.name!r}: {done.stderr}"
        return done.stdout


def _run(
    command: list[str], folder: Path, environment: dict[str, str], given: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        cwd=folder,
        env=os.environ | environment,
        input=given,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def changed_lines(source: Path) -> dict[str, int | None]:
    """By file that differs from src/: how many lines were added to it; None for a file that src/ lacks."""
    counts: dict[str, int | None] = {}
    for path in sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        original = SOURCE / path.relative_to(source)
        name = path.relative_to(source).as_posix()
        if not original.exists():
            counts[name] = None
        elif (new := path.read_bytes()) != (old := original.read_bytes()):
            counts[name] = len(new.splitlines()) - len(old.splitlines())
    return counts


def worked_examples(page: Page) -> list[WorkedExample]:
    names = dict.fromkeys(block.argument for block in page.marked("example"))
    return [WorkedExample(page, name) for name in names]

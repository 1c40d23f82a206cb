"""What programs print for --help, each started as a program is, but with the slow imports made once.

As a program it reads names of programs, one a line, and writes what they print as JSON.
"""

import contextlib
import json
import multiprocessing
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from support.markdown_pages import ROOT


def usages(programs: Iterable[str]) -> dict[str, str]:
    """By program (a file of the repository, or a module for -m), its usage.

    Raises:
        AssertionError: one of them fails; the message has what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "support.usages"],
        check=False,
        cwd=Path(__file__).parent.parent,
        input="\n".join(programs),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def start(program: str) -> None:
    """Run a program in this process, as Python starts it: a file of the repository, or a module for -m."""
    if program.endswith(".py"):
        sys.path[0] = str((ROOT / program).parent)
        runpy.run_path(str(ROOT / program), run_name="__main__")
    else:
        sys.path[0] = str(ROOT)
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _print_usage(program: str, output: Path) -> None:
    with output.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        sys.argv = [program, "--help"]
        start(program)


def _main() -> int:
    import datasets  # noqa: F401
    import transformers  # noqa: F401

    import hf_entmax_asr.training  # noqa: F401

    fork, results, failures = multiprocessing.get_context("fork"), {}, []
    with tempfile.TemporaryDirectory() as folder:
        for program in sys.stdin.read().split("\n"):
            output = Path(folder) / "usage.txt"
            process = fork.Process(target=_print_usage, args=(program, output))
            process.start()
            process.join()
            if process.exitcode:
                failures.append(program)
            results[program] = output.read_text(encoding="utf-8")
    print(json.dumps(results))
    if failures:
        print(f"--help fails: {', '.join(failures)}", file=sys.stderr)
    return len(failures)


if __name__ == "__main__":
    sys.exit(_main())

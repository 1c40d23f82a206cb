"""Programs in a process of their own, which has torch and transformers but not this package.

What starts Python anew imports these two for ten seconds; here one process does, and each program is a fork of it.
"""

import atexit
import functools
import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
import traceback
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

_TIME_LIMIT_S = 300
_SLOW_IMPORTS = [
    "soundfile",
    "torch",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.pipelines",
]
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Ended:
    """A program that has ended."""

    returncode: int
    stdout: str
    stderr: str


def run_apart(program: str | Path, *arguments: object, folder: Path, search: Path | None = None) -> Ended:
    """Run Python code, or a file of it, in `folder`.

    Args:
        search: where imports look first; by default the folder of the file.
    """
    _start()
    out, err = folder / f"{os.urandom(4).hex()}.out", folder / f"{os.urandom(4).hex()}.err"
    words = [str(argument) for argument in arguments]
    process = _CONTEXT.Process(target=_run, args=(program, words, folder, search, out, err), daemon=True)
    process.start()
    process.join(_TIME_LIMIT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
    ended = Ended(process.exitcode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))
    out.unlink()
    err.unlink()
    return ended


@functools.cache
def _start() -> None:
    """The process that is forked; it never writes into the user's cache."""
    home = tempfile.mkdtemp(prefix="apart-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    _CONTEXT.set_forkserver_preload(_SLOW_IMPORTS)
    with mock.patch.dict(os.environ, {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()


def _run(
    program: str | Path, words: list[str], folder: Path, search: Path | None, out: Path, err: Path
) -> None:  # in the fork
    assert not any(name.split(".")[0] == "hf_entmax_asr" for name in sys.modules)
    # Code of checkpoints that the tests' own process has loaded.
    sys.path[:] = [place for place in sys.path if not (Path(place) / "transformers_modules").exists()]
    os.chdir(folder)
    for stream, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = [str(program) if isinstance(program, Path) else "-c", *words]
    if search is not None or isinstance(program, Path):
        sys.path.insert(0, str(search or program.parent))
    try:
        if isinstance(program, Path):
            runpy.run_path(str(program), run_name="__main__")
        else:
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

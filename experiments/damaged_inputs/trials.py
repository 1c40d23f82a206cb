"""A program run on what may be damaged, in a process forked for it, and what became of it."""

import hashlib
import importlib.util
import os
import resource
import signal
import stat
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

SCRIPTS = Path(__file__).parents[2] / "scripts"
MEMORY_BYTES = 4 << 30  # beyond what is mapped before the fork
_POLL_S = 0.01
_LONGEST_LINE = 2500  # of an error

ACCEPTED, REFUSED = "accepted", "refused well"
SILENT, UNCLEAR, HALF = "accepted though broken", "refused unclearly", "half-written"
TRACEBACK, KILLED, HANG = "traceback", "killed by a signal", "hang"
OUTCOMES = (ACCEPTED, REFUSED, SILENT, UNCLEAR, HALF, TRACEBACK, KILLED, HANG)
BAD = OUTCOMES[2:]


class Ran(NamedTuple):
    """How a program ended: exit status (negative: the signal that ended it; None: time was up) and what it printed."""

    status: int | None
    out: str
    err: str
    seconds: float


def load_program(name: str) -> ModuleType:
    """A program of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(program: ModuleType, words: list[str], folder: Path, seconds: float) -> Ran:
    """Call the program's main in a forked child with limited memory, for at most so long; `folder` takes its output."""
    out, err = folder / "stdout", folder / "stderr"
    sys.stdout.flush()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(program, words, out, err)
    status: int | None = None
    while time.monotonic() - began < seconds:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(_POLL_S)
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    printed, said = (path.read_bytes().decode(errors="replace") for path in (out, err))
    return Ran(status, printed, said, time.monotonic() - began)


def _become(program: ModuleType, words: list[str], out: Path, err: Path) -> None:
    """In the child: run and end, whatever happens."""
    status = 70
    try:
        os.setpgid(0, 0)
        for path, stream in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))  # a test has others
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = [f"{program.__name__.removeprefix('program_')}.py", *words]
        status = program.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def snapshot(*folders: Path) -> dict[str, Any]:
    """What lies in the folders: kind, and content of regular files.

    Locks, which stay empty, do not count, nor what the start of a training writes as a whole before it reads the data.
    """
    found: dict[str, Any] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            mode = path.lstat().st_mode
            if path.name == ".lock" or (folder.name == "made" and _is_of_a_start(path.relative_to(folder).parts)):
                continue
            content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else None
            found[str(path)] = (stat.S_IFMT(mode), content)
    return found


def _is_of_a_start(parts: tuple[str, ...]) -> bool:
    return parts in (("run",), ("run", "recipe.yaml")) or parts[:2] == ("run", "processor")


def judge(ran: Ran, names: tuple[str, ...], broken: bool, untouched: bool) -> str:
    """The outcome: of an input that is surely `broken`, or may still be good.

    An error is clear where the last line of the error stream says one of `names` and there is no half of an output.
    """
    lines = [line for line in ran.err.splitlines() if line.strip()]
    if ran.status is None:
        return HANG
    if ran.status < 0:
        return KILLED
    if "Traceback (most recent call last)" in ran.err:
        return TRACEBACK
    if ran.status == 0:
        return SILENT if broken else ACCEPTED
    if not lines or len(lines[-1]) > _LONGEST_LINE or not any(name in lines[-1] for name in names):
        return UNCLEAR
    return REFUSED if untouched else HALF

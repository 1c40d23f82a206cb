"""Compiles csrc/*.cpp on first use, with the machine's own compiler, and keeps the result in the user's cache.

A library's file name holds a hash of its sources, the compiler's version, the flags and the processor's features, so a
stale one is never loaded, and a hash of its own content, so a damaged one is not either. It is written under a
temporary name and then renamed: processes that start at once may build it twice, and neither sees half a file. What is
loaded is run, so the folder and the file must belong to the user, and nobody else may write to them.
"""

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
SECONDS_TO_COMPILE = 300
FLAGS = ["-std=c++17", "-O3", "-shared", "-fPIC", "-fno-exceptions", "-fno-rtti", "-w", "-ffp-contract=fast"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"]  # not -ffast-math: NaN and ∞ must be seen
# What torch found the processor able to do. Where it knows none of these, the compiler's baseline.
AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mpopcnt"]
FEATURES = {"AVX2": AVX2, "AVX512": [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]}


_ONE_AT_A_TIME = threading.Lock()


class BuildError(RuntimeError):
    """Why there is no native library; the message is one line for the user."""


def load(name: str) -> ctypes.CDLL:
    """The library made from csrc/<name>.cpp, compiled if the cache does not hold it.

    Raises:
        BuildError: no compiler, no place for the cache, a failed build, or a library that does not load.
    """
    command = [*find_compiler(), *FLAGS, *FEATURES.get(torch.backends.cpu.get_cpu_capability(), [])]
    stem = f"{name}-{_key(name, command)}"
    folder = trusted_folder()
    for attempt in range(2):
        library = _find(folder, stem)
        if library is None:
            _clear_left_overs(folder)
            library = _compile(name, command, folder, stem)
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            if attempt:
                raise BuildError(f"{library} does not load: {error}") from error
            _remove(library)  # made for another system: once anew
    raise AssertionError


def _find(folder: Path, stem: str) -> Path | None:
    """The library of that name whose content is what its name says. Whatever else has the name is removed."""
    for path in sorted(folder.glob(f"{stem}.*.so")):
        if path.is_file() and _distrust(path) is None and path.name == f"{stem}.{_digest(path)}.so":
            return path
        _remove(path)
    return None


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:20]
    except OSError:
        return "unreadable"


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"{path} is damaged and cannot be removed: {error}") from error


def _clear_left_overs(folder: Path) -> None:
    """Temporary folders of builds that were killed; a younger one may be somebody's."""
    for path in folder.glob(".*-*"):
        try:
            if path.is_dir() and time.time() - path.lstat().st_mtime > 2 * SECONDS_TO_COMPILE:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # another process was faster


def find_compiler() -> list[str]:
    """The C++ compiler as the start of a command: $CXX if set, else the first of g++, clang++, c++ on PATH."""
    if sys.platform == "win32":
        raise BuildError("Windows has no native kernels")
    chosen = shlex.split(os.environ.get("CXX", ""))
    for candidate in [chosen] if chosen else [["g++"], ["clang++"], ["c++"]]:
        path = shutil.which(candidate[0])
        if path is not None:
            return [path, *candidate[1:]]
    raise BuildError(f"no C++ compiler on PATH (looked for {chosen[0] if chosen else 'g++, clang++, c++'})")


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/hf_entmax_asr/kernels, made if need be, readable by its owner alone."""
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path("~/.cache").expanduser()) / "hf_entmax_asr" / "kernels"
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise BuildError(f"no cache at {folder} ({error}); XDG_CACHE_HOME may name another place") from error
    return folder


def trusted_folder() -> Path:
    """`cache_folder()` if it and the one above are the user's own, else a private one of this process, said once."""
    folder = cache_folder()
    problem = next((found for found in map(_distrust, (folder.parent, folder)) if found is not None), None)
    if problem is None and not os.access(folder, os.W_OK):
        problem = f"{folder} cannot be written to"
    if problem is None:
        return folder
    with _ONE_AT_A_TIME:
        return _private_folder(problem)


@functools.cache
def _private_folder(problem: str) -> Path:
    place = Path(tempfile.mkdtemp(prefix="hf_entmax_asr-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    warnings.warn(
        f"The native kernels of hf_entmax_asr are built anew for this process alone: {problem}. XDG_CACHE_HOME may "
        "name a place of your own.",
        RuntimeWarning,
        stacklevel=2,
    )
    return place


def _distrust(path: Path) -> str | None:
    """Why what stands at `path` must not be run: it is a link, another user's, or others may write to it."""
    try:
        state = path.lstat()
    except OSError as error:
        return f"{path} cannot be looked at ({error})"
    if stat.S_ISLNK(state.st_mode):
        return f"{path} is a link"
    if hasattr(os, "geteuid") and state.st_uid != os.geteuid():
        return f"{path} belongs to another user"
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to {path} (chmod go-w {path})"
    return None


def _key(name: str, command: list[str]) -> str:
    version = _run([*command[:1], "--version"])[1].splitlines()[:1]
    parts = [repr(version), repr(command), platform.machine()]
    for source in [SOURCES / f"{name}.cpp", *sorted(SOURCES.glob("*.h"))]:
        parts.append(source.read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _compile(name: str, command: list[str], folder: Path, stem: str) -> Path:
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as place:
            made = Path(place) / "made.so"
            code, _, errors = _run([*command, str(SOURCES / f"{name}.cpp"), "-o", str(made), "-lm", "-pthread"])
            if code or not made.is_file():
                lines = errors.strip().splitlines() or ["no message"]
                line = next((line for line in lines if "error" in line), lines[0])
                raise BuildError(f"{command[0]} could not compile {name}.cpp: {line}")
            made.chmod(0o700)  # whatever the umask
            with made.open("rb") as file:
                os.fsync(file.fileno())
            target = folder / f"{stem}.{_digest(made)}.so"
            os.replace(made, target)
            return target
    except OSError as error:
        raise BuildError(f"{folder} cannot be written to ({error}); XDG_CACHE_HOME may name another place") from error


def _run(command: list[str]) -> tuple[int, str, str]:
    """Exit status and what was written. At the time limit the programs that the command started end with it: one that
    lives on would hold our ends of its pipes."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    try:
        out, errors = process.communicate(timeout=SECONDS_TO_COMPILE)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise BuildError(f"{command[0]} did not end within {SECONDS_TO_COMPILE} s") from error
    return process.returncode, out, errors

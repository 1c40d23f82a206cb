"""Compiles csrc/*.cpp on first use, with the machine's own compiler, and keeps the result in the user's cache.

A library's file name holds a hash of its sources, the compiler's version, the flags and the processor's features, so a
stale one is never loaded. It is written under a temporary name and then renamed: processes that start at once may build
it twice, and neither sees half a file.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
SECONDS_TO_COMPILE = 300
FLAGS = ["-std=c++17", "-O3", "-shared", "-fPIC", "-fno-exceptions", "-fno-rtti", "-w", "-ffp-contract=fast"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"]  # not -ffast-math: NaN and ∞ must be seen
# What torch found the processor able to do. Where it knows none of these, the compiler's baseline.
AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mpopcnt"]
FEATURES = {"AVX2": AVX2, "AVX512": [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]}


class BuildError(RuntimeError):
    """Why there is no native library; the message is one line for the user."""


def load(name: str) -> ctypes.CDLL:
    """The library made from csrc/<name>.cpp, compiled if the cache does not hold it.

    Raises:
        BuildError: no compiler, no place for the cache, a failed build, or a library that does not load.
    """
    command = [*find_compiler(), *FLAGS, *FEATURES.get(torch.backends.cpu.get_cpu_capability(), [])]
    target = cache_folder() / f"{name}-{_key(name, command)}.so"
    for attempt in range(2):
        if not target.exists():
            _compile(name, command, target)
        try:
            return ctypes.CDLL(str(target))
        except OSError as error:
            if attempt:
                raise BuildError(f"{target} does not load: {error}") from error
            target.unlink(missing_ok=True)  # damaged on disk: make it anew
    raise AssertionError


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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise BuildError(f"no cache at {folder} ({error}); XDG_CACHE_HOME may name another place") from error
    return folder


def _key(name: str, command: list[str]) -> str:
    version = _run([*command[:1], "--version"]).stdout.splitlines()[:1]
    parts = [repr(version), repr(command), platform.machine()]
    for source in [SOURCES / f"{name}.cpp", *sorted(SOURCES.glob("*.h"))]:
        parts.append(source.read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _compile(name: str, command: list[str], target: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as folder:
            made = Path(folder) / "made.so"
            result = _run([*command, str(SOURCES / f"{name}.cpp"), "-o", str(made), "-lm", "-pthread"])
            if result.returncode or not made.exists():
                lines = result.stderr.strip().splitlines() or ["no message"]
                line = next((line for line in lines if "error" in line), lines[0])
                raise BuildError(f"{command[0]} could not compile {name}.cpp: {line}")
            os.replace(made, target)
    except OSError as error:
        raise BuildError(f"{target} cannot be written ({error}); XDG_CACHE_HOME may name another place") from error


def _run(command: list[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=SECONDS_TO_COMPILE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error

"""The native CPU libraries: loaded, or built at the first call, and called with the threads that torch has."""

import ctypes
import functools
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_entmax_asr.kernels import build
from hf_entmax_asr.kernels.modes import VARIABLE

LIBRARIES = ("alignment", "attention", "attention_backward", "entmax", "reading", "soft_attention")


class _State:
    """What holds for this process."""

    libraries: ClassVar[dict[str, ctypes.CDLL]] = {}
    failure: str | None = None  # why there are no libraries
    forked = False


@torch.compiler.assume_constant_result
def cpu_available() -> bool:
    """Whether the native CPU libraries are there; builds them at the first call and says once if that fails."""
    if len(_State.libraries) < len(LIBRARIES) and _State.failure is None:
        _load()
    return _State.failure is None


def _load() -> None:
    try:
        with ThreadPoolExecutor() as pool:  # the first time, this is what compiles
            _State.libraries.update(zip(LIBRARIES, pool.map(build.load, LIBRARIES), strict=True))
    except build.BuildError as error:
        _State.failure = str(error)
        warnings.warn(
            f"The native CPU kernels of hf_entmax_asr are not in use: {error}. The eager form computes the same, "
            f"slower. {VARIABLE}=eager silences this.",
            RuntimeWarning,
            stacklevel=2,
        )


def call(library: str, function: str, *arguments: Any) -> None:
    """Calls a C function with `arguments` and, behind them, the number of threads and how to start them."""
    code = getattr(_State.libraries[library], function)(*arguments, torch.get_num_threads(), _launcher())
    if code:
        raise MemoryError(f"{function} found no memory for its working space.")


def needs_an_operator(*tensors: Tensor | None) -> bool:
    """Whether a call must go through torch's dispatcher: a graph is being made, a transform or a mode of torch wants to
    see it, or a tensor is of a kind that has no memory of its own."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors if t is not None)
    )


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _launcher() -> ctypes.c_void_p:
    """`GOMP_parallel` of the OpenMP runtime that torch has loaded; null where there is none, and in a forked child,
    in which that runtime would wait for threads that did not survive the fork."""
    return ctypes.c_void_p(None) if _State.forked else _openmp()[0]


@functools.cache
def _openmp() -> tuple[ctypes.c_void_p, str | None]:
    """`GOMP_parallel` as torch sees it, and the file that it is in. Others may be loaded too (sentencepiece brings its
    own), but threads of two runtimes that wait for work take each other's time."""
    mapped = _mapped_files()
    for path in {path for _, _, path in mapped if Path(path).name.startswith("libtorch_cpu.")}:
        try:  # a symbol is looked up in a library and in what it depends on
            function = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
        except (OSError, AttributeError):
            continue
        address = ctypes.cast(function, ctypes.c_void_p)
        place = address.value or 0
        return address, next((path for first, last, path in mapped if first <= place < last), path)
    return ctypes.c_void_p(None), None


def _mapped_files() -> list[tuple[int, int, str]]:
    """(first address, last, path) of the files mapped into this process; none where there is no /proc."""
    maps = Path("/proc/self/maps")
    if not hasattr(os, "RTLD_NOLOAD") or not maps.exists():
        return []
    fields = [line.split(maxsplit=5) for line in maps.read_text().splitlines() if "/" in line]
    return [(*(int(address, 16) for address in field[0].split("-")), field[-1]) for field in fields]  # type: ignore[misc]


def _after_fork() -> None:
    _State.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def cpu_status() -> list[str]:
    """Whether the libraries are in use and what they run with, or why not; builds them if that has not happened yet."""
    if not cpu_available():
        return [f"CPU: eager, because {_State.failure}"]
    capability = torch.backends.cpu.get_cpu_capability()
    features = capability if capability in build.FEATURES else f"baseline instructions (torch reports {capability})"
    runtime = _openmp()[1]
    threads = "threads of its own, one set a call" if _State.forked or runtime is None else runtime
    return [
        f"CPU: native, {features}, from {build.trusted_folder()}",
        f"threads: {torch.get_num_threads()} (torch.set_num_threads), run by {threads}",
    ]

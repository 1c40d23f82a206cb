"""Which form of the operators runs: the switch, what the machine can do, and why."""

import ctypes
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from hf_entmax_asr.kernels import build

VARIABLE = "HF_ENTMAX_ASR_KERNELS"
MODES = ("auto", "eager", "cpu", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

LIBRARIES = ("alignment", "attention", "attention_backward", "entmax", "reading", "soft_attention")


def _checked(mode: str, where: str) -> str:
    if mode not in MODES:
        raise ValueError(f"{where} = {mode!r} is not known. Use one of {', '.join(MODES)}.")
    return mode


class _State:
    """What holds for this process."""

    mode = _checked(os.environ.get(VARIABLE, "auto").strip().lower() or "auto", VARIABLE)
    libraries: ClassVar[dict[str, ctypes.CDLL]] = {}
    failure: str | None = None  # why there are no CPU libraries
    forked = False


@contextmanager
def use(mode: str) -> Iterator[None]:
    """Inside `with use(mode)` the whole process runs the named form: "auto", "eager", "cpu" or "triton".

    "auto" takes the native form for each device that has one; "cpu" and "triton" allow that one alone, and "eager"
    none. What a mode does not cover runs in the eager form. The environment variable HF_ENTMAX_ASR_KERNELS sets the
    mode of a process.
    """
    before, _State.mode = _State.mode, _checked(mode, "mode")
    try:
        yield
    finally:
        _State.mode = before


def runs_on_cpu(tensor: Tensor) -> bool:
    """Whether the native CPU form takes `tensor`: on the CPU, in float32 or half precision, allowed and available.

    A graph that is being exported gets the eager form, which consists of standard operators.
    """
    return (
        tensor.device.type == "cpu"
        and tensor.dtype in DTYPES
        and _State.mode in ("auto", "cpu")
        and not torch.compiler.is_exporting()
        and cpu_available()
    )


def runs_on_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels take `tensor`: on an NVIDIA GPU, in float32 or half precision, allowed and available.

    With TRITON_INTERPRET=1 mode "triton" also takes tensors on the CPU, slowly: Triton's interpreter runs the kernels.
    """
    if tensor.dtype not in DTYPES or _State.mode not in ("auto", "triton") or torch.compiler.is_exporting():
        return False
    if tensor.device.type == "cuda":
        return triton_problem() is None
    return tensor.device.type == "cpu" and _State.mode == "triton" and triton_problem() is None and _interprets()


@torch.compiler.assume_constant_result
@functools.cache
def triton_problem() -> str | None:
    """Why Triton cannot be used; None where it can. On a GPU, tries a small kernel at the first call and warns if that
    fails: Triton may miss a compiler, or not know the GPU."""
    if torch.version.hip is not None:
        return "this build of torch is for AMD GPUs, where the kernels are untested"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if not torch.cuda.is_available() or _interprets():
        return None
    try:
        _try_triton()
    except Exception as error:  # whatever it is, the eager form still works
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"The Triton kernels of hf_entmax_asr are not in use: {reason}. The eager form computes the same, slower. "
            f"{VARIABLE}=eager silences this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return reason
    return None


def _try_triton() -> None:
    from hf_entmax_asr.kernels.triton_entmax import entmax_forward

    entmax_forward(torch.zeros(1, 2, device="cuda"), torch.full((), 1.5, device="cuda"))


@torch.compiler.assume_constant_result
def _interprets() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


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


def call(library: str, function: str, *arguments) -> None:
    """Calls a C function with `arguments` and, behind them, the number of threads and how to start them."""
    code = getattr(_State.libraries[library], function)(*arguments, torch.get_num_threads(), _launcher())
    if code:
        raise MemoryError(f"{function} found no memory for its working space.")


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _launcher() -> ctypes.c_void_p:
    """`GOMP_parallel` of the OpenMP runtime that torch has loaded; null where there is none, and in a forked child,
    in which that runtime would wait for threads that did not survive the fork."""
    return ctypes.c_void_p(None) if _State.forked else _openmp()[0]


@functools.cache
def _openmp() -> tuple[ctypes.c_void_p, str | None]:
    for path in _openmp_candidates():
        try:
            function = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p), path
    return ctypes.c_void_p(None), None


def _openmp_candidates() -> list[str]:
    """Files mapped into this process that look like an OpenMP runtime (none where there is no /proc)."""
    maps = Path("/proc/self/maps")
    if not hasattr(os, "RTLD_NOLOAD") or not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if line.count("/")}
    return sorted(path for path in paths if any(name in Path(path).name for name in ("gomp", "iomp5", "libomp")))


def _after_fork() -> None:
    _State.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def status() -> str:
    """What is in use and why, a few lines of text. Builds the CPU libraries if that has not happened yet."""
    lines = [f"mode: {_State.mode} (with use(...), or {VARIABLE} = {' | '.join(MODES)})"]
    if _State.mode not in ("auto", "cpu"):
        lines.append("CPU: eager, because the mode says so")
    elif cpu_available():
        capability = torch.backends.cpu.get_cpu_capability()
        features = capability if capability in build.FEATURES else f"baseline instructions (torch reports {capability})"
        runtime = _openmp()[1]
        threads = "threads of its own, one set a call" if _State.forked or runtime is None else runtime
        lines.append(f"CPU: native, {features}, from {build.cache_folder()}")
        lines.append(f"threads: {torch.get_num_threads()} (torch.set_num_threads), run by {threads}")
    else:
        lines.append(f"CPU: eager, because {_State.failure}")
    lines.append(f"GPU: {_gpu_status()}")
    lines.append("eager always: float64, and graphs for torch.export")
    return "\n".join(lines)


def _gpu_status() -> str:
    problem = triton_problem()
    if _State.mode not in ("auto", "triton"):
        return "eager, because the mode says so"
    if problem is None and _State.mode == "triton" and _interprets():
        return "Triton, interpreted on the CPU (TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return "none that torch can use"
    name = torch.cuda.get_device_name()
    return f"Triton on {name}" if problem is None else f"eager on {name}, because {problem}"

"""Which form of the operators runs, native, Triton or eager: the user's choice, what the machine can do, and why."""

import functools
import importlib.util
import warnings

import torch
from torch import Tensor

from hf_entmax_asr.kernels.libraries import cpu_available, cpu_status
from hf_entmax_asr.kernels.modes import DTYPES, MODES, VARIABLE, current_mode


def runs_on_cpu(*tensors: Tensor, beside: tuple[Tensor | None, ...] = ()) -> bool:
    """Whether the native CPU form takes `tensors`: in float32 or half precision, allowed, available, and all on the
    CPU, as what is read `beside` them must be.

    A graph that is being exported gets the eager form, which consists of standard operators.
    """
    return (
        current_mode() in ("auto", "cpu")
        and _are_on_cpu(tensors, beside)
        and not torch.compiler.is_exporting()
        and cpu_available()
    )


def runs_on_triton(*tensors: Tensor, beside: tuple[Tensor | None, ...] = ()) -> bool:
    """Whether the Triton kernels take `tensors`: in float32 or half precision, allowed, available, and all on one
    NVIDIA GPU, as what is read `beside` them must be.

    With TRITON_INTERPRET=1 mode "triton" also takes tensors on the CPU, slowly: Triton's interpreter runs the kernels.
    """
    if current_mode() not in ("auto", "triton") or torch.compiler.is_exporting():
        return False
    if _are_on_one_gpu(tensors, beside):
        return triton_problem() is None
    return current_mode() == "triton" and _are_on_cpu(tensors, beside) and triton_problem() is None and _interprets()


def _are_on_cpu(tensors: tuple[Tensor, ...], beside: tuple[Tensor | None, ...]) -> bool:
    """Whether all are on the CPU, and those that are computed with have a dtype for it."""
    return all(t.is_cpu and t.dtype in DTYPES for t in tensors) and all(t is None or t.is_cpu for t in beside)


def _are_on_one_gpu(tensors: tuple[Tensor, ...], beside: tuple[Tensor | None, ...]) -> bool:
    device = tensors[0].device
    return (
        device.type == "cuda"
        and all(t.dtype in DTYPES and t.device == device for t in tensors)
        and all(t is None or t.device == device for t in beside)
    )


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

    entmax_forward(torch.zeros(1, 2, device="cuda"), torch.full((), 1.5, device="cuda"), None, torch.float32)


@torch.compiler.assume_constant_result
def _interprets() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def status() -> str:
    """What is in use and why, a few lines of text. Builds the CPU libraries if that has not happened yet."""
    lines = [f"mode: {current_mode()} (with use(...), or {VARIABLE} = {' | '.join(MODES)})"]
    lines += cpu_status() if current_mode() in ("auto", "cpu") else ["CPU: eager, because the mode says so"]
    lines.append(f"GPU: {_gpu_status()}")
    lines.append("eager always: float64, and graphs for torch.export")
    return "\n".join(lines)


def _gpu_status() -> str:
    problem = triton_problem()
    if current_mode() not in ("auto", "triton"):
        return "eager, because the mode says so"
    if problem is None and current_mode() == "triton" and _interprets():
        return "Triton, interpreted on the CPU (TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return "none that torch can use"
    name = torch.cuda.get_device_name()
    return f"Triton on {name}" if problem is None else f"eager on {name}, because {problem}"

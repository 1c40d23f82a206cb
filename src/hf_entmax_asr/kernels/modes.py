"""What the user chose, and in which dtypes there is anything to choose from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

VARIABLE = "HF_ENTMAX_ASR_KERNELS"
MODES = ("auto", "eager", "cpu", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that the native and the Triton forms compute


def _checked(mode: str, where: str) -> str:
    if mode not in MODES:
        raise ValueError(f"{where} = {mode!r} is not known. Use one of {', '.join(MODES)}.")
    return mode


class _State:
    """What holds for this process."""

    mode = os.environ.get(VARIABLE, "auto").strip().lower() or "auto"


def current_mode() -> str:
    """The mode that holds now, one of MODES.

    Raises:
        ValueError: the environment variable names none. (Not where this is imported: a program would end with a
            traceback before it could say so.)
    """
    return _checked(_State.mode, VARIABLE)


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

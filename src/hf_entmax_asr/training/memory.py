"""Keeping freed memory in the process instead of returning it to the system after every step."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
_MEBIBYTE = 2**20


def keep_freed_memory(mebibytes: int = 1024) -> bool:
    """Tell glibc's malloc to reuse large blocks; returns whether it could be told (False outside Linux with glibc).

    A training step on a CPU allocates and frees the same tensors again and again. By default each large one is mapped
    anew, and the system fills every page of it with zeros on first use: a tenth or more of a step.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, mebibytes), (_M_TRIM_THRESHOLD, mebibytes), (_M_TOP_PAD, 64))
    return all(mallopt(name, size * _MEBIBYTE) == 1 for name, size in settings)

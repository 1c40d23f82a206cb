"""Memory: whether a model fits it, and keeping what is freed in the process from step to step."""

import ctypes
import os
import sys

import torch

from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.modeling_entmax_asr_baselines import recogniser_class
from hf_entmax_asr.training.typed_yaml import RecipeError

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


def check_memory(config: EntmaxAsrConfig) -> None:
    """Refuse a model whose weights alone are more than this machine can hold.

    Raises:
        RecipeError: with their number.
    """
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in recogniser_class(config)(config).parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * weights > memory:
        raise RecipeError(
            f"a model of these sizes has {weights:,} weights of 4 bytes, and this machine has {memory:,} bytes of "
            "memory: make the model section of the recipe smaller"
        )

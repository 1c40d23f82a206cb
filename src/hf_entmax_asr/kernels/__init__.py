"""Fast forms of functions in `model/`, with the same arguments: native code for the CPU, built on first use.

Each function here returns None where it has no form for the device, dtype or mode; the caller in `model/` then runs its
own, the eager form, which is the specification. `use` and HF_ENTMAX_ASR_KERNELS choose; `status()` says what runs.
"""

from torch import Tensor

from hf_entmax_asr.kernels import entmax_cpu
from hf_entmax_asr.kernels.backend import runs_on_cpu, status, use

__all__ = ["entmax", "status", "use"]


def entmax(scores: Tensor, alpha: Tensor, dim: int, mask: Tensor | None) -> Tensor | None:
    """`hf_entmax_asr.model.entmax.entmax` with `alpha` a checked tensor and `dim` negative."""
    if runs_on_cpu(scores):
        return entmax_cpu.entmax(scores, alpha, dim, mask)
    return None

"""The public functions in the modes "triton" and "eager", and how near their results must be.

On a GPU where there is one, else in Triton's interpreter (conftest.py chooses it).
"""

import torch
import triton

from hf_entmax_asr import kernels
from hf_entmax_asr.model import alignment
from hf_entmax_asr.model.entmax import entmax
from hf_entmax_asr.model.entmax_attention import entmax_attention

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"


def running(mode: str, function):
    """`function` in a mode of the kernels."""

    def run(*args, **kwargs):
        with kernels.use(mode):
            return function(*args, **kwargs)

    return run


triton_entmax, eager_entmax = running("triton", entmax), running("eager", entmax)
triton_attention = running("triton", entmax_attention)
triton_alignment, eager_alignment = (running(mode, alignment.expected_alignment) for mode in ("triton", "eager"))
triton_soft, eager_soft = (running(mode, alignment.expected_soft_attention) for mode in ("triton", "eager"))
ALPHAS = (1.0, 1 + 1e-7, 1.001, 1.2, 1.5, 1.7, 1.999, 2.0)


def gradients(function, *tensors: torch.Tensor, dtype: torch.dtype, upstream: torch.Tensor):
    """Result of `function` on copies in `dtype`, and the gradients of all tensors."""
    copies = [x.detach().to(dtype).clone().requires_grad_() for x in tensors]
    result = function(*copies)
    return result.detach(), *torch.autograd.grad(result, copies, upstream.to(result.device, result.dtype))


def assert_near(actual, expected, bound, what=""):
    """The largest error, relative to the largest entry, or to 0.2 where all are smaller (terms near 1 that cancel)."""
    if expected.numel():
        error = (actual.double().cpu() - expected.double().cpu()).abs().max().item()
        assert error <= bound * max(0.2, expected.abs().max().item()), f"{what}: {error:.1e}"


def assert_rounded(actual, expected):
    """Equal but for the last digit of half precision (the interpreter cuts digits off where a GPU rounds)."""
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=torch.finfo(actual.dtype).eps, atol=1e-7)

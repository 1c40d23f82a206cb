"""α-entmax in Triton: the arithmetic that the kernels for rows and for attention share.

With ε = α − 1 and x = z − max z − t a weight is p = [1 + ε x]_+^(1/ε), and u = p^(1−ε) = −dp/dt its slope; see
`hf_entmax_asr.model.entmax`, the specification. One program works on rows of one α, so ε is a scalar and the closed
forms at α = 1, 1.5 and 2 are plain branches. All of it is float32 but for α − 1.
"""

from contextlib import AbstractContextManager

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_entmax_asr.kernels.modes import DTYPES

FAR_BELOW = tl.constexpr(-1e30)  # stands for −inf among scores relative to their maximum: finite, so that 0 · a is 0
MAX_NEWTON_STEPS = tl.constexpr(60)  # not what stops it: 1 to 8 steps are taken
SETTLED = tl.constexpr(1e-6)  # a step of t below this, relative to max(t, 1), is rounding
NEARLY_SETTLED = tl.constexpr(3e-5)  # the same for α <= 1.5

# Triton 3.10 will stop contracting a · b + c by default and 3.9 warns of it; no kernel here depends on either.
LAUNCH_OPTIONS = {"enable_fp_fusion": True}


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Kernels are launched on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(tensor)


def check_dtype(**tensors: Tensor | None) -> None:
    """The kernels compute in float32: they must refuse what that would cut short."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name} has dtype {tensor.dtype}; the Triton kernels take float32, bfloat16 and float16. "
                "Use the eager form for other dtypes."
            )


@triton.jit
def log1p(y):
    """log(1 + y), y > −1: what rounding does to 1 + y cancels in log(u) / (u − 1) (Kahan)."""
    u = 1.0 + y
    d = u - 1.0
    return tl.where(d == 0.0, y, tl.log(u) * (y / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def load_eps(alpha):
    """ε = α − 1 in float32, subtracted in float64 for α's that are."""
    return (tl.load(alpha).to(tl.float64) - 1.0).to(tl.float32)


@triton.jit
def relative(z, top):
    """Scores relative to the row maximum, −inf made finite; `top` is −inf in an empty row."""
    return tl.maximum(z - tl.where(top == float("-inf"), 0.0, top), FAR_BELOW)


@triton.jit
def weights_and_slopes(x, eps):
    """p and u for x = a − t."""
    if eps == 0.0:
        p = tl.exp(x)
        slope = p
    elif eps == 0.5:
        slope = tl.maximum(1.0 + 0.5 * x, 0.0)
        p = slope * slope
    elif eps == 1.0:
        p = tl.maximum(1.0 + x, 0.0)
        slope = tl.where(p > 0.0, 1.0, 0.0)
    else:
        y = eps * x
        inside = y > -1.0
        y = tl.where(inside, y, 0.0)
        p = tl.where(inside, tl.exp(log1p(y) / eps), 0.0)
        slope = p / (1.0 + y)
    return p, slope


@triton.jit
def lifted_weights_and_slopes(x, lift, eps):
    """p and u with the last step taken in p: the digits of t end before those of p, and where hundreds of weights share
    the sum it shows. u = p^(1−ε) follows to first order."""
    before, slope = weights_and_slopes(x, eps)
    change = slope * lift
    p = tl.maximum(before + change, 0.0)
    slope *= 1.0 + (1.0 - eps) * change / tl.maximum(before, 1e-30)
    return p, tl.where(p > 0.0, slope, 0.0)


@triton.jit
def slopes_of_weights(p, eps):
    """u = p^(1−ε) inside the support, 0 outside."""
    if eps == 0.0:
        slope = p
    elif eps == 0.5:
        slope = tl.sqrt(p)
    elif eps == 1.0:
        slope = tl.where(p > 0.0, 1.0, 0.0)
    else:
        inside = p > 0.0
        slope = tl.where(inside, tl.exp((1.0 - eps) * tl.log(tl.where(inside, p, 1.0))), 0.0)
    return slope


@triton.jit
def alpha_weights(p, slope, eps):
    """w = p L² ψ(εL), L = log p, ψ(x) = (e^(−x) − 1 + x)/x²: dα = −Σ w (g − ḡ). ψ by its series where |εL| < 0.7."""
    log_p = tl.log(tl.where(p > 0.0, p, 1.0))
    y = -eps * log_p
    far = (slope - p * (1.0 + y)) / tl.maximum(eps * eps, 1e-30)
    near = tl.minimum(y, 0.7)
    series = tl.zeros_like(y)
    for n in tl.static_range(13, 1, -1):
        series = (series * near + 1.0) / n
    return tl.where(y < 0.7, p * log_p * log_p * series, far)


@triton.jit
def newton_step(total, slopes, eps):
    """By how much the threshold t rises: F/N · (1 − F^(−ε))/ε for F = Σp and N = Σu; log F at ε = 0; 0 in an empty row.

    1 − e^y is taken by its series where y = −ε log F is small: F is near 1 there.
    """
    empty = total <= 0.0
    log_total = tl.log(tl.where(empty, 1.0, total))
    y = -eps * log_total
    near = tl.maximum(y, -0.25)
    series = 1.0 + near / 2 * (1.0 + near / 3 * (1.0 + near / 4 * (1.0 + near / 5 * (1.0 + near / 6))))
    rise = tl.where(y > -0.25, log_total * series, (1.0 - tl.exp(y)) / tl.maximum(eps, 1e-30))
    return tl.where(empty, 0.0, rise * total / tl.where(empty, 1.0, slopes))


@triton.jit
def unsettled(step, t, eps):
    """1 while some row of the program has to go on, else 0.

    Newton's error after a step is its square, with a factor that only the kinks of α > 1.5 let grow: below, nothing in
    float32 shows what follows a step of 3e-5.
    """
    tolerance = tl.where(eps <= 0.5, NEARLY_SETTLED, SETTLED)
    return tl.max((step > tolerance * tl.maximum(t, 1.0)).to(tl.int32), 0)


@triton.jit
def climb(a, eps):
    """(R,) thresholds of the rows of a tile `a` (R, N) of relative scores, from below."""
    t = tl.sum(tl.zeros_like(a), 1)
    left = MAX_NEWTON_STEPS
    moving = 1
    while moving > 0:
        p, slope = weights_and_slopes(a - t[:, None], eps)
        step = newton_step(tl.sum(p, 1), tl.sum(slope, 1), eps)
        t += step
        left -= 1
        moving = tl.minimum(unsettled(step, t, eps), left)
    return t

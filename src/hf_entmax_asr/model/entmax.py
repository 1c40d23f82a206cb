"""From attention scores to attention weights: the paper's "transforms", as pure functions.

    softmax      dense                                                     α = 1
    entmax15     sparse                                                    α = 1.5
    sparsemax    sparser                                                   α = 2
    entmax       any α in [1, 2], with an exact gradient for α
    topk_softmax softmax over the k largest scores

α-entmax (Peters et al. 2019, arXiv 1905.05702; paper eq. 6-7) maximises p·z + H_α(p), H_α the Tsallis entropy. With
ε = α − 1 and a = z − max z its solution is

    p_i = [1 + ε (a_i − t)]_+ ^ (1/ε) = exp(log1p(ε (a_i − t)) / ε),

where the threshold t makes p sum to 1. Written with log1p it goes over continuously into softmax at ε = 0, where t is
the log-sum-exp. This file is the specification: exact, in any dtype, for any shape.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:  # the native form, where the package is installed; this file also travels alone
    from hf_entmax_asr.kernels import entmax as native_entmax
except ImportError:
    native_entmax = None  # type: ignore[assignment]

# Norm-Newton climbs from below and stops by itself, in float32 after 2 to 10 steps for rows of up to 4096 scores.
MAX_NEWTON_STEPS = 60
COMPILED_NEWTON_STEPS = 12
LARGEST_SIZE = 2**31 - 1  # of a dimension: native code counts in 32 bits
FAR_BELOW = -1e30  # stands for −inf among the scores: weight 0 for every α, and finite, so that 0 · a is 0


def entmax(scores: Tensor, alpha: float | Tensor, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """α-entmax of `scores` along `dim`.

    Args:
        scores: any shape, any floating dtype. −inf entries get weight 0.
        alpha: a number, or a tensor that broadcasts against `scores` and has size 1 along `dim`, in [1, 2]. For one α
            per head of (B, H, T, S) scores: shape (H, 1, 1).
        dim: the dimension that sums to 1.
        mask: boolean, broadcastable against `scores`, true where a weight is allowed.

    Returns:
        Weights of the broadcast shape in the dtype of `scores`. A row with no allowed entry is all zeros, with zero
        gradients; bfloat16 and float16 are computed in float32. Differentiable in `scores` and in `alpha`.

    Raises:
        ValueError: α outside [1, 2] (checked for numbers and CPU tensors), or varying along `dim`; scores that are not
            floating point; a mask that is not boolean.
        IndexError: `scores` have no such dimension. (A single number counts as a row of one.)
    """
    if scores.dim() == 0 and dim in (-1, 0):
        return entmax(scores[None], alpha, -1, mask).reshape(())
    if not -scores.dim() <= dim < scores.dim():
        raise IndexError(f"dim = {dim} is no dimension of scores of shape {tuple(scores.shape)}.")
    dim = dim % scores.dim() - scores.dim()  # negative: stays right when broadcasting adds dimensions in front
    alpha = _checked_alpha(alpha, scores, dim)
    _check_dtypes(scores, mask)
    check_sizes("scores", scores)
    if scores.numel() == 0:  # rows of no scores have no largest one
        shape = torch.broadcast_shapes(scores.shape, alpha.shape, () if mask is None else mask.shape)
        return scores.expand(shape) * alpha.to(scores.dtype)
    if native_entmax is not None:
        weights = native_entmax(scores, alpha, dim, mask)
        if weights is not None:
            return weights
    return _Entmax.apply(_masked(scores, mask), alpha, dim)


def sparsemax(scores: Tensor, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """Euclidean projection onto the simplex (Martins and Astudillo 2016; paper eq. 4-5): `entmax` at α = 2."""
    return entmax(scores, 2.0, dim, mask)


def entmax15(scores: Tensor, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """1.5-entmax (Peters et al. 2019): `entmax` at α = 1.5."""
    return entmax(scores, 1.5, dim, mask)


def softmax(scores: Tensor, temperature: float = 1.0, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """softmax(scores / temperature); a row with no allowed entry is all zeros. Arguments as for `entmax`."""
    if temperature <= 0:
        raise ValueError(f"temperature = {temperature} must be above 0.")
    scores = _masked(scores, mask)
    empty = (scores == -torch.inf).all(dim, keepdim=True)  # filled with 0 first: softmax of −inf alone is NaN
    weights = torch.softmax(scores.masked_fill(empty, 0.0).to(_compute_dtype(scores)) / temperature, dim)
    return weights.masked_fill(empty, 0.0).to(scores.dtype)


def topk_softmax(scores: Tensor, k: int, dim: int = -1, mask: Tensor | None = None, keep_ties: bool = False) -> Tensor:
    """Softmax over the k largest scores, 0 elsewhere (Zhao et al. 2019, arXiv 1912.11637).

    Of equal scores at the border, as many are kept as fit; with `keep_ties` all of them, as in the original, whose rule
    is to keep what is at least the k-th largest score. Arguments as for `entmax`.
    """
    if k < 1:
        raise ValueError(f"k = {k} must be at least 1.")
    scores = _masked(scores, mask)
    if k >= scores.shape[dim]:
        return softmax(scores, dim=dim)
    largest = scores.topk(k, dim)
    if keep_ties:
        kept = scores >= largest.values.narrow(dim, k - 1, 1)
    else:
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(dim, largest.indices, True)
    return softmax(scores, dim=dim, mask=kept)


def check_sizes(name: str, tensor: Tensor) -> None:
    """ValueError where a dimension is longer than what the native forms count to."""
    if torch.compiler.is_compiling():  # a graph would be bound to sizes for it
        return
    if any(size > LARGEST_SIZE for size in tensor.shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; no dimension may be longer than {LARGEST_SIZE:,}.")


def _check_dtypes(scores: Tensor, mask: Tensor | None) -> None:
    if not scores.is_floating_point():
        raise ValueError(f"scores have dtype {scores.dtype}; they must be floating point.")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}; it must be boolean, true where a weight is allowed.")


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    _check_dtypes(scores, mask)
    if mask is None:
        return scores
    return torch.where(mask, scores, -torch.inf)


def _compute_dtype(scores: Tensor) -> torch.dtype:
    return torch.float32 if scores.dtype in (torch.bfloat16, torch.float16) else scores.dtype


def wide_dtype(device: torch.device) -> torch.dtype:
    """What long sums are accumulated in: a float32 sum of 2000 terms of which one is large is off by up to 1e-5."""
    return torch.float32 if device.type == "mps" else torch.float64


def _checked_alpha(alpha: float | Tensor, scores: Tensor, dim: int) -> Tensor:
    if not isinstance(alpha, Tensor):
        if not 1 <= alpha <= 2:
            raise ValueError(f"alpha = {alpha} must lie in [1, 2]: 1 is softmax, 2 is sparsemax.")
        return torch.tensor(alpha, dtype=torch.float64, device=scores.device)
    if alpha.dim() >= -dim and alpha.shape[dim] != 1:
        raise ValueError(
            f"alpha has shape {tuple(alpha.shape)}; against scores of shape {tuple(scores.shape)} its size along "
            f"dim {dim} must be 1, because one row has one α. For one α per head use shape (heads, 1, 1)."
        )
    check_alpha_range(alpha)
    return alpha


def check_alpha_range(alpha: Tensor) -> None:
    """Raises ValueError where α is known without waiting for a device, and outside [1, 2]."""
    if alpha.device.type != "cpu" or torch.compiler.is_compiling() or not alpha.numel():
        return
    low, high = (end.item() for end in alpha.detach().aminmax())
    if not (low >= 1 and high <= 2):
        raise ValueError(
            f"alpha lies in [{low:.6g}, {high:.6g}]; it must lie in [1, 2]: 1 is softmax, 2 is sparsemax. A learned α "
            "stays inside as 1 + sigmoid(a)."
        )


def _weights(a: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """p = [1 + ε (a − t)]_+^(1/ε), exp(a − t) at ε = 0, and its slope −dp/dt = p^(1−ε)."""
    x = a - t
    log_p = torch.where(eps == 0, x, torch.log1p((eps * x).clamp(min=-1)) / eps.clamp(min=1e-30))
    p = torch.exp(log_p)
    return p, p / (1 + eps * x).clamp(min=1e-30)


def _solve(a: Tensor, eps: Tensor, dim: int) -> Tensor:
    """Weights p of scores a = z − max z (max 0, or FAR_BELOW throughout an empty row), by Newton's method on t.

    F(t) = Σp is pulled back through the norm ‖p‖ that makes it linear where all p are equal: with N = Σ p^(1−ε),
    t += F/N · (1 − F^(−ε)) / ε. From t = 0, a lower bound, it climbs to the root without overshooting; at ε → 0 the
    step is log F, exact at once.
    """
    t = torch.zeros_like(a.amax(dim, keepdim=True))
    compiling = torch.compiler.is_compiling()
    for _ in range(COMPILED_NEWTON_STEPS if compiling else MAX_NEWTON_STEPS):
        p, slope = _weights(a, t, eps)
        total = p.sum(dim, keepdim=True)  # F
        log_total = total.log()
        step = torch.where(eps == 0, log_total, -torch.expm1(-eps * log_total) / eps.clamp(min=1e-30))
        step = step * total / slope.sum(dim, keepdim=True)
        step = torch.where(total > 0, step, 0.0)  # an empty row stays put
        t = t + step
        if not compiling and bool((step <= 8 * torch.finfo(t.dtype).eps * t.clamp(min=1.0)).all()):
            break
    # The digits of t end before those of p, which shows where thousands of p share the sum: a last step in p itself.
    p, slope = _weights(a, t, eps)
    missing = (1 - p.sum(dim, keepdim=True, dtype=wide_dtype(p.device))).to(p.dtype)
    return (p + slope * (missing / slope.sum(dim, keepdim=True).clamp(min=1e-30))).clamp(min=0)


def _psi_series(y: Tensor) -> Tensor:
    """(e^y − 1 − y) / y² = Σ_{n>=2} y^(n−2)/n! by Horner's rule, for 0 <= y < 0.7, cut off by 2e-13 at 0.7."""
    series = torch.zeros_like(y)
    for n in range(13, 1, -1):
        series = (series * y + 1.0) / n
    return series


class _Entmax(torch.autograd.Function):
    """α-entmax with its exact backward, for which only p is kept.

    With u = p^(1−ε), q = u/Σu, ḡ = Σ g q (equal to Correia et al. 2019, arXiv 1909.00015, and free
    of its cancellation near α = 1):
    dz = u (g − ḡ), dα = −Σ w (g − ḡ), w = p L² ψ(εL), L = log p, ψ(x) = (e^(−x) − 1 + x)/x². Since Σ q (g − ḡ) = 0, w
    may be centred too, w − q Σw, which keeps rounding in ḡ out of dα.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, alpha: Tensor, dim: int) -> Tensor:
        z = scores.to(_compute_dtype(scores))
        eps = (alpha.to(torch.float64) - 1).to(z.dtype)
        top = z.amax(dim, keepdim=True)
        a = (z - torch.where(top == -torch.inf, 0.0, top)).clamp(min=FAR_BELOW)
        p = _solve(a, eps, dim)
        ctx.save_for_backward(p, alpha)
        ctx.dim, ctx.scores_shape, ctx.scores_dtype = dim, scores.shape, scores.dtype
        return p.to(scores.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        p, alpha = ctx.saved_tensors
        dim = ctx.dim
        g = grad.to(p.dtype)
        eps = (alpha.to(torch.float64) - 1).to(p.dtype)
        inside = p > 0
        log_p = torch.where(inside, p, 1.0).log()
        u = torch.where(inside, torch.exp((1 - eps) * log_p), 0.0)
        q = u / u.sum(dim, keepdim=True).clamp(min=1e-30)
        centred = g - (q * g).sum(dim, keepdim=True)
        grad_scores = grad_alpha = None
        if ctx.needs_input_grad[0]:
            grad_scores = (u * centred).sum_to_size(ctx.scores_shape).to(ctx.scores_dtype)
        if ctx.needs_input_grad[1]:
            y = -eps * log_p
            far = (u - p * (1 + y)) / eps.square().clamp(min=1e-30)  # p L² ψ, written so that nothing overflows
            near = p * log_p.square() * _psi_series(y)
            w = torch.where(y < 0.7, near, far)
            w = w - q * w.sum(dim, keepdim=True)
            grad_alpha = -(w * centred).sum_to_size(alpha.shape).to(alpha.dtype)
        return grad_scores, grad_alpha, None

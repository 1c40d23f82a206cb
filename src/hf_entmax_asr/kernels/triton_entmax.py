"""α-entmax of rows on NVIDIA GPUs, in Triton: the weights, and their gradients for scores and α, as torch operators.

A program takes some rows of one α and reads them block by block, so rows may have any length: once for the maximum,
once or more often for the threshold, twice for the weights; after the first time they come from the cache. While it
looks for the maximum it keeps the elementwise maximum of the blocks. Those are entries of the row, and the threshold
of some entries is a lower bound of the threshold of all: Newton's method starts there, next to its goal.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_entmax_asr.kernels.triton_math import (
    LAUNCH_OPTIONS,
    MAX_NEWTON_STEPS,
    alpha_weights,
    check_dtype,
    climb,
    load_eps,
    newton_step,
    on_device_of,
    relative,
    slopes_of_weights,
    unsettled,
    weights_and_slopes,
)

TILE = 1024  # elements that a program holds at once


@triton.jit
def _locate(heads, queries, ROWS: tl.constexpr):
    """Batch, head, rows and which of them exist, for programs numbered along one axis (the others end at 65535)."""
    blocks = tl.cdiv(queries, ROWS)
    pair = tl.program_id(0) // blocks
    rows = ((tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    return (pair // heads).to(tl.int64), (pair % heads).to(tl.int64), rows, rows < queries


@triton.jit
def _load_scores(row, mask_row, mask_stride, inside, start, keys, BLOCK: tl.constexpr):
    cols = start + tl.arange(0, BLOCK)[None, :]
    valid = inside[:, None] & (cols < keys)
    z = tl.load(row + cols, mask=valid, other=float("-inf")).to(tl.float32)
    if mask_row is not None:
        z = tl.where(tl.load(mask_row + cols * mask_stride, mask=valid, other=0) != 0, z, float("-inf"))
    return z


@triton.jit
def _forward(
    scores, mask, alpha, weights, score_strides, mask_strides, alpha_strides, heads, queries, keys,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    b, h, rows, inside = _locate(heads, queries, ROWS)
    eps = load_eps(alpha + b * alpha_strides[0] + h * alpha_strides[1] + tl.min(rows, 0) * alpha_strides[2])
    row = scores + (b * score_strides[0] + h * score_strides[1] + rows * score_strides[2])[:, None]
    mask_row = mask
    mask_stride = 0
    if mask is not None:
        mask_row = mask + (b * mask_strides[0] + h * mask_strides[1] + rows * mask_strides[2])[:, None]
        mask_stride = mask_strides[3]

    z = tl.full((ROWS, BLOCK), float("-inf"), tl.float32)
    for start in range(0, keys, BLOCK):
        z = tl.maximum(z, _load_scores(row, mask_row, mask_stride, inside, start, keys, BLOCK))
    top = tl.max(z, 1)[:, None]
    t = climb(relative(z, top), eps)

    if not ONE_BLOCK:
        left = MAX_NEWTON_STEPS
        moving = 1
        while moving > 0:
            total = tl.zeros((ROWS, BLOCK), tl.float32)
            slopes = tl.zeros((ROWS, BLOCK), tl.float32)
            for start in range(0, keys, BLOCK):
                z = _load_scores(row, mask_row, mask_stride, inside, start, keys, BLOCK)
                p, slope = weights_and_slopes(relative(z, top) - t[:, None], eps)
                total += p
                slopes += slope
            step = newton_step(tl.sum(total, 1), tl.sum(slopes, 1), eps)
            t += step
            left -= 1
            moving = tl.minimum(unsettled(step, t, eps), left)

    # The digits of t end before those of p, which shows where thousands of p share the sum: a last step in p itself.
    # Their sum is float64: small terms added to one large, one after the other, are each rounded to its last digit.
    total = tl.zeros((ROWS, BLOCK), tl.float64)
    slopes = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, keys, BLOCK):
        z = _load_scores(row, mask_row, mask_stride, inside, start, keys, BLOCK)
        p, slope = weights_and_slopes(relative(z, top) - t[:, None], eps)
        total += p.to(tl.float64)
        slopes += slope
    lift = ((1.0 - tl.sum(total, 1)).to(tl.float32) / tl.maximum(tl.sum(slopes, 1), 1e-30))[:, None]
    out = weights + ((b * heads + h) * queries + rows)[:, None] * keys
    for start in range(0, keys, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, :]
        z = _load_scores(row, mask_row, mask_stride, inside, start, keys, BLOCK)
        p, slope = weights_and_slopes(relative(z, top) - t[:, None], eps)
        p = tl.maximum(p + slope * lift, 0.0)
        tl.store(out + cols, p.to(weights.dtype.element_ty), mask=inside[:, None] & (cols < keys))


@triton.jit
def _backward(
    grad, weights, alpha, grad_scores, grad_alpha, grad_strides, alpha_strides, heads, queries, keys,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dz = u (g − ḡ) and, per row, dα = −Σ (w − q Σw)(g − ḡ), with q = u / Σu and ḡ = Σ q g."""
    b, h, rows, inside = _locate(heads, queries, ROWS)
    eps = load_eps(alpha + b * alpha_strides[0] + h * alpha_strides[1] + tl.min(rows, 0) * alpha_strides[2])
    grad_row = grad + (b * grad_strides[0] + h * grad_strides[1] + rows * grad_strides[2])[:, None]
    flat_rows = (b * heads + h) * queries + rows
    row = flat_rows[:, None] * keys

    slopes = tl.zeros((ROWS, BLOCK), tl.float32)
    weighted = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, keys, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, :]
        valid = inside[:, None] & (cols < keys)
        slope = slopes_of_weights(tl.load(weights + row + cols, mask=valid, other=0.0).to(tl.float32), eps)
        slopes += slope
        weighted += slope * tl.load(grad_row + cols * grad_strides[3], mask=valid, other=0.0).to(tl.float32)
    slope_sum = tl.maximum(tl.sum(slopes, 1), 1e-30)
    mean = (tl.sum(weighted, 1) / slope_sum)[:, None]

    # Σ q (g − ḡ) is 0 but for rounding in ḡ, which Σw would blow up: it is measured and taken out.
    rest = tl.zeros((ROWS, BLOCK), tl.float32)
    w_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    w_centred = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, keys, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, :]
        valid = inside[:, None] & (cols < keys)
        p = tl.load(weights + row + cols, mask=valid, other=0.0).to(tl.float32)
        slope = slopes_of_weights(p, eps)
        centred = tl.load(grad_row + cols * grad_strides[3], mask=valid, other=0.0).to(tl.float32) - mean
        tl.store(grad_scores + row + cols, (slope * centred).to(grad_scores.dtype.element_ty), mask=valid)
        if grad_alpha is not None:
            w = alpha_weights(p, slope, eps)
            rest += slope * centred
            w_sum += w
            w_centred += w * centred
    if grad_alpha is not None:
        row_grad = tl.sum(w_sum, 1) * tl.sum(rest, 1) / slope_sum - tl.sum(w_centred, 1)
        tl.store(grad_alpha + flat_rows, row_grad, mask=inside)


def entmax(scores: Tensor, alpha: Tensor, dim: int, mask: Tensor | None) -> Tensor:
    """As `hf_entmax_asr.model.entmax.entmax`, its arguments checked; `alpha` a tensor, `dim` negative."""
    shape = torch.broadcast_shapes(scores.shape, alpha.shape, () if mask is None else mask.shape)
    rows = scores.expand(shape)
    if dim != -1:
        rows = rows.movedim(dim, -1)
        alpha = alpha.reshape((1,) * (len(shape) - alpha.dim()) + alpha.shape).movedim(dim, -1)
        mask = None if mask is None else mask.expand(shape).movedim(dim, -1)
    keeps = torch.is_grad_enabled() and (scores.requires_grad or alpha.requires_grad)
    # The backward wants float32 weights; without one, the dtype of the scores is written at once.
    weights = entmax_forward(rows, alpha, mask, torch.float32 if keeps else scores.dtype).to(scores.dtype)
    return weights if dim == -1 else weights.movedim(-1, dim)


@torch.library.custom_op("hf_entmax_asr::triton_entmax", mutates_args=())
def entmax_forward(scores: Tensor, alpha: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """α-entmax along the last dimension.

    Args:
        scores: (..., N) float32, bfloat16 or float16, of any strides; −inf entries get weight 0.
        alpha: broadcastable against `scores`, with size 1 (or no dimension) for N; in [1, 2], which is not checked.
        mask: boolean, broadcastable against `scores`, true where a weight is allowed.
        dtype: of the result. The arithmetic is float32.

    Returns:
        Weights of the broadcast shape, contiguous. Empty rows are all zeros.

    Raises:
        ValueError: a dtype the kernel does not take.
    """
    check_dtype(scores=scores)
    shape = torch.broadcast_shapes(scores.shape, alpha.shape, () if mask is None else mask.shape)
    out = torch.empty(shape, dtype=dtype, device=scores.device)
    if out.numel() == 0:
        return out
    z = _as_rows(scores, shape)
    if z.stride(3) != 1:
        z = z.contiguous()
    row_mask = None if mask is None else _as_rows(mask, shape)
    row_alpha = _as_rows(alpha, (*shape[:-1], 1))
    rows, block = _tile(z, row_alpha)
    batch, heads, queries, keys = z.shape
    with on_device_of(scores):
        _forward[(batch * heads * triton.cdiv(queries, rows),)](
            z, row_mask, row_alpha, out, z.stride(), None if row_mask is None else row_mask.stride(),
            row_alpha.stride(), heads, queries, keys, rows, block, keys <= block, **LAUNCH_OPTIONS
        )  # fmt: skip
    return out


@entmax_forward.register_fake
def _(scores: Tensor, alpha: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    shape = torch.broadcast_shapes(scores.shape, alpha.shape, () if mask is None else mask.shape)
    return scores.new_empty(shape, dtype=dtype)


@torch.library.custom_op("hf_entmax_asr::triton_entmax_backward", mutates_args=())
def entmax_backward(grad: Tensor, weights: Tensor, alpha: Tensor, needs_alpha: bool) -> tuple[Tensor, Tensor]:
    """Gradients of `entmax_forward` for its scores and its α.

    Args:
        grad: gradient of the weights, of their shape and any strides.
        weights: what the forward returned, preferably in float32.
        alpha: as in the forward.
        needs_alpha: whether to compute the second gradient.

    Returns:
        Gradient of the broadcast scores, in the dtype of `grad`, and of α, in its shape and dtype (or empty).
    """
    check_dtype(grad=grad, weights=weights)
    shape = weights.shape
    grad_scores = torch.empty(shape, dtype=grad.dtype, device=grad.device)
    row_grads = torch.empty((*shape[:-1], 1), dtype=torch.float32, device=grad.device) if needs_alpha else None
    if weights.numel() > 0:
        p, g = _as_rows(weights.contiguous(), shape), _as_rows(grad, shape)
        row_alpha = _as_rows(alpha, (*shape[:-1], 1))
        rows, block = _tile(p, row_alpha)
        batch, heads, queries, keys = p.shape
        with on_device_of(grad):
            _backward[(batch * heads * triton.cdiv(queries, rows),)](
                g, p, row_alpha, grad_scores, row_grads, g.stride(), row_alpha.stride(), heads, queries, keys,
                rows, block, **LAUNCH_OPTIONS
            )  # fmt: skip
    elif row_grads is not None:
        row_grads.zero_()
    if row_grads is None:
        return grad_scores, alpha.new_empty(0)
    return grad_scores, row_grads.double().sum_to_size(alpha.shape).to(alpha.dtype)


@entmax_backward.register_fake
def _(grad: Tensor, weights: Tensor, alpha: Tensor, needs_alpha: bool) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape), torch.empty_like(alpha) if needs_alpha else alpha.new_empty(0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scores, alpha, *_ = inputs
    ctx.save_for_backward(output, alpha)
    ctx.shape, ctx.dtype = scores.shape, scores.dtype


def _through_weights(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weights, alpha = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_scores, grad_alpha = entmax_backward(grad, weights, alpha, needs[1])
    grad_scores = grad_scores.to(ctx.dtype).sum_to_size(ctx.shape)
    return grad_scores if needs[0] else None, grad_alpha if needs[1] else None, None, None


entmax_forward.register_autograd(_through_weights, setup_context=_setup_context)


def _as_rows(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`x` expanded to `shape`, then seen as (B, H, T, N)."""
    x = x.expand(shape)
    if x.dim() > 4:
        return x.reshape(-1, *shape[-3:])
    return x[(None,) * (4 - x.dim())]


def _tile(rows: Tensor, alpha: Tensor) -> tuple[int, int]:
    """Rows per program and length of a block: an eighth of a row, so that the maxima of blocks are worth a start."""
    queries, keys = rows.shape[2:]
    block = min(max(triton.next_power_of_2(triton.cdiv(keys, 8)), 64), TILE)
    one_alpha = queries == 1 or alpha.stride(2) == 0
    return (min(TILE // block, triton.next_power_of_2(queries)) if one_alpha else 1), block

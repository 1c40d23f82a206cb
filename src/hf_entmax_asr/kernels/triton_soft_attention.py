"""Expected soft attention behind a monotonic alignment (MoChA, MILK) on NVIDIA GPUs, in Triton, as torch operators.

    β_ij = Σ_k α_ik softmax(u_i over the window that ends at k)_j

A window of w positions (MoChA) takes two kernels of w steps each: one over k, for the sum of each window, one over j,
to collect from the windows that hold j. Looking back without end (MILK) is a walk back from k that stops at l with
probability stop_l = e^(u_l) / Σ_{m<=l} e^(u_m), so with go = 1 − stop: x_j = α_j + go_{j+1} x_{j+1}, β_j = stop_j x_j.
Both sums are associative scans, the first of pairs (maximum, sum relative to it), in float64 as in the eager form.

Backward: ĝ_k = Σ_j g_j softmax_k(j) is the gradient of α_k, and that of u_j is Σ_k α_k softmax_k(j) (g_j − ĝ_k).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_entmax_asr.kernels.triton_alignment import MOST_POSITIONS, check_shapes, mask_row_of
from hf_entmax_asr.kernels.triton_math import FAR_BELOW, LAUNCH_OPTIONS, on_device_of


@triton.jit
def _load_score(row, mask_row, j, positions):
    """Scores u, −∞ (also of padding) made finite: a window of padding stays defined."""
    real = (j >= 0) & (j < positions)
    if mask_row is not None:
        real = tl.load(mask_row + j, mask=real, other=0) != 0
    return tl.maximum(tl.load(row + j, mask=real, other=float("-inf")).to(tl.float32), FAR_BELOW)


@triton.jit
def _window_sums(
    alignment, energy, source_mask, grad, maxima, shares, means, rows_per_batch, positions, width, BLOCK: tl.constexpr
):
    """Of the window that ends at k: its maximum, α_k / Σ e^(u − maximum) and, with `grad`, ĝ_k."""
    blocks = tl.cdiv(positions, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    k = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = k < positions
    mask_row = mask_row_of(source_mask, n // rows_per_batch, positions)
    row = n * positions
    top = tl.full((BLOCK,), FAR_BELOW, tl.float32)
    for back in range(width):
        top = tl.maximum(top, _load_score(energy + row, mask_row, k - back, positions))
    total = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK,), tl.float32)
    for back in range(width):
        share = tl.exp(_load_score(energy + row, mask_row, k - back, positions) - top)
        share = tl.where(k >= back, share, 0.0)
        total += share
        if grad is not None:
            mean += share * tl.load(grad + row + k - back, mask=inside & (k >= back), other=0.0).to(tl.float32)
    tl.store(maxima + row + k, top, mask=inside)
    tl.store(shares + row + k, tl.load(alignment + row + k, mask=inside, other=0.0).to(tl.float32) / total, mask=inside)
    if grad is not None:
        tl.store(means + row + k, mean / total, mask=inside)


@triton.jit
def _collect(
    energy, source_mask, grad, maxima, shares, means, out, rows_per_batch, positions, width, BLOCK: tl.constexpr
):
    """β_j, or with `grad` the gradient of u_j, from the windows j, j + 1, …, j + width − 1."""
    blocks = tl.cdiv(positions, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask_row = mask_row_of(source_mask, n // rows_per_batch, positions)
    row = n * positions
    u = _load_score(energy + row, mask_row, j, positions)
    g = tl.zeros((BLOCK,), tl.float32)
    if grad is not None:
        g = tl.load(grad + row + j, mask=j < positions, other=0.0).to(tl.float32)
    result = tl.zeros((BLOCK,), tl.float32)
    for ahead in range(width):
        k = j + ahead
        top = tl.load(maxima + row + k, mask=k < positions, other=0.0)
        share = tl.load(shares + row + k, mask=k < positions, other=0.0) * tl.exp(tl.minimum(u - top, 0.0))
        if grad is not None:
            share *= g - tl.load(means + row + k, mask=k < positions, other=0.0)
        result += share
    if grad is not None:
        result = tl.where(u > FAR_BELOW, result, 0.0)
    tl.store(out + row + j, result.to(tl.float32).to(out.dtype.element_ty), mask=j < positions)


@triton.jit
def _merge(m1, s1, w1, m2, s2, w2):
    """Sums relative to their maxima, put together."""
    m = tl.maximum(m1, m2)
    f1, f2 = tl.exp(m1 - m), tl.exp(m2 - m)
    return m, s1 * f1 + s2 * f2, w1 * f1 + w2 * f2


@triton.jit
def _then_both(a1, b1, c1, a2, b2, c2):
    """`then` for two chains that share their factors."""
    return a1 * a2, b1 * a2 + b2, c1 * a2 + c2


@triton.jit
def _store_sums_before(energy_row, mask_row, grad, row, carried, positions, BLOCK: tl.constexpr):
    """For each block of a row: maximum, sum and sum weighted by `grad` of everything in front of it."""
    m, s, w = tl.full((), FAR_BELOW, tl.float64), tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    for block in range(tl.cdiv(positions, BLOCK)):
        tl.store(carried + block * 3, m)
        tl.store(carried + block * 3 + 1, s)
        tl.store(carried + block * 3 + 2, w)
        j = block * BLOCK + tl.arange(0, BLOCK)
        u = _load_score(energy_row, mask_row, j, positions).to(tl.float64)
        top = tl.max(u, 0)
        share = tl.where(j < positions, tl.exp(u - top), 0.0)
        weighted = tl.zeros((), tl.float64)
        if grad is not None:
            weighted = tl.sum(share * tl.load(grad + row + j, mask=j < positions, other=0.0).to(tl.float64), 0)
        m, s, w = _merge(m, s, w, top, tl.sum(share, 0), weighted)
    tl.debug_barrier()  # what one thread stores, all read


@triton.jit
def _lookback(
    alignment, energy, source_mask, grad, out, grad_alignment, carried, rows_per_batch, positions,
    BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: β in `out`, or with `grad` the gradients of u in `out` and of α in `grad_alignment`."""
    n = tl.program_id(0).to(tl.int64)
    mask_row = mask_row_of(source_mask, n // rows_per_batch, positions)
    lane = tl.arange(0, BLOCK)
    row = n * positions
    blocks = tl.cdiv(positions, BLOCK)
    carried += n * blocks * 3
    if not ONE_BLOCK:
        _store_sums_before(energy + row, mask_row, grad, row, carried, positions, BLOCK)

    x_behind, y_behind = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    for block in range(blocks - 1, -1, -1):
        j = block * BLOCK + lane
        u = _load_score(energy + row, mask_row, j, positions).to(tl.float64)
        g = tl.zeros((BLOCK,), tl.float64)
        if grad is not None:
            g = tl.load(grad + row + j, mask=j < positions, other=0.0).to(tl.float64)
        m, s, w = tl.associative_scan((u, tl.where(lane >= 0, 1.0, 0.0).to(tl.float64), g), 0, _merge)
        if not ONE_BLOCK:
            before = carried + block * 3
            m, s, w = _merge(tl.load(before), tl.load(before + 1), tl.load(before + 2), m, s, w)
        stop = tl.exp(u - m) / s
        u_next = _load_score(energy + row, mask_row, j + 1, positions).to(tl.float64)
        m_next = tl.maximum(m, u_next)
        passed = s * tl.exp(m - m_next)
        go_next = passed / (passed + tl.exp(u_next - m_next))
        a = tl.load(alignment + row + j, mask=j < positions, other=0.0).to(tl.float64)
        product, x, y = tl.associative_scan((go_next, a, a * w / s), 0, _then_both, reverse=True)
        x += product * x_behind
        y += product * y_behind
        x_behind, y_behind = tl.sum(tl.where(lane == 0, x, 0.0), 0), tl.sum(tl.where(lane == 0, y, 0.0), 0)
        result = stop * x
        if grad is not None:
            result = tl.where(u > FAR_BELOW, stop * (g * x - y), 0.0)
            grad_a = (w / s).to(tl.float32).to(grad_alignment.dtype.element_ty)
            tl.store(grad_alignment + row + j, grad_a, mask=j < positions)
        tl.store(out + row + j, result.to(tl.float32).to(out.dtype.element_ty), mask=j < positions)


def expected_soft_attention(
    alignment: Tensor, energy: Tensor, chunk_size: int | None, source_mask: Tensor | None
) -> Tensor:
    """As `hf_entmax_asr.model.alignment.expected_soft_attention`, its arguments checked."""
    return soft_attention_forward(alignment, energy, source_mask, chunk_size)


@torch.library.custom_op("hf_entmax_asr::triton_spread", mutates_args=())
def soft_attention_forward(
    alignment: Tensor, energy: Tensor, source_mask: Tensor | None, chunk_size: int | None
) -> Tensor:
    """Expected soft attention.

    Args:
        alignment: (B, H, U, S) float32, bfloat16 or float16.
        energy: (B, H, U, S) scores u of the soft window.
        source_mask: (B, S) boolean, true where real.
        chunk_size: window width w >= 1 (MoChA), or None to look back without end (MILK).

    Returns:
        Weights (B, H, U, S) in the dtype of `alignment`.

    Raises:
        ValueError: chunk_size below 1, or shapes or dtypes that do not fit.
    """
    return _run(alignment, energy, source_mask, chunk_size, None)[0]


@soft_attention_forward.register_fake
def _(alignment: Tensor, energy: Tensor, source_mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
    return alignment.new_empty(alignment.shape)


@torch.library.custom_op("hf_entmax_asr::triton_spread_backward", mutates_args=())
def soft_attention_backward(
    grad: Tensor, alignment: Tensor, energy: Tensor, source_mask: Tensor | None, chunk_size: int | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `soft_attention_forward` for `alignment` and `energy`, in their dtypes, from that of its result."""
    grad_energy, grad_alignment = _run(alignment, energy, source_mask, chunk_size, grad)
    return grad_alignment, grad_energy


@soft_attention_backward.register_fake
def _(
    grad: Tensor, alignment: Tensor, energy: Tensor, source_mask: Tensor | None, chunk_size: int | None
) -> tuple[Tensor, Tensor]:
    return alignment.new_empty(alignment.shape), energy.new_empty(energy.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    alignment, energy, source_mask, chunk_size = inputs
    ctx.save_for_backward(alignment, energy, source_mask)
    ctx.chunk_size = chunk_size


def _through_weights(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = soft_attention_backward(grad, *ctx.saved_tensors, ctx.chunk_size)
    return *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False)), None, None


soft_attention_forward.register_autograd(_through_weights, setup_context=_setup_context)


def _run(
    alignment: Tensor, energy: Tensor, source_mask: Tensor | None, chunk_size: int | None, grad: Tensor | None
) -> tuple[Tensor, Tensor]:
    """β and nothing, or with `grad` the gradients of `energy` and `alignment`."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size} must be at least 1, or None for infinite lookback.")
    check_shapes(energy, source_mask, alignment=alignment)
    batch, heads, targets, positions = energy.shape
    alignment, energy = alignment.contiguous(), energy.contiguous()
    source_mask = None if source_mask is None else source_mask.contiguous()
    out = torch.empty_like(alignment if grad is None else energy)
    grad_alignment = torch.empty_like(alignment) if grad is not None else alignment.new_empty(0)
    grad = None if grad is None else grad.contiguous()
    if energy.numel() == 0:
        return out, grad_alignment
    rows, per_batch = batch * heads * targets, heads * targets
    block = min(max(triton.next_power_of_2(positions), 16), MOST_POSITIONS)
    options = {"num_warps": max(1, min(8, block // 128)), **LAUNCH_OPTIONS}
    with on_device_of(energy):
        if chunk_size is None:
            blocks = triton.cdiv(positions, block)
            carried = torch.empty(rows * blocks * 3, dtype=torch.float64, device=energy.device)
            _lookback[(rows,)](
                alignment, energy, source_mask, grad, out, grad_alignment, carried, per_batch, positions, block,
                positions <= block, **options
            )  # fmt: skip
        else:
            width = min(chunk_size, positions)
            grid = (rows * triton.cdiv(positions, block),)
            maxima, shares = torch.empty((2, *energy.shape), dtype=torch.float32, device=energy.device)
            # ĝ is both the gradient of α and what the second kernel needs, in float32.
            means = None if grad is None else torch.empty_like(maxima)
            shared = (maxima, shares, means)
            sizes = (per_batch, positions, width, block)
            _window_sums[grid](alignment, energy, source_mask, grad, *shared, *sizes, **options)
            _collect[grid](energy, source_mask, grad, *shared, out, *sizes, **options)
            grad_alignment = grad_alignment if means is None else means.to(alignment.dtype)
    return out, grad_alignment

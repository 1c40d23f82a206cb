"""Expected monotonic alignment on NVIDIA GPUs, in Triton, as torch operators: the recurrence of
`hf_entmax_asr.model.alignment` itself.

    q_ij = q_{i,j−1} σ(−e_{i,j−1}) + α_{i−1,j},    α_ij = σ(e_ij) q_ij

One program per head walks over the tokens i. Along the positions j each token is a chain of maps x -> a x + b with
a, b >= 0, and such maps compose: an associative scan of the pairs (a, b) is the recurrence, without the divisions and
the lost mass of the form with cumulative products. Long audio is taken in blocks of positions, outside the loop over
tokens, so that the alignment of the token before stays in registers; what crosses from block to block goes through
memory. Everything carried is float64, as in the eager form: 1 − p, rounded to float32 two thousand times, loses 1e-4.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_entmax_asr.kernels.triton_math import LAUNCH_OPTIONS, check_dtype, on_device_of

MOST_POSITIONS = 1024  # in one block


@triton.jit
def then(a1, b1, a2, b2):
    """x -> a1 x + b1, and then x -> a2 x + b2."""
    return a1 * a2, b1 * a2 + b2


@triton.jit
def stop_and_go(e):
    """σ(e) and σ(−e), neither as 1 minus the other, for float64 `e`, ±∞ included."""
    small = tl.exp(-tl.abs(e))
    likely = 1.0 / (1.0 + small)
    unlikely = small / (1.0 + small)
    return tl.where(e >= 0, likely, unlikely), tl.where(e >= 0, unlikely, likely)


@triton.jit
def load_energy(row, mask_row, j, positions):
    """Energies in float64, −∞ where nothing is."""
    real = (j >= 0) & (j < positions)
    if mask_row is not None:
        real = tl.load(mask_row + j, mask=real, other=0) != 0
    return tl.load(row + j, mask=real, other=float("-inf")).to(tl.float64)


@triton.jit
def mask_row_of(source_mask, batch, positions):
    row = source_mask
    if source_mask is not None:
        row = source_mask + batch.to(tl.int64) * positions
    return row


@triton.jit
def _forward(
    energy, source_mask, previous, alignment, reached, carried, heads, targets, positions,
    BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    mask_row = mask_row_of(source_mask, n // heads, positions)
    lane = tl.arange(0, BLOCK)
    for start in range(0, positions, BLOCK):
        j = start + lane
        if previous is None:
            a = tl.where(j == 0, 1.0, 0.0).to(tl.float64)
        else:
            a = tl.load(previous + n * positions + j, mask=j < positions, other=0.0).to(tl.float64)
        for i in range(targets):
            row = (n * targets + i) * positions
            stop, _ = stop_and_go(load_energy(energy + row, mask_row, j, positions))
            _, go_before = stop_and_go(load_energy(energy + row, mask_row, j - 1, positions))
            product, q = tl.associative_scan((go_before, a), 0, then)
            if not ONE_BLOCK:
                q += product * tl.load(carried + n * targets + i, mask=start > 0, other=0.0)
                tl.store(carried + n * targets + i, tl.sum(tl.where(lane == BLOCK - 1, q, 0.0), 0))
            a = stop * q
            tl.store(alignment + row + j, a.to(tl.float32).to(alignment.dtype.element_ty), mask=j < positions)
            if reached is not None:
                tl.store(reached + row + j, q.to(tl.float32), mask=j < positions)
        tl.debug_barrier()  # what one thread carried over, the next block reads


@triton.jit
def _backward(
    grad, energy, source_mask, reached, grad_energy, grad_previous, carried, heads, targets, positions,
    BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """ā_ij = g_ij + q̄_{i+1,j},  q̄_ij = σ(e) ā_ij + σ(−e) q̄_{i,j+1},  ē_ij = σ(e) σ(−e) q_ij (ā_ij − q̄_{i,j+1}).

    The scan is of `behind`, q̄_{i,j+1} at lane j, over inputs read one position further on; q̄_ij follows from it.
    """
    n = tl.program_id(0).to(tl.int64)
    mask_row = mask_row_of(source_mask, n // heads, positions)
    lane = tl.arange(0, BLOCK)
    for block in range(tl.cdiv(positions, BLOCK) - 1, -1, -1):
        j = block * BLOCK + lane
        q_bar = tl.zeros((BLOCK,), tl.float64)  # of the token after
        behind = tl.zeros((BLOCK,), tl.float64)
        for i in range(targets - 1, -1, -1):
            row = (n * targets + i) * positions
            stop, go = stop_and_go(load_energy(energy + row, mask_row, j, positions))
            stop_next, go_next = stop_and_go(load_energy(energy + row, mask_row, j + 1, positions))
            a_bar = q_bar + tl.load(grad + row + j, mask=j < positions, other=0.0).to(tl.float64)
            a_bar_next = behind + tl.load(grad + row + j + 1, mask=j + 1 < positions, other=0.0).to(tl.float64)
            product, behind = tl.associative_scan((go_next, stop_next * a_bar_next), 0, then, reverse=True)
            if not ONE_BLOCK:
                last = (block + 1) * BLOCK >= positions
                behind += product * tl.load(carried + n * targets + i, mask=not last, other=0.0)
                tl.store(carried + n * targets + i, tl.sum(tl.where(lane == 0, behind, 0.0), 0))
            q_bar = stop * a_bar + go * behind
            q = tl.load(reached + row + j, mask=j < positions, other=0.0)
            e_bar = stop * go * q * (a_bar - behind)
            tl.store(grad_energy + row + j, e_bar.to(tl.float32).to(grad_energy.dtype.element_ty), mask=j < positions)
        tl.store(grad_previous + n * positions + j, q_bar.to(tl.float32), mask=j < positions)
        tl.debug_barrier()  # what one thread carried over, the next block reads


def expected_alignment(energy: Tensor, source_mask: Tensor | None, previous: Tensor | None) -> Tensor:
    """As `hf_entmax_asr.model.alignment.expected_alignment`, its arguments checked."""
    keep = torch.is_grad_enabled() and (energy.requires_grad or (previous is not None and previous.requires_grad))
    first = None if previous is None else previous.float()
    return expected_alignment_forward(energy, source_mask, first, keep)[0]


@torch.library.custom_op("hf_entmax_asr::triton_align", mutates_args=())
def expected_alignment_forward(
    energy: Tensor, source_mask: Tensor | None, previous: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """Expected alignment of energies.

    Args:
        energy: (B, H, U, S) float32, bfloat16 or float16; ±∞ allowed.
        source_mask: (B, S) boolean, true where real; elsewhere nothing stops.
        previous: (B, H, S) alignment of the token before the first; None is position 0.
        keep: whether to return what the backward needs.

    Returns:
        alignment (B, H, U, S) in the dtype of `energy`, and for the backward q (B, H, U, S) float32 (or empty).

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    check_shapes(energy, source_mask, previous=previous)
    batch, heads, targets, positions = energy.shape
    energy = energy.contiguous()
    alignment = torch.empty_like(energy)
    reached = torch.empty(energy.shape if keep else (0,), dtype=torch.float32, device=energy.device)
    if energy.numel() > 0:
        block, carried, options = _blocks(energy)
        with on_device_of(energy):
            _forward[(batch * heads,)](
                energy, None if source_mask is None else source_mask.contiguous(),
                None if previous is None else previous.contiguous(), alignment, reached if keep else None, carried,
                heads, targets, positions, block, positions <= block, **options
            )  # fmt: skip
    return alignment, reached


@expected_alignment_forward.register_fake
def _(energy: Tensor, source_mask: Tensor | None, previous: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    return energy.new_empty(energy.shape), energy.new_empty(energy.shape if keep else (0,), dtype=torch.float32)


@torch.library.custom_op("hf_entmax_asr::triton_align_backward", mutates_args=())
def expected_alignment_backward(
    grad: Tensor, energy: Tensor, source_mask: Tensor | None, reached: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `expected_alignment_forward` for `energy`, in its dtype, and for `previous`, in float32; `grad` is
    that of the alignment and `reached` what the forward returned."""
    batch, heads, targets, positions = energy.shape
    energy = energy.contiguous()
    grad_energy = torch.empty_like(energy)
    grad_previous = torch.zeros(batch, heads, positions, dtype=torch.float32, device=energy.device)
    if energy.numel() > 0:
        block, carried, options = _blocks(energy)
        with on_device_of(energy):
            _backward[(batch * heads,)](
                grad.contiguous(), energy, None if source_mask is None else source_mask.contiguous(), reached,
                grad_energy, grad_previous, carried, heads, targets, positions, block, positions <= block, **options
            )  # fmt: skip
    return grad_energy, grad_previous


@expected_alignment_backward.register_fake
def _(grad: Tensor, energy: Tensor, source_mask: Tensor | None, reached: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, _, positions = energy.shape
    return energy.new_empty(energy.shape), energy.new_empty(batch, heads, positions, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    energy, source_mask, _, keep = inputs
    if keep:
        ctx.save_for_backward(energy, source_mask, output[1])
    ctx.set_materialize_grads(False)


def _through_alignment(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    grad_energy, grad_previous = expected_alignment_backward(grad, *ctx.saved_tensors)
    needs = ctx.needs_input_grad
    return grad_energy if needs[0] else None, None, grad_previous if needs[2] else None, None


expected_alignment_forward.register_autograd(_through_alignment, setup_context=_setup_context)


def _blocks(energy: Tensor) -> tuple[int, Tensor, dict[str, Any]]:
    """Positions in a block, memory for what crosses from one to the next, and launch options."""
    batch, heads, targets, positions = energy.shape
    block = min(max(triton.next_power_of_2(positions), 16), MOST_POSITIONS)
    carried = torch.empty(batch * heads * targets, dtype=torch.float64, device=energy.device)
    return block, carried, {"num_warps": max(1, min(8, block // 128)), **LAUNCH_OPTIONS}


def check_shapes(energy: Tensor, source_mask: Tensor | None, **others: Tensor | None) -> None:
    """Of the tensors that go with an energy; those in `others` lose the token axis if their name is "previous"."""
    check_dtype(energy=energy, **others)
    if energy.dim() != 4:
        raise ValueError(f"energy has shape {tuple(energy.shape)}; it must be (batch, heads, targets, positions).")
    batch, heads, _, positions = energy.shape
    for name, tensor in others.items():
        expected = (batch, heads, positions) if name == "previous" else tuple(energy.shape)
        if tensor is not None and tensor.shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {expected}.")
    if source_mask is not None and (source_mask.shape != (batch, positions) or source_mask.dtype != torch.bool):
        raise ValueError(
            f"source_mask is {source_mask.dtype} of shape {tuple(source_mask.shape)}; it must be boolean of shape "
            f"{(batch, positions)}, true where real."
        )

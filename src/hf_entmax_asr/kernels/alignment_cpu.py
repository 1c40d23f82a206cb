"""Expected monotonic alignment and soft attention over it on the CPU: csrc/alignment.cpp and csrc/soft_attention.cpp as
torch operators with gradients. Inside, tensors are float32 and contiguous; what is carried along a row is float64."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from hf_entmax_asr.kernels.libraries import call, pointer


def expected_alignment(energy: Tensor, source_mask: Tensor | None, previous: Tensor | None) -> Tensor | None:
    """As `hf_entmax_asr.model.alignment.expected_alignment`; None for what that refuses."""
    if not _fit(energy, source_mask) or (previous is not None and previous.shape != _without_targets(energy)):
        return None
    keep = torch.is_grad_enabled() and (energy.requires_grad or (previous is not None and previous.requires_grad))
    first = None if previous is None else previous.float()
    alignment, _ = align(energy.float(), source_mask, first, keep)
    return alignment.to(energy.dtype)


def expected_soft_attention(
    alignment: Tensor, energy: Tensor, chunk_size: int | None, source_mask: Tensor | None
) -> Tensor | None:
    """As `hf_entmax_asr.model.alignment.expected_soft_attention`; None for what that refuses."""
    if not _fit(energy, source_mask) or alignment.shape != energy.shape or (chunk_size is not None and chunk_size < 1):
        return None
    width = 0 if chunk_size is None or chunk_size >= energy.shape[-1] else chunk_size
    return spread(alignment.float(), energy.float(), source_mask, width).to(alignment.dtype)


def _fit(energy: Tensor, source_mask: Tensor | None) -> bool:
    """Whether native code may see the tensors: it reads wherever a wrong shape points."""
    return energy.dim() == 4 and (
        source_mask is None
        or (source_mask.dtype == torch.bool and source_mask.shape == (energy.shape[0], energy.shape[3]))
    )


def _without_targets(energy: Tensor) -> tuple[int, int, int]:
    return energy.shape[0], energy.shape[1], energy.shape[3]


@torch.library.custom_op("hf_entmax_asr::align", mutates_args=(), device_types="cpu")
def align(energy: Tensor, source_mask: Tensor | None, previous: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    """Alignment (B, H, U, S), and q of the recurrence, which the backward needs (empty unless `keep`)."""
    energy = energy.contiguous()
    alignment = torch.empty_like(energy)
    reached = energy.new_empty(energy.shape if keep else (0,))
    if energy.numel():
        mask = None if source_mask is None else source_mask.contiguous()
        first = None if previous is None else previous.contiguous()
        tensors = (energy, mask, first, alignment, reached if keep else None)
        call("alignment", "align_forward", *map(pointer, tensors), *_sizes(energy))
    return alignment, reached


@align.register_fake
def _(energy: Tensor, source_mask: Tensor | None, previous: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    alignment = torch.empty_like(energy, memory_format=torch.contiguous_format)
    return alignment, energy.new_empty(energy.shape if keep else (0,))


@torch.library.custom_op("hf_entmax_asr::align_backward", mutates_args=(), device_types="cpu")
def align_backward(energy: Tensor, source_mask: Tensor | None, reached: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `energy` (B, H, U, S) and of `previous` (B, H, S)."""
    energy, grad = energy.contiguous(), grad.contiguous()
    grad_energy = torch.empty_like(energy)
    grad_previous = energy.new_zeros(*energy.shape[:2], energy.shape[3])
    if energy.numel():
        mask = None if source_mask is None else source_mask.contiguous()
        tensors = (energy, mask, reached, grad, grad_energy, grad_previous)
        call("alignment", "align_backward", *map(pointer, tensors), *_sizes(energy))
    return grad_energy, grad_previous


@align_backward.register_fake
def _(energy: Tensor, source_mask: Tensor | None, reached: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(energy, memory_format=torch.contiguous_format),
        energy.new_empty(*energy.shape[:2], energy.shape[3]),
    )


def _align_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    energy, source_mask, _, keep = inputs
    if keep:
        ctx.save_for_backward(energy, source_mask, output[1])
    ctx.set_materialize_grads(False)


def _align_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    energy, source_mask, reached = ctx.saved_tensors
    grad_energy, grad_previous = align_backward(energy, source_mask, reached, grad)
    needs = ctx.needs_input_grad
    return grad_energy if needs[0] else None, None, grad_previous if needs[2] else None, None


align.register_autograd(_align_backward, setup_context=_align_context)


@torch.library.custom_op("hf_entmax_asr::spread", mutates_args=(), device_types="cpu")
def spread(alignment: Tensor, scores: Tensor, source_mask: Tensor | None, width: int) -> Tensor:
    """Expected soft attention (B, H, U, S) over windows of `width` positions, 0 for all before."""
    alignment, scores = alignment.contiguous(), scores.contiguous()
    weights = torch.empty_like(alignment)
    if weights.numel():
        mask = None if source_mask is None else source_mask.contiguous()
        tensors = map(pointer, (alignment, scores, mask, weights))
        call("soft_attention", "soft_forward", *tensors, *_sizes(scores), width)
    return weights


@spread.register_fake
def _(alignment: Tensor, scores: Tensor, source_mask: Tensor | None, width: int) -> Tensor:
    return torch.empty_like(alignment, memory_format=torch.contiguous_format)


@torch.library.custom_op("hf_entmax_asr::spread_backward", mutates_args=(), device_types="cpu")
def spread_backward(
    alignment: Tensor, scores: Tensor, source_mask: Tensor | None, grad: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Gradients of `alignment` and `scores`."""
    alignment, scores, grad = alignment.contiguous(), scores.contiguous(), grad.contiguous()
    grad_alignment, grad_scores = torch.empty_like(alignment), torch.empty_like(scores)
    if scores.numel():
        mask = None if source_mask is None else source_mask.contiguous()
        tensors = map(pointer, (alignment, scores, mask, grad, grad_alignment, grad_scores))
        call("soft_attention", "soft_backward", *tensors, *_sizes(scores), width)
    return grad_alignment, grad_scores


@spread_backward.register_fake
def _(alignment: Tensor, scores: Tensor, source_mask: Tensor | None, grad: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(alignment, memory_format=torch.contiguous_format),
        torch.empty_like(scores, memory_format=torch.contiguous_format),
    )


def _spread_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    alignment, scores, source_mask, width = inputs
    ctx.save_for_backward(alignment, scores, source_mask)
    ctx.width = width


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_alignment, grad_scores = spread_backward(*ctx.saved_tensors, grad, ctx.width)
    needs = ctx.needs_input_grad
    return grad_alignment if needs[0] else None, grad_scores if needs[1] else None, None, None


spread.register_autograd(_spread_backward, setup_context=_spread_context)


def _sizes(energy: Tensor) -> tuple[ctypes.c_int64, int, int, int]:
    """Lattices, heads, targets, positions."""
    batch, heads, targets, positions = energy.shape
    return ctypes.c_int64(batch * heads), heads, targets, positions

"""α-entmax on the CPU: csrc/entmax.cpp as torch operators with a gradient."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from hf_entmax_asr.kernels.libraries import call, pointer

MOST_DIMS = 6


class _Rows(ctypes.Structure):
    """Where each row finds its part of the mask and its α (struct Rows of csrc/entmax.cpp)."""

    _fields_ = (
        ("dims", ctypes.c_int),
        ("size", ctypes.c_int64 * MOST_DIMS),
        ("mask_stride", ctypes.c_int64 * MOST_DIMS),
        ("alpha_stride", ctypes.c_int64 * MOST_DIMS),
    )


def entmax(scores: Tensor, alpha: Tensor, dim: int, mask: Tensor | None) -> Tensor:
    """As `hf_entmax_asr.model.entmax.entmax`, for float32, bfloat16 and float16; `alpha` a tensor, `dim` negative."""
    shape = scores.shape
    if not (_fits(alpha, shape) and (mask is None or _fits(mask, shape))):
        shape = torch.broadcast_shapes(shape, alpha.shape, () if mask is None else mask.shape)
    rows = scores.float().expand(shape)
    alpha = alpha.to(torch.float64)
    alpha = alpha.reshape((1,) * (len(shape) - alpha.dim()) + alpha.shape)
    if mask is not None:
        mask = mask.expand(shape)
    if dim != -1:
        rows, alpha = rows.movedim(dim, -1), alpha.movedim(dim, -1)
        mask = None if mask is None else mask.movedim(dim, -1)
    weights = entmax_rows(rows, alpha, mask)
    return (weights if dim == -1 else weights.movedim(-1, dim)).to(scores.dtype)


def _fits(tensor: Tensor, shape: torch.Size) -> bool:
    """Whether `tensor` expands to `shape`. (torch.broadcast_shapes takes as long as some hundred rows.)"""
    return tensor.dim() <= len(shape) and all(
        n in (1, m) for n, m in zip(tensor.shape[::-1], shape[::-1], strict=False)
    )


@torch.library.custom_op("hf_entmax_asr::entmax", mutates_args=(), device_types="cpu")
def entmax_rows(scores: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
    """Weights of float32 `scores` (..., S), with `alpha` (..., 1) float64 and boolean `mask` (..., S) that have as many
    dimensions and expand to it."""
    scores = scores.contiguous()
    weights = torch.empty_like(scores)
    if scores.numel():
        if mask is not None:
            mask = mask.expand(scores.shape)
            mask = mask if mask.stride(-1) == 1 or mask.shape[-1] == 1 else mask.contiguous()
        where, alpha, mask = _rows(scores, alpha, mask)
        count, width = scores.numel() // scores.shape[-1], scores.shape[-1]
        arguments = [pointer(t) for t in (scores, mask, alpha, weights)]
        call("entmax", "entmax_forward", *arguments, ctypes.c_int64(count), width, ctypes.byref(where))
    return weights


@entmax_rows.register_fake
def _(scores: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@torch.library.custom_op("hf_entmax_asr::entmax_backward", mutates_args=(), device_types="cpu")
def entmax_rows_backward(weights: Tensor, grad: Tensor, alpha: Tensor, for_alpha: bool) -> tuple[Tensor, Tensor]:
    """Gradient of the scores (..., S) and, if asked, of the α of each row (..., 1)."""
    grad = grad.contiguous()
    grad_scores = torch.empty_like(weights)
    grad_alpha = weights.new_empty((*weights.shape[:-1], 1) if for_alpha else (0,))
    if weights.numel():
        where, alpha, _ = _rows(weights, alpha, None)
        count, width = weights.numel() // weights.shape[-1], weights.shape[-1]
        tensors = (weights, grad, alpha, grad_scores, grad_alpha if for_alpha else None)
        arguments = [pointer(t) for t in tensors]
        call("entmax", "entmax_backward", *arguments, ctypes.c_int64(count), width, ctypes.byref(where))
    return grad_scores, grad_alpha


@entmax_rows_backward.register_fake
def _(weights: Tensor, grad: Tensor, alpha: Tensor, for_alpha: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weights), weights.new_empty((*weights.shape[:-1], 1) if for_alpha else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weights, alpha = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_scores, grad_alpha = entmax_rows_backward(weights, grad, alpha, needs[1])
    return (
        grad_scores if needs[0] else None,
        grad_alpha.double().sum_to_size(alpha.shape) if needs[1] else None,
        None,
    )


entmax_rows.register_autograd(_backward, setup_context=_setup_context)


def _rows(scores: Tensor, alpha: Tensor, mask: Tensor | None) -> tuple[_Rows, Tensor, Tensor | None]:
    """The rows of `scores` with, for each leading dimension, the strides of `alpha` and `mask` along it; the tensors
    come back because they must outlive the call."""
    leading = scores.shape[:-1]
    alpha = alpha.expand(*leading, 1)
    if len(leading) > MOST_DIMS:
        alpha = alpha.reshape(-1, 1)
        mask = None if mask is None else mask.reshape(-1, scores.shape[-1])
        leading = alpha.shape[:-1]
    where = _Rows(len(leading))
    for d, size in enumerate(leading):
        where.size[d] = size
        where.alpha_stride[d] = alpha.stride(d)
        where.mask_stride[d] = 0 if mask is None else mask.stride(d)
    return where, alpha, mask

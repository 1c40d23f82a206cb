"""The Triton kernels as torch operators, with what torch.compile and autograd need to know of them.

Imported only where the package triton is installed and a tensor wants it.
"""

import torch
from torch import Tensor

from hf_entmax_asr.kernels.triton_alignment import expected_alignment_backward, expected_alignment_forward
from hf_entmax_asr.kernels.triton_attention import (
    attention_backward,
    attention_forward,
    attention_takes,
    attention_tiles,
    empty_as_model,
)
from hf_entmax_asr.kernels.triton_entmax import entmax_backward, entmax_forward
from hf_entmax_asr.kernels.triton_soft_attention import soft_attention_backward, soft_attention_forward


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
    weights = rows_forward(rows, alpha, mask, torch.float32 if keeps else scores.dtype).to(scores.dtype)
    return weights if dim == -1 else weights.movedim(-1, dim)


def entmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
) -> Tensor | None:
    """As `hf_entmax_asr.model.entmax_attention.entmax_attention`, its arguments checked; None for what the kernels do
    not take."""
    bias = None if mask is None or mask.dtype == torch.bool else mask
    if not attention_takes(query, key, value, bias):
        return None
    mask = mask if bias is None else None
    seed = torch.randint(2**62, (1,), device=query.device) if dropout_p > 0 else None
    return attend(query, key, value, alpha, mask, bias, seed, is_causal, scale, dropout_p)[0]


def expected_alignment(energy: Tensor, source_mask: Tensor | None, previous: Tensor | None) -> Tensor:
    """As `hf_entmax_asr.model.alignment.expected_alignment`, its arguments checked."""
    keep = torch.is_grad_enabled() and (energy.requires_grad or (previous is not None and previous.requires_grad))
    return align(energy, source_mask, None if previous is None else previous.float(), keep)[0]


def expected_soft_attention(
    alignment: Tensor, energy: Tensor, chunk_size: int | None, source_mask: Tensor | None
) -> Tensor:
    """As `hf_entmax_asr.model.alignment.expected_soft_attention`, its arguments checked."""
    return spread(alignment, energy, source_mask, chunk_size)


# ---------------------------------------------------------------------------------------------------------- rows


@torch.library.custom_op("hf_entmax_asr::triton_entmax", mutates_args=())
def rows_forward(scores: Tensor, alpha: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    return entmax_forward(scores, alpha, mask, dtype)


@rows_forward.register_fake
def _(scores, alpha, mask, dtype):
    return scores.new_empty(scores.shape, dtype=dtype)


@torch.library.custom_op("hf_entmax_asr::triton_entmax_backward", mutates_args=())
def rows_backward(grad: Tensor, weights: Tensor, alpha: Tensor, needs_alpha: bool) -> tuple[Tensor, Tensor]:
    return entmax_backward(grad, weights, alpha, needs_alpha)


@rows_backward.register_fake
def _(grad, weights, alpha, needs_alpha):
    return grad.new_empty(grad.shape), torch.empty_like(alpha) if needs_alpha else alpha.new_empty(0)


def _rows_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(output, inputs[1])
    ctx.dtype = inputs[0].dtype


def _rows_backward(ctx, grad):
    weights, alpha = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_scores, grad_alpha = rows_backward(grad, weights, alpha, needs[1])
    return grad_scores.to(ctx.dtype) if needs[0] else None, grad_alpha if needs[1] else None, None, None


rows_forward.register_autograd(_rows_backward, setup_context=_rows_context)


# ----------------------------------------------------------------------------------------------------- attention


@torch.library.custom_op("hf_entmax_asr::triton_attend", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return attention_forward(query, key, value, alpha, mask, bias, seed, is_causal, scale, dropout_p)


@attend.register_fake
def _(query, key, value, alpha, mask, bias, seed, is_causal, scale, dropout_p):
    batch, heads, queries, _ = query.shape
    rows, columns = attention_tiles(query, value, key.shape[2], is_causal, bias, seed is not None)
    return (
        empty_as_model(query, queries, value.shape[3]),
        query.new_empty(batch, heads, queries, 3, dtype=torch.float32),
        query.new_empty(batch, heads, rows, columns, dtype=torch.uint8),
    )


@torch.library.custom_op("hf_entmax_asr::triton_attend_backward", mutates_args=())
def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    stats: Tensor,
    flags: Tensor,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    needs_alpha: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return attention_backward(
        grad, query, key, value, alpha, mask, bias, seed, stats, flags, is_causal, scale, dropout_p, needs_alpha,
        needs_bias,
    )  # fmt: skip


@attend_backward.register_fake
def _(
    grad, query, key, value, alpha, mask, bias, seed, stats, flags, is_causal, scale, dropout_p, needs_alpha, needs_bias
):  # fmt: skip
    gradients = [empty_as_model(x, x.shape[2], x.shape[3]) for x in (query, key, value)]
    for_alpha = torch.empty_like(alpha) if needs_alpha else alpha.new_empty(0)
    if bias is None:
        return *gradients, for_alpha, query.new_empty(0, dtype=torch.float32)
    return *gradients, for_alpha, bias.new_empty(bias.shape if needs_bias else (0,))


def _attend_context(ctx, inputs, output) -> None:
    *tensors, is_causal, scale, dropout_p = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.options = (is_causal, scale, dropout_p)
    ctx.set_materialize_grads(False)


def _attend_backward(ctx, grad, *_):
    needs = ctx.needs_input_grad
    if grad is None:
        return (None,) * len(needs)
    *gradients, for_alpha, for_bias = attend_backward(grad, *ctx.saved_tensors, *ctx.options, needs[3], needs[5])
    every = (*gradients, for_alpha, None, for_bias, None, None, None, None)
    return tuple(g if need else None for g, need in zip(every, needs, strict=True))


attend.register_autograd(_attend_backward, setup_context=_attend_context)


# ----------------------------------------------------------------------------------------------------- alignment


@torch.library.custom_op("hf_entmax_asr::triton_align", mutates_args=())
def align(energy: Tensor, source_mask: Tensor | None, previous: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    return expected_alignment_forward(energy, source_mask, previous, keep)


@align.register_fake
def _(energy, source_mask, previous, keep):
    return energy.new_empty(energy.shape), energy.new_empty(energy.shape if keep else (0,), dtype=torch.float32)


@torch.library.custom_op("hf_entmax_asr::triton_align_backward", mutates_args=())
def align_backward(grad: Tensor, energy: Tensor, source_mask: Tensor | None, reached: Tensor) -> tuple[Tensor, Tensor]:
    return expected_alignment_backward(grad, energy, source_mask, reached)


@align_backward.register_fake
def _(grad, energy, source_mask, reached):
    batch, heads, _, positions = energy.shape
    return energy.new_empty(energy.shape), energy.new_empty(batch, heads, positions, dtype=torch.float32)


def _align_context(ctx, inputs, output) -> None:
    energy, source_mask, _, keep = inputs
    if keep:
        ctx.save_for_backward(energy, source_mask, output[1])
    ctx.set_materialize_grads(False)


def _align_backward(ctx, grad, _):
    if grad is None:
        return None, None, None, None
    grad_energy, grad_previous = align_backward(grad, *ctx.saved_tensors)
    needs = ctx.needs_input_grad
    return grad_energy if needs[0] else None, None, grad_previous if needs[2] else None, None


align.register_autograd(_align_backward, setup_context=_align_context)


@torch.library.custom_op("hf_entmax_asr::triton_spread", mutates_args=())
def spread(alignment: Tensor, energy: Tensor, source_mask: Tensor | None, chunk_size: int | None) -> Tensor:
    return soft_attention_forward(alignment, energy, source_mask, chunk_size)


@spread.register_fake
def _(alignment, energy, source_mask, chunk_size):
    return alignment.new_empty(alignment.shape)


@torch.library.custom_op("hf_entmax_asr::triton_spread_backward", mutates_args=())
def spread_backward(
    grad: Tensor, alignment: Tensor, energy: Tensor, source_mask: Tensor | None, chunk_size: int | None
) -> tuple[Tensor, Tensor]:
    return soft_attention_backward(grad, alignment, energy, source_mask, chunk_size)


@spread_backward.register_fake
def _(grad, alignment, energy, source_mask, chunk_size):
    return alignment.new_empty(alignment.shape), energy.new_empty(energy.shape)


def _spread_context(ctx, inputs, output) -> None:
    alignment, energy, source_mask, chunk_size = inputs
    ctx.save_for_backward(alignment, energy, source_mask)
    ctx.chunk_size = chunk_size


def _spread_backward(ctx, grad):
    gradients = spread_backward(grad, *ctx.saved_tensors, ctx.chunk_size)
    return *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False)), None, None


spread.register_autograd(_spread_backward, setup_context=_spread_context)

"""α-entmax attention on the CPU: csrc/attention.cpp and csrc/attention_backward.cpp as torch operators with gradients.

Inside, everything is float32. The weights are never a (T, S) matrix: a block of rows at a time is computed, and what is
not 0 is kept for the backward as far as `kept_entries` allows; the rest is computed again.
"""

import ctypes
import math

import torch
from torch import Tensor

from hf_entmax_asr.kernels.backend import call

KEPT_AT_LEAST = 1 << 22  # weights, of 6 bytes each
MOST_KEYS_TO_KEEP = 1 << 16  # their places are kept in 16 bits


class _Problem(ctypes.Structure):
    """struct Problem of csrc/attention.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "heads", "queries", "keys", "width", "value_width")),
        ("causal", ctypes.c_int32),
        ("chunks", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("dropout", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((f"{name}_stride", ctypes.c_int64 * 3) for name in ("query", "key", "value")),
        ("alpha", ctypes.c_void_p),
        ("alpha_stride", ctypes.c_int64 * 2),
        ("allowed", ctypes.c_void_p),
        ("allowed_stride", ctypes.c_int64 * 4),
        ("bias", ctypes.c_void_p),
        ("bias_stride", ctypes.c_int64 * 4),
        *((name, ctypes.c_void_p) for name in ("stats", "kept_at", "kept_count", "kept_weights", "kept_places")),
        ("capacity", ctypes.c_int64),
        ("kept_used", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64 * 3),
        ("grad", ctypes.c_void_p),
        ("grad_stride", ctypes.c_int64 * 3),
        *((name, ctypes.c_void_p) for name in ("d_query", "d_key", "d_value")),
        ("d_query_stride", ctypes.c_int64 * 3),
        ("d_alpha", ctypes.c_void_p),
        ("d_bias", ctypes.c_void_p),
        ("d_bias_stride", ctypes.c_int64 * 4),
    )

    def put(self, **tensors: Tensor | None) -> None:
        """Fields from tensors: the pointer, and the strides where the structure has a place for them."""
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            setattr(self, name, tensor.data_ptr())
            strides = getattr(self, f"{name}_stride", None)
            for d in range(0 if strides is None else len(strides)):
                strides[d] = tensor.stride(d)  # type: ignore[index]


def entmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """As `hf_entmax_asr.model.entmax_attention.entmax_attention`, its arguments checked; `alpha` (B|1, H|1, 1, 1)."""
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    allowed = mask if mask is not None and mask.dtype == torch.bool else None
    bias = None if mask is None or allowed is not None else mask.float()
    seed = torch.randint(1 << 62, (1,)) if dropout_p > 0 else None
    inputs = (query.float(), key.float(), value.float(), alpha.double())
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (query, key, value, alpha, bias))
    # A decoding step is so short that torch's way to an operator would take as long as the operator.
    forward = _attend if not keep and type(query) is Tensor and not torch.compiler.is_compiling() else attend
    out, *_ = forward(*inputs, allowed, bias, seed, is_causal, scale, dropout_p, keep)
    return out.to(value.dtype)


def kept_entries(batch: int, heads: int, queries: int, keys: int) -> int:
    """How many weights may be kept for the backward: all of a small problem that is not dense, 1/16 of a large one."""
    entries = batch * heads * queries * keys
    if keys > MOST_KEYS_TO_KEEP:
        return 0
    return min(entries * 7 // 10, max(entries // 16, KEPT_AT_LEAST))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, T, E), laid out as (B, T, H, E); then what the backward needs, empty unless `keep`: max z and t of
    each row, where its weights are kept and how many, the kept weights and their places."""
    out, stats, kept_at, kept_count, kept_weights, kept_places = outputs = _outputs(query, key, value, keep)
    if not out.numel():
        return outputs
    problem, _held = _problem(query, key, value, alpha, allowed, bias, seed, is_causal, scale, dropout_p)
    problem.put(out=out)
    used = torch.zeros(1, dtype=torch.int64)
    if keep:
        problem.put(
            stats=stats,
            kept_at=kept_at,
            kept_count=kept_count,
            kept_weights=kept_weights,
            kept_places=kept_places,
            kept_used=used,
        )
        problem.capacity = kept_weights.numel()
    call("attention", "attention_forward", ctypes.byref(problem))
    return outputs


def _outputs(
    query: Tensor, key: Tensor, value: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, queries, _ = query.shape
    keys, value_width = value.shape[2:]
    rows = (batch, heads, queries) if keep else (0, 0, 0)
    kept = kept_entries(batch, heads, queries, keys) if keep else 0
    return (
        query.new_empty(batch, queries, heads, value_width).transpose(1, 2),
        query.new_empty(*rows, 2),
        query.new_empty(rows, dtype=torch.int64),
        query.new_empty(rows, dtype=torch.int32),
        query.new_empty(kept),
        query.new_empty(kept, dtype=torch.int16),
    )


attend = torch.library.custom_op("hf_entmax_asr::attend", _attend, mutates_args=(), device_types="cpu")


@attend.register_fake
def _(query, key, value, alpha, allowed, bias, seed, is_causal, scale, dropout_p, keep):
    return _outputs(query, key, value, keep)


@torch.library.custom_op("hf_entmax_asr::attend_backward", mutates_args=(), device_types="cpu")
def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    stats: Tensor,
    kept_at: Tensor,
    kept_count: Tensor,
    kept_weights: Tensor,
    kept_places: Tensor,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    for_alpha: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, and where asked (else empty) of α (B, H, 1, 1) and of `bias`."""
    batch, heads, queries, width = query.shape
    keys, value_width = value.shape[2:]
    d_query = query.new_empty(batch, queries, heads, width).transpose(1, 2)
    d_alpha = query.new_zeros(batch, heads, queries) if for_alpha else query.new_empty(0)
    for_bias = for_bias and bias is not None
    d_bias = query.new_zeros(bias.shape if for_bias else (0,))  # type: ignore[union-attr]
    if not (query.numel() and key.numel() and value.numel()):
        d_query, d_key, d_value = (t.new_zeros(t.shape) for t in (query, key, value))
        return d_query, d_key, d_value, d_alpha.sum(2)[..., None, None] if for_alpha else d_alpha, d_bias
    problem, _held = _problem(query, key, value, alpha, allowed, bias, seed, is_causal, scale, dropout_p)
    if for_bias and d_bias.shape[2] == 1:  # all rows add to one
        problem.chunks = 1
    d_key = query.new_empty(problem.chunks, batch, keys, heads, width)
    d_value = query.new_empty(problem.chunks, batch, keys, heads, value_width)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    problem.put(
        grad=grad,
        stats=stats,
        kept_at=kept_at,
        kept_count=kept_count,
        kept_weights=kept_weights,
        kept_places=kept_places,
        d_query=d_query,
        d_key=d_key,
        d_value=d_value,
        d_alpha=d_alpha if for_alpha else None,
        d_bias=d_bias.expand(batch, heads, queries, keys) if for_bias else None,
    )
    call("attention_backward", "attention_backward", ctypes.byref(problem))
    d_key, d_value = ((t[0] if len(t) == 1 else t.sum(0)).transpose(1, 2) for t in (d_key, d_value))
    return d_query, d_key, d_value, d_alpha.sum(2)[..., None, None] if for_alpha else d_alpha, d_bias


@attend_backward.register_fake
def _(
    grad, query, key, value, alpha, allowed, bias, seed, stats, kept_at, kept_count, kept_weights, kept_places,
    is_causal, scale, dropout_p, for_alpha, for_bias,
):  # fmt: skip
    if not (query.numel() and key.numel() and value.numel()):
        gradients = [t.new_empty(t.shape) for t in (query, key, value)]
    else:
        gradients = [t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in (query, key, value)]
    batch, heads = query.shape[:2]
    d_bias = torch.empty_like(bias, memory_format=torch.contiguous_format) if for_bias else query.new_empty(0)
    return *gradients, query.new_empty((batch, heads, 1, 1) if for_alpha else (0,)), d_bias


def _setup_context(ctx, inputs, output) -> None:
    *tensors, is_causal, scale, dropout_p, keep = inputs
    ctx.options = (is_causal, scale, dropout_p)
    if keep:
        ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor | None, *_):
    needs = ctx.needs_input_grad
    nothing = (None,) * len(needs)
    if grad is None:
        return nothing
    saved = ctx.saved_tensors
    d_query, d_key, d_value, d_alpha, d_bias = attend_backward(grad, *saved, *ctx.options, needs[3], needs[5])
    gradients = {
        0: d_query,
        1: d_key,
        2: d_value,
        3: d_alpha.double().sum_to_size(saved[3].shape) if needs[3] else None,
        5: d_bias,
    }
    return tuple(gradients.get(i) if need else None for i, need in enumerate(needs))


attend.register_autograd(_backward, setup_context=_setup_context)


def _chunks(pairs: int, queries: int) -> int:
    """Into how many parts the rows of each head are cut, so that every thread has work."""
    threads = torch.get_num_threads()
    return 1 if pairs >= threads else max(1, min(math.ceil(2 * threads / pairs), queries // 64))


def _problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
) -> tuple[_Problem, list[Tensor | None]]:
    """What the C side needs of the inputs, and the tensors that must stay alive for it."""
    batch, heads, queries, width = query.shape
    keys, value_width = value.shape[2:]
    problem = _Problem(batch, heads, queries, keys, width, value_width, is_causal, 1, scale, dropout_p)
    problem.chunks = _chunks(batch * heads, queries)
    problem.seed = 0 if seed is None else int(seed)
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    scores = (batch, heads, queries, keys)
    allowed = None if allowed is None else allowed.expand(scores)
    bias = None if bias is None else bias.expand(scores)
    alpha = alpha.expand(batch, heads, 1, 1)
    problem.put(query=query, key=key, value=value, alpha=alpha, allowed=allowed, bias=bias)
    return problem, [query, key, value, alpha, allowed, bias]

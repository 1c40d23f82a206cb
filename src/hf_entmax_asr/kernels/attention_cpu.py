"""α-entmax attention on the CPU: csrc/attention.cpp and csrc/attention_backward.cpp as torch operators with gradients.

Inside, tensors are float32, α excepted. The weights are never a (T, S) matrix: a block of rows at a time is computed,
and what is not 0 is kept for the backward as far as `kept_entries` allows; the rest is computed again.
"""

import ctypes
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_entmax_asr.kernels.attention_inputs import OPTIONS, TENSORS, AttentionInputs
from hf_entmax_asr.kernels.libraries import call

KEPT_AT_LEAST = 1 << 22  # weights, of 6 bytes each at most
MOST_LANES = 16  # of a vector
MOST_KEYS_TO_KEEP = 1 << 16  # their places are kept in 16 bits


class _Kept(NamedTuple):
    """What the forward leaves for the backward; empty where there will be none."""

    stats: Tensor  # (B, H, T, 2) float32: max z and t of each row
    kept_at: Tensor  # (B, H, T) int64: where its weights are kept
    kept_count: Tensor  # (B, H, T) int32: and how many, −1 for none, −2 for the whole row
    kept_weights: Tensor  # float32
    kept_places: Tensor  # int16: which keys they are of


_KEPT_SCHEMA = ", ".join(f"Tensor {name}" for name in _Kept._fields)


class _Problem(ctypes.Structure):
    """struct Problem of csrc/attention.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "heads", "queries", "keys", "width", "value_width")),
        ("causal", ctypes.c_int32),
        ("chunks", ctypes.c_int32),
        ("chunk_size", ctypes.c_int32),
        ("left_chunks", ctypes.c_int32),
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


def entmax_attention(inputs: AttentionInputs) -> Tensor:
    """As `hf_entmax_asr.model.entmax_attention.entmax_attention`, for inputs in float32, bfloat16 or float16."""
    keep = inputs.needs_gradients()
    mask, bias = inputs.mask, inputs.bias
    wide = inputs._replace(
        query=inputs.query.float(),
        key=inputs.key.float(),
        value=inputs.value.float(),
        alpha=inputs.alpha.double(),
        mask=None if mask is None else _as_4_dims(mask),
        bias=None if bias is None else _as_4_dims(bias.float()),
    ).with_seed()
    # A decoding step is so short that torch's way to an operator would take as long as the operator.
    if keep or torch.compiler.is_compiling() or any(type(t) is not Tensor for t in wide.tensors if t is not None):
        out = attend(*wide, keep)[0]
    else:
        out = _attend(wide, None)
    return out.to(inputs.value.dtype)


def _as_4_dims(x: Tensor) -> Tensor:
    return x.reshape((1,) * (4 - x.dim()) + x.shape)


def kept_entries(batch: int, heads: int, queries: int, keys: int) -> int:
    """How many weights may be kept for the backward: all of a small problem, 1/16 of a large one."""
    entries = batch * heads * queries * (keys + MOST_LANES)  # dense rows are kept up to a whole vector
    if keys > MOST_KEYS_TO_KEEP:
        return 0
    return min(entries, max(entries // 16, KEPT_AT_LEAST))


def _attend(inputs: AttentionInputs, kept: _Kept | None) -> Tensor:
    """Output (B, H, T, E), laid out as (B, T, H, E); what the backward needs is put into `kept`."""
    out = _as_model(inputs.value, inputs.query.shape[2])
    if not out.numel():
        return out
    problem, _held = _problem(inputs)
    problem.put(out=out)
    used = None if kept is None else torch.zeros(1, dtype=torch.int64)
    if kept is not None:
        problem.put(**kept._asdict(), kept_used=used)
        problem.capacity = kept.kept_weights.numel()
    call("attention", "attention_forward", ctypes.byref(problem))
    return out


def _room_to_keep(inputs: AttentionInputs, keep: bool) -> _Kept:
    query, sizes = inputs.query, inputs.sizes
    rows = sizes[:3] if keep else (0, 0, 0)
    kept = kept_entries(*sizes) if keep else 0
    return _Kept(
        stats=query.new_empty(*rows, 2),
        kept_at=query.new_empty(rows, dtype=torch.int64),
        kept_count=query.new_empty(rows, dtype=torch.int32),
        kept_weights=query.new_empty(kept),
        kept_places=query.new_empty(kept, dtype=torch.int16),
    )


def _as_model(x: Tensor, rows: int) -> Tensor:
    """An empty (B, H, rows, width of x), laid out as (B, rows, H, width): models merge the heads."""
    batch, heads, _, width = x.shape
    return x.new_empty(batch, rows, heads, width).transpose(1, 2)


@torch.library.custom_op(
    "hf_entmax_asr::attend_in_chunks",
    mutates_args=(),
    device_types="cpu",
    schema=f"({TENSORS}, {OPTIONS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def attend(*arguments: Any) -> tuple[Tensor, ...]:
    """The output, and what is kept for the backward."""
    inputs, _, (keep,) = AttentionInputs.split(arguments)
    kept = _room_to_keep(inputs, keep)
    return _attend(inputs, kept if keep else None), *kept


@attend.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, _, (keep,) = AttentionInputs.split(arguments)
    return _as_model(inputs.value, inputs.query.shape[2]), *_room_to_keep(inputs, keep)


@torch.library.custom_op(
    "hf_entmax_asr::attend_in_chunks_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {TENSORS}, {_KEPT_SCHEMA}, {OPTIONS}, bool for_alpha, bool for_bias) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def attend_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, and where asked (else empty) of α (B, H, 1, 1) and of the bias."""
    inputs, kept, (for_alpha, for_bias) = AttentionInputs.split(arguments, saved=len(_Kept._fields))
    query, key, value, bias = inputs.query, inputs.key, inputs.value, inputs.bias
    batch, heads, queries, keys = sizes = inputs.sizes
    d_query = _as_model(query, queries)
    d_alpha = query.new_zeros(sizes[:3]) if for_alpha else query.new_empty(0)
    d_bias = query.new_zeros(bias.shape if bias is not None and for_bias else (0,))
    if query.numel() and key.numel() and value.numel():
        problem, _held = _problem(inputs)
        if for_bias and d_bias.shape[2] == 1:  # all rows add to one
            problem.chunks = 1
        d_key = query.new_empty(problem.chunks, batch, keys, heads, key.shape[3])
        d_value = query.new_empty(problem.chunks, batch, keys, heads, value.shape[3])
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        problem.put(
            **_Kept(*kept)._asdict(),
            grad=grad,
            d_query=d_query,
            d_key=d_key,
            d_value=d_value,
            d_alpha=d_alpha if for_alpha else None,
            d_bias=d_bias.expand(sizes) if for_bias else None,
        )
        call("attention_backward", "attention_backward", ctypes.byref(problem))
        d_key, d_value = ((t[0] if len(t) == 1 else t.sum(0)).transpose(1, 2) for t in (d_key, d_value))
    else:
        d_query, d_key, d_value = (t.new_zeros(t.shape) for t in (query, key, value))
    return d_query, d_key, d_value, d_alpha.sum(2)[..., None, None] if for_alpha else d_alpha, d_bias


@attend_backward.register_fake
def _(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, _, (for_alpha, for_bias) = AttentionInputs.split(arguments, saved=len(_Kept._fields))
    query, bias = inputs.query, inputs.bias
    tensors = (query, inputs.key, inputs.value)
    if all(t.numel() for t in tensors):
        gradients = [_as_model(t, t.shape[2]) for t in tensors]
    else:
        gradients = [t.new_empty(t.shape) for t in tensors]
    d_alpha = query.new_empty((*query.shape[:2], 1, 1) if for_alpha else (0,))
    return *gradients, d_alpha, query.new_empty(bias.shape if bias is not None and for_bias else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given, _, (keep,) = AttentionInputs.split(inputs)
    ctx.options = given.options
    if keep:
        ctx.save_for_backward(*given.tensors, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    if grad is None:
        return (None,) * len(needs)
    wanted = AttentionInputs.split(needs)[0]
    arguments = (*ctx.saved_tensors, *ctx.options, wanted.alpha, wanted.bias)
    inputs = AttentionInputs.split(arguments, saved=len(_Kept._fields))[0]
    *gradients, d_alpha, d_bias = attend_backward(grad, *arguments)
    if wanted.alpha:
        d_alpha = d_alpha.double().sum_to_size(inputs.alpha.shape)
    every = (*gradients, d_alpha, None, d_bias, *(None,) * 7)
    return tuple(g if need else None for g, need in zip(every, needs, strict=True))


attend.register_autograd(_backward, setup_context=_setup_context)


def _chunks(pairs: int, queries: int) -> int:
    """Into how many parts the rows of each head are cut, so that every thread has work."""
    threads = torch.get_num_threads()
    return 1 if pairs >= threads else max(1, min(math.ceil(2 * threads / pairs), queries // 64))


def _problem(inputs: AttentionInputs) -> tuple[_Problem, list[Tensor | None]]:
    """What the C side needs of the inputs, and the tensors that must stay alive for it."""
    batch, heads, queries, keys = sizes = inputs.sizes
    width, value_width = inputs.query.shape[3], inputs.value.shape[3]
    problem = _Problem(batch, heads, queries, keys, width, value_width, inputs.is_causal)
    problem.scale, problem.dropout = inputs.scale, inputs.dropout_p
    problem.chunk_size, problem.left_chunks = inputs.chunk_size, inputs.left_chunks
    problem.chunks = _chunks(batch * heads, queries)
    problem.seed = 0 if inputs.seed is None else int(inputs.seed)
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (inputs.query, inputs.key, inputs.value))
    allowed, bias = (None if t is None else t.expand(sizes) for t in (inputs.mask, inputs.bias))
    alpha = inputs.alpha.expand(batch, heads, 1, 1)
    problem.put(query=query, key=key, value=value, alpha=alpha, allowed=allowed, bias=bias)
    return problem, [query, key, value, alpha, allowed, bias]

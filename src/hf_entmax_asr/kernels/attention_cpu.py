"""α-entmax attention on the CPU: csrc/attention.cpp and csrc/attention_backward.cpp as torch operators with gradients.

Inside, tensors are float32, α excepted. The weights are never a (T, S) matrix: a block of rows at a time is computed,
and what is not 0 is kept for the backward as far as `kept_entries` allows; the rest is computed again.
"""

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_entmax_asr.kernels.attention_inputs import OPTIONS, TENSORS, AttentionInputs
from hf_entmax_asr.kernels.libraries import call, needs_an_operator

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


_PROBLEM = struct.Struct(
    "@8i 2f Q 3P 9q P 2q P 4q P 4q 5P q P P 3q P 3q 3P 3q 2P 4q"
)  # struct Problem of csrc/attention.h


class _Problem:
    """The fields of struct Problem, in its order. A call of ten microseconds has no time for a ctypes.Structure whose
    fields are set one by one."""

    def __init__(self, inputs: AttentionInputs):
        self.sizes = batch, heads, queries, _ = inputs.sizes
        query, key, value = (
            t if t.stride(-1) == 1 else t.contiguous() for t in (inputs.query, inputs.key, inputs.value)
        )
        alpha = inputs.alpha
        self.held = [query, key, value, alpha, inputs.mask, inputs.bias]  # must outlive the call
        self.widths = query.shape[3], value.shape[3]
        self.chunks = _chunks(batch * heads, queries)
        self.options = inputs.scale, inputs.dropout_p, 0 if inputs.seed is None else int(inputs.seed)
        self.is_causal = inputs.is_causal
        strides = [s if n > 1 else 0 for s, n in zip(alpha.stride()[:2], alpha.shape[:2], strict=True)]
        self.given = [query.data_ptr(), key.data_ptr(), value.data_ptr()]
        self.given += [*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], alpha.data_ptr(), *strides]
        for tensor in (inputs.mask, inputs.bias):
            self.given += _place(None if tensor is None else tensor.expand(self.sizes), 4)
        self.kept: list[int] = [0] * 7  # pointers of _Kept, capacity, pointer of how much is used
        self.out, self.grads = [0] * 4, [0] * 16

    def keep(self, kept: "_Kept", used: Tensor | None) -> None:
        self.kept = [*(t.data_ptr() for t in kept), kept.kept_weights.numel(), 0 if used is None else used.data_ptr()]

    def call(self, library: str) -> None:
        scale, dropout, seed = self.options
        packed = _PROBLEM.pack(
            *self.sizes, *self.widths, self.is_causal, self.chunks, scale, dropout, seed, *self.given, *self.kept,
            *self.out, *self.grads,
        )  # fmt: skip
        call(library, library if library == "attention_backward" else "attention_forward", packed)


def _place(tensor: Tensor | None, dims: int) -> list[int]:
    """Pointer and strides; nothing where there is none."""
    return [0] * (1 + dims) if tensor is None else [tensor.data_ptr(), *tensor.stride()[:dims]]


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
    # torch's way to an operator of Python's takes as long as attention over a hundred keys.
    if needs_an_operator(*wide.tensors):
        out = attend(*wide, keep)[0]
    elif keep:
        out = _Attend.apply(*wide)
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
    problem = _Problem(inputs)
    problem.out = _place(out, 3)
    used = None if kept is None else torch.zeros(1, dtype=torch.int64)
    if kept is not None:
        problem.keep(kept, used)
    problem.call("attention")
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
    "hf_entmax_asr::attention",
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


def _gradients(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, and where asked (else empty) of α (B, H, 1, 1) and of the bias."""
    inputs, kept, (for_alpha, for_bias) = AttentionInputs.split(arguments, saved=len(_Kept._fields))
    query, key, value, bias = inputs.query, inputs.key, inputs.value, inputs.bias
    batch, heads, queries, keys = sizes = inputs.sizes
    d_query = _as_model(query, queries)
    d_alpha = query.new_zeros(sizes[:3]) if for_alpha else query.new_empty(0)
    d_bias = query.new_zeros(bias.shape if bias is not None and for_bias else (0,))
    if query.numel() and key.numel() and value.numel():
        problem = _Problem(inputs)
        if for_bias and d_bias.shape[2] == 1:  # all rows add to one
            problem.chunks = 1
        d_key = query.new_empty(problem.chunks, batch, keys, heads, key.shape[3])
        d_value = query.new_empty(problem.chunks, batch, keys, heads, value.shape[3])
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        problem.keep(_Kept(*kept), None)
        problem.grads = [
            *_place(grad, 3), d_query.data_ptr(), d_key.data_ptr(), d_value.data_ptr(), *d_query.stride()[:3],
            d_alpha.data_ptr() if for_alpha else 0, *_place(d_bias.expand(sizes) if for_bias else None, 4),
        ]  # fmt: skip
        problem.call("attention_backward")
        d_key, d_value = ((t[0] if len(t) == 1 else t.sum(0)).transpose(1, 2) for t in (d_key, d_value))
    else:
        d_query, d_key, d_value = (t.new_zeros(t.shape) for t in (query, key, value))
    return d_query, d_key, d_value, d_alpha.sum(2)[..., None, None] if for_alpha else d_alpha, d_bias


@torch.library.custom_op(
    "hf_entmax_asr::attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {TENSORS}, {_KEPT_SCHEMA}, {OPTIONS}, bool for_alpha, bool for_bias) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def attend_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `_gradients`."""
    return _gradients(grad, *arguments)


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
    return _backward_with(attend_backward, ctx, grad)


def _backward_with(gradients: Callable, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    if grad is None:
        return (None,) * len(needs)
    wanted = AttentionInputs.split(needs)[0]
    arguments = (*ctx.saved_tensors, *ctx.options, wanted.alpha, wanted.bias)
    inputs = AttentionInputs.split(arguments, saved=len(_Kept._fields))[0]
    *of_tensors, d_alpha, d_bias = gradients(grad, *arguments)
    if wanted.alpha:
        d_alpha = d_alpha.double().sum_to_size(inputs.alpha.shape)
    every = (*of_tensors, d_alpha, None, d_bias, *[None] * (len(needs) - 6))
    return tuple(g if need else None for g, need in zip(every, needs, strict=True))


attend.register_autograd(_backward, setup_context=_setup_context)


class _Attend(torch.autograd.Function):
    """`attend` with its gradients, without an operator."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        inputs = AttentionInputs(*arguments)
        kept = _room_to_keep(inputs, keep=True)
        out = _attend(inputs, kept)
        ctx.options = inputs.options
        ctx.save_for_backward(*inputs.tensors, *kept)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward_with(_gradients, ctx, grad)


def _chunks(pairs: int, queries: int) -> int:
    """Into how many parts the rows of each head are cut, so that every thread has work."""
    threads = torch.get_num_threads()
    return 1 if pairs >= threads else max(1, min(math.ceil(2 * threads / pairs), queries // 64))

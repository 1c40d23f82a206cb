"""α-entmax attention on NVIDIA GPUs, in Triton: forward and backward as plain functions, and both as one operation.

softmax's place is taken by α-entmax with one α per head, which has a gradient. The kernels and how they work are in
`triton_attention_kernels`; the memory they need besides inputs and outputs is a few numbers per row and 5 bytes per
tile.
"""

import torch
import triton
from torch import Tensor

from hf_entmax_asr.kernels.backend import DTYPES

from . import triton_attention_kernels as kernels
from .triton_attention_kernels import Plan
from .triton_math import LAUNCH_OPTIONS, on_device_of

# Tile (queries, keys) and warps for heads up to a width: the largest tried that neither spill registers nor need more
# than the 99 KB of shared memory of the smaller GPUs, as ptxas reports for sm_80 and sm_90.
HALF_TILES = ((64, (64, 32, 4)), (128, (64, 32, 8)), (256, (32, 32, 8)), (512, (16, 16, 8)))
FLOAT_TILES = ((128, (32, 32, 8)), (256, (16, 16, 8)))
DROPOUT_WIDENS = 4  # the hash of dropout takes registers like that much wider heads


def attention_forward(
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
    """entmax(scale · Q Kᵀ + bias, α) V, without its weights ever being stored.

    Args:
        query: (B, H, T, D); with `key` and `value` of one dtype: float32, bfloat16 or float16.
        key: (B, H, S, D).
        value: (B, H, S, Dv).
        alpha: (), (1,), (H,) or (B, H), or one of these followed by two dimensions of size 1. In [1, 2], not checked.
        mask: boolean, broadcastable to (B, H, T, S), true where attention is allowed.
        bias: added to the scores, broadcastable to (B, H, T, S).
        seed: (1,) int64 for dropout, or None for none.
        is_causal: query i sees the keys j <= i.
        scale: of Q Kᵀ.
        dropout_p: probability that a weight is dropped, if there is a seed.

    Returns:
        out (B, H, T, Dv), laid out as (B, T, H, Dv); and for the backward the maximum, threshold and lift of each row,
        (B, H, T, 3) float32, and the flags of tiles that are not zero, (B, H, T / tile, S / tile) uint8. An empty row
        gives zeros.

    Raises:
        ValueError: dtypes or sizes that the kernels do not take (`attention_takes`).
    """
    if not attention_takes(query, key, value, bias):
        raise ValueError(
            f"query {tuple(query.shape)} {query.dtype}, key {tuple(key.shape)} {key.dtype}, value {tuple(value.shape)} "
            f"{value.dtype}: the Triton kernels take one dtype of float32, bfloat16 and float16 for all three, heads "
            f"of width up to {_tiles(query.dtype)[-1][0]}, and fewer than 2³¹ scores a head. Use the eager form."
        )
    (batch, heads, queries, _), keys = query.shape, key.shape[2]
    plan = _plan(query, value, keys, is_causal, bias, seed is not None)
    row_blocks, key_blocks = triton.cdiv(queries, plan.block_t), triton.cdiv(keys, plan.block_s)
    out = empty_as_model(query, queries, value.shape[3])
    stats = torch.empty(batch, heads, queries, 3, dtype=torch.float32, device=query.device)
    flags = torch.zeros(batch, heads, row_blocks, key_blocks, dtype=torch.uint8, device=query.device)
    if out.numel() > 0:
        live = torch.empty(flags.shape, dtype=torch.int32, device=query.device)
        arguments, strides = _arguments(query, key, value, alpha, mask, bias)
        with on_device_of(query):
            kernels.forward[(batch * heads * row_blocks,)](
                *arguments, seed, out, stats, flags, live, (*strides, out.stride()), (heads, queries, keys), scale,
                dropout_p, plan, **_options(plan)
            )  # fmt: skip
    return out, stats, flags


def attention_backward(
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
    needs_alpha: bool = True,
    needs_bias: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `attention_forward` for query, key, value, α and bias, from its arguments, `grad`, the gradient of
    its output, and what else it returned. Those of α and bias are empty where not needed; that of a bias which several
    rows share is added up in an order that is not fixed."""
    (batch, heads, queries, _), keys = query.shape, key.shape[2]
    plan = _plan(query, value, keys, is_causal, bias, seed is not None)
    grads = [empty_as_model(x, x.shape[2], x.shape[3]) for x in (query, key, value)]
    row_blocks, key_blocks = flags.shape[2:]
    for_alpha = query.new_zeros((batch, heads, row_blocks), dtype=torch.float32) if needs_alpha else None
    for_bias = query.new_zeros(bias.shape if bias is not None and needs_bias else (0,), dtype=torch.float32)
    if query.numel() and value.numel() and keys:
        arguments, strides = _arguments(query, key, value, alpha, mask, bias)
        grad = _rows_together(grad.to(query.dtype))
        bias_view = None if bias is None or not needs_bias else _as_scores(for_bias, query, key)
        bias_strides = (0, 0, 0, 0) if bias_view is None else bias_view.stride()
        live = torch.empty(flags.numel(), dtype=torch.int32, device=query.device)
        means = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
        saved = (seed, stats, flags, live, means)
        strides = (*strides, grad.stride(), bias_strides, *(x.stride() for x in grads))
        rest = (strides, (heads, queries, keys), scale, dropout_p, plan)
        with on_device_of(query):
            kernels.backward_queries[(batch * heads * row_blocks,)](
                grad, *arguments, *saved, grads[0], for_alpha, bias_view, *rest, **_options(plan)
            )
            kernels.backward_keys[(batch * heads * key_blocks,)](
                grad, *arguments, *saved, grads[1], grads[2], *rest, **_options(plan)
            )
    else:
        for x in grads:
            x.zero_()
    if for_alpha is None:
        for_alpha = alpha.new_empty(0)
    else:
        summed = for_alpha.double().sum(-1).sum_to_size(_squeezed(alpha).shape)
        for_alpha = summed.view(alpha.shape).to(alpha.dtype)
    return grads[0], grads[1], grads[2], for_alpha, for_bias if bias is None else for_bias.to(bias.dtype)


def attention_takes(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels can do this problem; if not, the eager form can."""
    widest = max(query.shape[3], value.shape[3])
    return (
        query.dtype == key.dtype == value.dtype
        and query.dtype in DTYPES
        and (bias is None or bias.dtype in DTYPES)
        and widest <= _tiles(query.dtype)[-1][0]
        and query.shape[2] * key.shape[2] < 2**31  # scores of a head, which dropout numbers
    )


def attention_tiles(
    query: Tensor, value: Tensor, keys: int, is_causal: bool, bias: Tensor | None, dropout: bool
) -> tuple[int, int]:
    """How many tiles the queries and the keys of a head are cut into."""
    plan = _plan(query, value, keys, is_causal, bias, dropout)
    return triton.cdiv(query.shape[2], plan.block_t), triton.cdiv(keys, plan.block_s)


def _plan(query: Tensor, value: Tensor, keys: int, is_causal: bool, bias: Tensor | None, dropout: bool) -> Plan:
    width, value_width = query.shape[3], value.shape[3]
    block_width, block_value = (max(16, triton.next_power_of_2(w)) for w in (width, value_width))
    widest = max(width, value_width)
    if dropout:
        widest = min(widest * DROPOUT_WIDENS, _tiles(query.dtype)[-1][0])
    block_t, block_s, warps = next(tile for most, tile in _tiles(query.dtype) if widest <= most)
    block_t = min(block_t, max(16, triton.next_power_of_2(query.shape[2])))
    block_s = min(block_s, max(16, triton.next_power_of_2(keys)))
    # float32 products are rounded to TF32 where PyTorch's own may be.
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    per_key = bias is not None and (bias.dim() < 2 or bias.shape[-2] == 1)
    return Plan(is_causal, width, value_width, block_width, block_value, block_t, block_s, precision, per_key, warps)


def _tiles(dtype: torch.dtype):
    return FLOAT_TILES if dtype == torch.float32 else HALF_TILES


def _options(plan: Plan) -> dict:
    return {"num_warps": plan.warps, "num_stages": 2, **LAUNCH_OPTIONS}


def _arguments(query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, mask: Tensor | None, bias: Tensor | None):
    """The tensors as the kernels take them, and their strides."""
    head_alpha = _squeezed(alpha).expand(query.shape[:2])
    inputs = tuple(_rows_together(x) for x in (query, key, value))
    views = tuple(None if x is None else _as_scores(x, query, key) for x in (mask, bias))
    strides = tuple(x.stride() for x in (*inputs, head_alpha))
    return (*inputs, head_alpha, *views), strides + tuple((0,) * 4 if x is None else x.stride() for x in views)


def _squeezed(alpha: Tensor) -> Tensor:
    """(..., 1, 1) -> (...)."""
    return alpha[..., 0, 0] if alpha.dim() > 2 else alpha


def empty_as_model(x: Tensor, length: int, width: int) -> Tensor:
    """(B, H, length, width), laid out as (B, length, H, width): models merge the heads."""
    return x.new_empty(x.shape[0], length, x.shape[1], width).transpose(1, 2)


def _rows_together(x: Tensor) -> Tensor:
    """Kernels read rows of neighbouring numbers."""
    return x if x.stride(3) == 1 else x.contiguous()


def _as_scores(x: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return x.expand(*query.shape[:3], key.shape[2])

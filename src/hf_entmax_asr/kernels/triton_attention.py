"""α-entmax attention on NVIDIA GPUs, in Triton: forward and backward, and both as torch operators with gradients.

softmax's place is taken by α-entmax with one α per head, which has a gradient. The kernels and how they work are in
`triton_attention_kernels`; the memory they need besides inputs and outputs is a few numbers per row and 5 bytes per
tile.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from hf_entmax_asr.kernels import triton_attention_kernels as kernels
from hf_entmax_asr.kernels.attention_inputs import OPTIONS, TENSORS, AttentionInputs
from hf_entmax_asr.kernels.modes import DTYPES
from hf_entmax_asr.kernels.triton_attention_kernels import Plan
from hf_entmax_asr.kernels.triton_math import LAUNCH_OPTIONS, on_device_of

# Tile (queries, keys) and warps for heads up to a width: the largest tried that neither spill registers nor need more
# than the 99 KB of shared memory of the smaller GPUs, as ptxas reports for sm_80 and sm_90.
Tiles = tuple[tuple[int, tuple[int, int, int]], ...]
HALF_TILES: Tiles = ((64, (64, 32, 4)), (128, (64, 32, 8)), (256, (32, 32, 8)), (512, (16, 16, 8)))
FLOAT_TILES: Tiles = ((128, (32, 32, 8)), (256, (16, 16, 8)))
DROPOUT_WIDENS = 4  # the hash of dropout takes registers like that much wider heads


def entmax_attention(inputs: AttentionInputs) -> Tensor | None:
    """As `hf_entmax_asr.model.entmax_attention.entmax_attention`; None for what the kernels do not take."""
    if not attention_takes(inputs):
        return None
    return attend(*inputs.with_seed())[0]


def attention_takes(inputs: AttentionInputs) -> bool:
    """Whether the kernels can do this problem; if not, the eager form can."""
    query, key, value, bias = inputs.query, inputs.key, inputs.value, inputs.bias
    widest = max(query.shape[3], value.shape[3])
    return (
        query.dtype == key.dtype == value.dtype
        and query.dtype in DTYPES
        and (bias is None or bias.dtype in DTYPES)
        and widest <= _tiles(query.dtype)[-1][0]
        and query.shape[2] * key.shape[2] < 2**31  # scores of a head, which dropout numbers
    )


def attention_forward(inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
    """entmax(scale · Q Kᵀ + bias, α) V, without its weights ever being stored.

    Returns:
        out (B, H, T, E), laid out as (B, T, H, E); and for the backward the maximum, threshold and lift of each row,
        (B, H, T, 3) float32, and the flags of tiles that are not zero, (B, H, T / tile, S / tile) uint8. An empty row
        gives zeros.

    Raises:
        ValueError: dtypes or sizes that the kernels do not take (`attention_takes`).
    """
    query, key, value = inputs.query, inputs.key, inputs.value
    if not attention_takes(inputs):
        raise ValueError(
            f"query {tuple(query.shape)} {query.dtype}, key {tuple(key.shape)} {key.dtype}, value {tuple(value.shape)} "
            f"{value.dtype}: the Triton kernels take one dtype of float32, bfloat16 and float16 for all three, heads "
            f"of width up to {_tiles(query.dtype)[-1][0]}, and fewer than 2³¹ scores a head. Use the eager form."
        )
    batch, heads, queries, keys = inputs.sizes
    plan = _plan(inputs)
    out, stats, flags = _outputs(inputs, plan)
    flags.zero_()
    if out.numel() > 0:
        live = torch.empty(flags.shape, dtype=torch.int32, device=query.device)
        arguments, strides = _arguments(inputs)
        with on_device_of(query):
            kernels.forward[(batch * heads * flags.shape[2],)](
                *arguments, inputs.seed, out, stats, flags, live, (*strides, out.stride()),
                (heads, queries, keys, inputs.chunk_size, inputs.left_chunks), inputs.scale, inputs.dropout_p, plan,
                **_options(plan)
            )  # fmt: skip
    return out, stats, flags


def attention_backward(
    grad: Tensor,
    inputs: AttentionInputs,
    stats: Tensor,
    flags: Tensor,
    needs_alpha: bool = True,
    needs_bias: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `attention_forward` for query, key, value, α and bias, from its inputs, `grad`, the gradient of its
    output, and what else it returned. Those of α and bias are empty where not needed; that of a bias which several rows
    share is added up in an order that is not fixed."""
    query, key, value, alpha, bias = inputs.query, inputs.key, inputs.value, inputs.alpha, inputs.bias
    batch, heads, queries, keys = inputs.sizes
    plan = _plan(inputs)
    grads = [_empty_as_model(x, x.shape[2], x.shape[3]) for x in (query, key, value)]
    row_blocks, key_blocks = flags.shape[2:]
    for_alpha = query.new_zeros((batch, heads, row_blocks), dtype=torch.float32) if needs_alpha else None
    for_bias = query.new_zeros(bias.shape if bias is not None and needs_bias else (0,), dtype=torch.float32)
    if query.numel() and value.numel() and keys:
        arguments, strides = _arguments(inputs)
        grad = _rows_together(grad.to(query.dtype))
        bias_view = None if bias is None or not needs_bias else for_bias.expand(inputs.sizes)
        bias_strides = (0, 0, 0, 0) if bias_view is None else bias_view.stride()
        live = torch.empty(flags.numel(), dtype=torch.int32, device=query.device)
        means = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
        saved = (inputs.seed, stats, flags, live, means)
        strides = (*strides, grad.stride(), bias_strides, *(x.stride() for x in grads))
        sizes = (heads, queries, keys, inputs.chunk_size, inputs.left_chunks)
        rest = (strides, sizes, inputs.scale, inputs.dropout_p, plan)
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
        d_alpha = alpha.new_empty(0)
    else:
        d_alpha = for_alpha.double().sum(-1)[..., None, None].sum_to_size(alpha.shape).to(alpha.dtype)
    return grads[0], grads[1], grads[2], d_alpha, for_bias if bias is None else for_bias.to(bias.dtype)


@torch.library.custom_op(
    "hf_entmax_asr::triton_attend_in_chunks",
    mutates_args=(),
    schema=f"({TENSORS}, {OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def attend(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return attention_forward(AttentionInputs(*inputs))


@attend.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    given = AttentionInputs(*inputs)
    return _outputs(given, _plan(given))


@torch.library.custom_op(
    "hf_entmax_asr::triton_attend_in_chunks_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {TENSORS}, Tensor stats, Tensor flags, {OPTIONS}, bool needs_alpha, bool needs_bias) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def attend_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs, saved, needs = AttentionInputs.split(arguments, saved=2)
    return attention_backward(grad, inputs, *saved, *needs)


@attend_backward.register_fake
def _(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, _, (needs_alpha, needs_bias) = AttentionInputs.split(arguments, saved=2)
    query, alpha, bias = inputs.query, inputs.alpha, inputs.bias
    gradients = [_empty_as_model(x, x.shape[2], x.shape[3]) for x in (query, inputs.key, inputs.value)]
    for_alpha = torch.empty_like(alpha) if needs_alpha else alpha.new_empty(0)
    if bias is None:
        return *gradients, for_alpha, query.new_empty(0, dtype=torch.float32)
    return *gradients, for_alpha, bias.new_empty(bias.shape if needs_bias else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = AttentionInputs(*inputs)
    ctx.save_for_backward(*given.tensors, *output[1:])
    ctx.options = given.options
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs = AttentionInputs(*ctx.needs_input_grad)
    if grad is None:
        return (None,) * len(needs)
    arguments = (*ctx.saved_tensors, *ctx.options, needs.alpha, needs.bias)
    *gradients, for_alpha, for_bias = attend_backward(grad, *arguments)
    every = (*gradients, for_alpha, None, for_bias, *(None,) * 6)
    return tuple(g if need else None for g, need in zip(every, needs, strict=True))


attend.register_autograd(_backward, setup_context=_setup_context)


def _outputs(inputs: AttentionInputs, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what `attention_forward` returns."""
    query, (batch, heads, queries, keys) = inputs.query, inputs.sizes
    tiles = (triton.cdiv(queries, plan.block_t), triton.cdiv(keys, plan.block_s))
    return (
        _empty_as_model(query, queries, inputs.value.shape[3]),
        query.new_empty(batch, heads, queries, 3, dtype=torch.float32),
        query.new_empty(batch, heads, *tiles, dtype=torch.uint8),
    )


def _plan(inputs: AttentionInputs) -> Plan:
    _, _, queries, keys = inputs.sizes
    dtype, width, value_width = inputs.query.dtype, inputs.query.shape[3], inputs.value.shape[3]
    block_width, block_value = (max(16, triton.next_power_of_2(w)) for w in (width, value_width))
    widest = max(width, value_width)
    if inputs.seed is not None:
        widest = min(widest * DROPOUT_WIDENS, _tiles(dtype)[-1][0])
    block_t, block_s, warps = next(tile for most, tile in _tiles(dtype) if widest <= most)
    block_t = min(block_t, max(16, triton.next_power_of_2(queries)))
    block_s = min(block_s, max(16, triton.next_power_of_2(keys)))
    # float32 products are rounded to TF32 where PyTorch's own may be.
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    per_key = inputs.bias is not None and (inputs.bias.dim() < 2 or inputs.bias.shape[-2] == 1)
    chunked = inputs.chunk_size > 0
    return Plan(
        inputs.is_causal, chunked, width, value_width, block_width, block_value, block_t, block_s, precision, per_key,
        warps,
    )  # fmt: skip


def _tiles(dtype: torch.dtype) -> Tiles:
    return FLOAT_TILES if dtype == torch.float32 else HALF_TILES


def _options(plan: Plan) -> dict[str, Any]:
    return {"num_warps": plan.warps, "num_stages": 2, **LAUNCH_OPTIONS}


def _arguments(inputs: AttentionInputs) -> tuple[tuple[Tensor | None, ...], tuple[tuple[int, ...], ...]]:
    """The tensors as the kernels take them, and their strides."""
    alpha = inputs.alpha[..., 0, 0].expand(inputs.sizes[:2])  # (B, H)
    tensors = (*(_rows_together(x) for x in (inputs.query, inputs.key, inputs.value)), alpha)
    views = tuple(None if x is None else x.expand(inputs.sizes) for x in (inputs.mask, inputs.bias))
    strides = tuple(x.stride() for x in tensors) + tuple((0,) * 4 if x is None else x.stride() for x in views)
    return (*tensors, *views), strides


def _empty_as_model(x: Tensor, length: int, width: int) -> Tensor:
    """(B, H, length, width), laid out as (B, length, H, width): models merge the heads."""
    return x.new_empty(x.shape[0], length, x.shape[1], width).transpose(1, 2)


def _rows_together(x: Tensor) -> Tensor:
    """Kernels read rows of neighbouring numbers."""
    return x if x.stride(3) == 1 else x.contiguous()

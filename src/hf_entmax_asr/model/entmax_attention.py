"""α-entmax attention as one pure function, transform(Q Kᵀ · scale) V with one α per head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import NO_CHUNKS, Chunks, chunk_mask
from .entmax import LARGEST_SIZE, check_alpha_range, check_sizes, entmax

try:  # the native form, where the package is installed; this file also travels alone
    from hf_entmax_asr.kernels import entmax_attention as native_entmax_attention
except ImportError:
    native_entmax_attention = None  # type: ignore[assignment]


def entmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: float | Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    is_causal: bool = False,
    chunks: Chunks = NO_CHUNKS,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """dropout(entmax(query keyᵀ · scale + bias, where mask allows)) value.

    Axes: B batch, H heads, T queries, S keys, D width of a head, E width of a value. Without `return_weights` the
    native form never holds a (T, S) matrix; this, the eager form, is the specification.

    Args:
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, E).
        alpha: a number, or a tensor of shape (H,) or one that broadcasts to (B, H, 1, 1); in [1, 2]. 1 is softmax.
        mask: boolean, broadcastable to (B, H, T, S), true where a query may read a key. A query that may read nothing
            gets zeros, with zero gradients.
        bias: floating, broadcastable to (B, H, T, S), added to the scaled scores; −∞ forbids a key as a mask does.
        is_causal: query i reads the keys 0 … i alone, besides what `mask` says.
        chunks: query i reads its chunk and some before it alone, besides that; see `Chunks`.
        scale: of the scores; 1/√D by default.
        dropout_p: rate of dropout on the weights; the caller passes 0 outside training.
        return_weights: also return the weights (B, H, T, S), before dropout.

    Returns:
        (B, H, T, E) in the dtype of `value`; with `return_weights` also (B, H, T, S). Differentiable in query, key,
        value, α and bias. For half precision the native form computes in float32 throughout, the eager form the weights
        alone.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, α outside [1, 2], dropout_p outside [0, 1].
    """
    _check_shapes(query, key, value)
    _check_over_scores(query, key, mask, bias)
    _check_rate(dropout_p)
    _check_chunks(chunks)
    alphas = _alpha_per_head(alpha, query)
    _check_devices(query, key=key, value=value, alpha=alphas, mask=mask, bias=bias)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if native_entmax_attention is not None and not return_weights:
        out = native_entmax_attention(query, key, value, alphas, mask, bias, is_causal, scale, dropout_p, chunks)
        if out is not None:
            return out
    scores = query * scale @ key.transpose(-1, -2)  # (B, H, T, S); scaled before, for float16's range
    if bias is not None:
        scores = scores + bias
    for limit in (Chunks(1) if is_causal else NO_CHUNKS, chunks):
        mask = chunk_mask(limit, scores, mask)
    weights = entmax(scores, alphas, mask=mask)
    out = F.dropout(weights, dropout_p).to(value.dtype) @ value
    return (out, weights) if return_weights else out


def _check_rate(dropout_p: float) -> None:
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p = {dropout_p} must lie in [0, 1].")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    q, k, v = query.shape, key.shape, value.shape
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be floating point.")
        check_sizes(name, tensor)
    if not (len(q) == len(k) == len(v) == 4):
        problem = ": each must have 4 dimensions, (batch, heads, positions, width)"
    elif q[:2] != k[:2] or k[:3] != v[:3] or q[3] != k[3]:
        problem = " do not fit: batch and heads must agree, query and key in width, key and value in positions"
    else:
        return
    raise ValueError(f"query {tuple(q)}, key {tuple(k)}, value {tuple(v)}{problem}.")


def _check_over_scores(query: Tensor, key: Tensor, mask: Tensor | None, bias: Tensor | None) -> None:
    """What goes over the scores (B, H, T, S): a boolean mask and a floating bias that broadcast to them."""
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype}; it must be boolean, true where a query may read a key. What is added to the scores "
            "is the argument bias."
        )
    if bias is not None and not bias.is_floating_point():
        raise ValueError(
            f"bias is {bias.dtype}; it must be floating, to be added to the scores. What says where a query may read a "
            "key is the argument mask, boolean."
        )
    scores = (*query.shape[:3], key.shape[2])
    for name, tensor in (("mask", mask), ("bias", bias)):
        if tensor is None:
            continue
        shape = tuple(tensor.shape)
        if len(shape) > 4 or any(m not in (1, n) for m, n in zip(shape[::-1], scores[::-1], strict=False)):
            raise ValueError(f"{name} has shape {shape}; it must broadcast to {scores}, (batch, heads, queries, keys).")


def _check_chunks(chunks: Chunks) -> None:
    if not (0 <= chunks[0] <= LARGEST_SIZE and -1 <= chunks[1] <= LARGEST_SIZE):
        raise ValueError(f"chunks = {tuple(chunks)}; the size must be at least 0, and the chunks before at least -1.")


def _check_devices(query: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != query.device:
            raise ValueError(
                f"{name} is on {tensor.device} and query on {query.device}; all must be on one device: "
                f"{name}.to(query.device)."
            )


def _alpha_per_head(alpha: float | Tensor, query: Tensor) -> Tensor:
    """α as (B or 1, H or 1, 1, 1)."""
    batch, heads = query.shape[:2]
    if not isinstance(alpha, Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64, device=query.device)
    shape = tuple(alpha.shape)
    if alpha.dim() == 1:
        alpha = alpha.view(-1, 1, 1)
    alpha = alpha.reshape((1,) * (4 - alpha.dim()) + tuple(alpha.shape)) if alpha.dim() < 4 else alpha
    if any(size not in (1, full) for size, full in zip(alpha.shape, (batch, heads, 1, 1), strict=True)):
        raise ValueError(
            f"alpha has shape {shape}; it must be a number, ({heads},), or broadcast to {(batch, heads, 1, 1)}."
        )
    check_alpha_range(alpha)
    return alpha

"""α-entmax attention as one pure function, transform(Q Kᵀ · scale) V with one α per head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .entmax import check_alpha_range, entmax

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
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """dropout(entmax(query keyᵀ · scale + mask)) value.

    Axes: B batch, H heads, T queries, S keys, D width of a head, E width of a value. Without `return_weights` the
    native form never holds a (T, S) matrix; this, the eager form, is the specification.

    Args:
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, E).
        alpha: a number, or a tensor of shape (H,) or one that broadcasts to (B, H, 1, 1); in [1, 2]. 1 is softmax.
        mask: broadcastable to (B, H, T, S): boolean, true where a query may read a key, or floating, added to the
            scores. A query that may read nothing gets zeros, with zero gradients.
        is_causal: query i reads the keys 0 … i alone, besides what `mask` says.
        scale: of the scores; 1/√D by default.
        dropout_p: rate of dropout on the weights; the caller passes 0 outside training.
        return_weights: also return the weights (B, H, T, S), before dropout.

    Returns:
        (B, H, T, E) in the dtype of `value`; with `return_weights` also (B, H, T, S). Differentiable in query, key,
        value, α and a floating mask. For half precision the native form computes in float32 throughout, the eager form
        the weights alone.

    Raises:
        ValueError: shapes that do not fit, α outside [1, 2], dropout_p outside [0, 1].
    """
    _check_shapes(query, key, value, mask)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p = {dropout_p} must lie in [0, 1].")
    alphas = _alpha_per_head(alpha, query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if native_entmax_attention is not None and not return_weights:
        out = native_entmax_attention(query, key, value, alphas, mask, is_causal, scale, dropout_p)
        if out is not None:
            return out
    scores = query * scale @ key.transpose(-1, -2)  # (B, H, T, S); scaled before, for float16's range
    allowed = mask if mask is not None and mask.dtype == torch.bool else None
    if mask is not None and allowed is None:
        scores = scores + mask
    if is_causal:
        earlier = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        allowed = earlier if allowed is None else allowed & earlier
    weights = entmax(scores, alphas, mask=allowed)
    out = F.dropout(weights, dropout_p).to(value.dtype) @ value
    return (out, weights) if return_weights else out


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not (query.dim() == key.dim() == value.dim() == 4):
        raise ValueError(f"{shapes}: each must have 4 dimensions, (batch, heads, positions, width).")
    if query.shape[:2] != key.shape[:2] or key.shape[:3] != value.shape[:3] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"{shapes} do not fit: batch and heads must agree, query and key in width, key and value in positions."
        )
    if mask is not None:
        scores = (*query.shape[:3], key.shape[2])
        fits = mask.dim() <= 4 and all(m in (1, n) for m, n in zip(mask.shape[::-1], scores[::-1], strict=False))
        if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; it must be boolean or floating and broadcast to "
                f"{scores}."
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

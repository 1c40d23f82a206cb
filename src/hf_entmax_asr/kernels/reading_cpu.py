"""Hard reading of monotonic heads on the CPU: csrc/reading.cpp. It has no gradient, so it is no torch operator."""

import ctypes

import torch
from torch import Tensor

from hf_entmax_asr.kernels.libraries import call, pointer


class _Reading(ctypes.Structure):
    """struct Reading of csrc/reading.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "heads", "targets", "positions", "width", "value_width")),
        ("cumulative", ctypes.c_int32),
        ("limit", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((f"{name}_stride", ctypes.c_int64 * 3) for name in ("query", "key", "value")),
        *((name, ctypes.c_void_p) for name in ("bias", "start", "mask", "context")),
        ("context_stride", ctypes.c_int64 * 3),
        ("boundary", ctypes.c_void_p),
    )


def hard_reading(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    start: Tensor | None,
    source_mask: Tensor | None,
    rule: str,
    limit: float,
) -> tuple[Tensor, Tensor] | None:
    """As `hf_entmax_asr.model.reading.hard_reading`, with the `firing_limit` of its probability, for float32 and
    without gradients; None for anything else, which includes what that refuses: native code reads wherever a wrong
    shape or position points."""
    if not (_fit(query, key, value, bias, start, source_mask) and rule in ("threshold", "cumulative")):
        return None
    batch, heads, targets, width = query.shape
    positions, value_width = value.shape[2:]
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    context = query.new_empty(batch, targets, heads, value_width).transpose(1, 2)
    boundary = torch.empty(batch, heads, targets, dtype=torch.long)
    bias = bias.contiguous()
    start = None if start is None else start.contiguous()
    mask = None if source_mask is None else source_mask.contiguous()
    strides = [(ctypes.c_int64 * 3)(*t.stride()[:3]) for t in (query, key, value, context)]
    problem = _Reading(
        batch, heads, targets, positions, width, value_width, rule == "cumulative", limit,
        *map(pointer, (query, key, value)), *strides[:3],
        *map(pointer, (bias, start, mask, context)), strides[3], pointer(boundary),
    )  # fmt: skip
    call("reading", "read_hard", ctypes.byref(problem))
    return context, boundary


def _fit(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, start: Tensor | None, source_mask: Tensor | None
) -> bool:
    """Whether native code may see the tensors: float32 of shapes that fit, nothing empty, and starts within the audio
    (int64)."""
    if not (query.dim() == key.dim() == value.dim() == 4 and query.numel() and value.numel()):
        return False
    batch, heads, _, width = query.shape
    positions = key.shape[2]
    return (
        all(t.dtype == torch.float32 for t in (query, key, value, bias))
        and key.shape == (batch, heads, positions, width)
        and value.shape[:3] == key.shape[:3]
        and bias.shape == (heads,)
        and (source_mask is None or (source_mask.dtype == torch.bool and source_mask.shape == (batch, positions)))
        and (start is None or (start.dtype == torch.int64 and start.shape == (batch, heads)))
        and (start is None or _all_within(start, positions))
    )


def _all_within(start: Tensor, positions: int) -> bool:
    low, high = torch.aminmax(start)
    return int(low) >= 0 and int(high) < positions

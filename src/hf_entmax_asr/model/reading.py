"""Hard reading: where monotonic heads stop for each token, and what they read there."""

import torch
from torch import Tensor

from .alignment import firing_limit, hard_alignment

try:  # the native form, where the package is installed; this file also travels alone
    from hf_entmax_asr.kernels import hard_reading as native_hard_reading
except ImportError:
    native_hard_reading = None  # type: ignore[assignment]

POSITION_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8)


def hard_stops(
    energy: Tensor,
    start: Tensor | None = None,
    source_mask: Tensor | None = None,
    rule: str = "threshold",
    wait: int | None = None,
    active: Tensor | None = None,
    probability: float = 0.5,
) -> Tensor:
    """Where each head stops, token after token: `hard_alignment` for U tokens.

    Args:
        energy: (B, H, U, S).
        start: (B, H) integer, where the heads stopped for the token before the first; position 0 by default.
        source_mask: (B, S) boolean, true where real.
        rule, probability: see `hard_alignment`.
        wait: no head stops more than so many positions behind the leftmost one (head-synchronous decoding, Inaguma
            et al. 2020, arXiv 2005.09394); None: each stops where it will.
        active: (H,) boolean, heads among which the leftmost is looked for; None: all.

    Returns:
        (B, H, U) integer positions, never decreasing along U.
    """
    if start is None:
        start = torch.zeros(energy.shape[:2], dtype=torch.long, device=energy.device)
    stops = []
    for row in energy.unbind(2):
        start = hard_alignment(row, start, source_mask, rule, probability=probability)
        if wait is not None:
            farthest = start if active is None else start.masked_fill(~active, row.shape[-1])
            leftmost = farthest.amin(1, keepdim=True)
            start = torch.minimum(start, leftmost + wait)
        stops.append(start)
    return torch.stack(stops, 2) if stops else start.new_empty(*energy.shape[:3])


def hard_reading(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    start: Tensor | None = None,
    source_mask: Tensor | None = None,
    rule: str = "threshold",
    probability: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """The values where the heads stop, for energies query keyᵀ + bias.

    The native form computes the energies one by one from where a head stands to where it stops, so that a token costs
    as much as the head moves, however long the audio; this, the eager form, is the specification.

    Args:
        query: (B, H, U, D), scaled.
        key: (B, H, S, D).
        value: (B, H, S, E).
        bias: (H,) of the energies.
        start, source_mask, rule, probability: as for `hard_stops`.

    Returns:
        context (B, H, U, E) in the dtype of `value`, boundary (B, H, U) integer.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, audio without positions, an unknown rule, or a start that
            is no position of the audio (looked for on the CPU, where that waits for nothing).
    """
    if native_hard_reading is not None:  # which takes nothing that is refused below
        limit = firing_limit(rule, probability)
        read = native_hard_reading(query, key, value, bias, start, source_mask, rule, limit)
        if read is not None:
            return read
    _check_heads(query, key, value, bias)
    _check_start_and_mask(key, start, source_mask)
    everything = {"key": key, "value": value, "bias": bias, "start": start, "source_mask": source_mask}
    for name, tensor in everything.items():
        if tensor is not None and tensor.device != query.device:
            raise ValueError(
                f"{name} is on {tensor.device} and query on {query.device}; all must be on one device: "
                f"{name}.to(query.device)."
            )
    _check_start_range(start, key.shape[2])
    energy = (query @ key.transpose(-1, -2)).float() + bias.float().view(-1, 1, 1)
    boundary = hard_stops(energy, start, source_mask, rule, probability=probability)
    return value.gather(2, boundary.unsqueeze(-1).expand(*boundary.shape, value.shape[-1])), boundary


def _check_heads(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not (query.dim() == key.dim() == value.dim() == 4):
        raise ValueError(
            f"{shapes}: each must have 4 dimensions, (batch, heads, tokens, width) for query and (batch, heads, "
            "positions, width) for key and value."
        )
    if query.shape[:2] != key.shape[:2] or key.shape[:3] != value.shape[:3] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"{shapes} do not fit: batch and heads must agree, query and key in width, key and value in positions."
        )
    if not key.shape[2]:
        raise ValueError(f"{shapes}: there is no position to read; audio must have at least one.")
    if bias.shape != query.shape[1:2]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({query.shape[1]},), one number a head.")
    dtypes = {"query": query.dtype, "key": key.dtype, "value": value.dtype, "bias": bias.dtype}
    for name, dtype in dtypes.items():
        if not dtype.is_floating_point:
            raise ValueError(f"{name} has dtype {dtype}; it must be floating point.")
    if query.dtype != key.dtype:
        raise ValueError(f"query has dtype {query.dtype} and key {key.dtype}; they must have the same.")


def _check_start_and_mask(key: Tensor, start: Tensor | None, source_mask: Tensor | None) -> None:
    batch, heads, positions, _ = key.shape
    if start is not None and (start.shape != (batch, heads) or start.dtype not in POSITION_DTYPES):
        raise ValueError(
            f"start is {start.dtype} of shape {tuple(start.shape)}; it must be a signed integer of shape "
            f"{(batch, heads)}, (batch, heads)."
        )
    if source_mask is not None and (source_mask.shape != (batch, positions) or source_mask.dtype != torch.bool):
        raise ValueError(
            f"source_mask is {source_mask.dtype} of shape {tuple(source_mask.shape)}; it must be boolean of shape "
            f"{(batch, positions)}, (batch, positions), true where real."
        )


def _check_start_range(start: Tensor | None, positions: int) -> None:
    if start is None or not start.numel() or start.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(end) for end in torch.aminmax(start))
    if low < 0 or high >= positions:
        raise ValueError(
            f"start lies in [{low}, {high}]; a head stands at one of the positions 0 … {positions - 1} of the audio. "
            "Give the boundaries that reading this same audio returned, or None for its beginning."
        )

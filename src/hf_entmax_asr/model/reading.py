"""Hard reading: where monotonic heads stop for each token, and what they read there."""

import torch
from torch import Tensor

from .alignment import hard_alignment

try:  # the native form, where the package is installed; this file also travels alone
    from hf_entmax_asr.kernels import hard_reading as native_hard_reading
except ImportError:
    native_hard_reading = None  # type: ignore[assignment]


def hard_stops(
    energy: Tensor, start: Tensor | None = None, source_mask: Tensor | None = None, rule: str = "threshold"
) -> Tensor:
    """Where each head stops, token after token: `hard_alignment` for U tokens.

    Args:
        energy: (B, H, U, S).
        start: (B, H) integer, where the heads stopped for the token before the first; position 0 by default.
        source_mask: (B, S) boolean, true where real.
        rule: "threshold" or "cumulative", see `hard_alignment`.

    Returns:
        (B, H, U) integer positions, never decreasing along U.
    """
    if start is None:
        start = torch.zeros(energy.shape[:2], dtype=torch.long, device=energy.device)
    stops = []
    for row in energy.unbind(2):
        start = hard_alignment(row, start, source_mask, rule)
        stops.append(start)
    return torch.stack(stops, 2)


def hard_reading(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    start: Tensor | None = None,
    source_mask: Tensor | None = None,
    rule: str = "threshold",
) -> tuple[Tensor, Tensor]:
    """The values where the heads stop, for energies query keyᵀ + bias.

    The native form computes the energies one by one from where a head stands to where it stops, so that a token costs
    as much as the head moves, however long the audio; this, the eager form, is the specification.

    Args:
        query: (B, H, U, D), scaled.
        key: (B, H, S, D).
        value: (B, H, S, E).
        bias: (H,) of the energies.
        start, source_mask, rule: as for `hard_stops`.

    Returns:
        context (B, H, U, E) in the dtype of `value`, boundary (B, H, U) integer.
    """
    if native_hard_reading is not None:
        read = native_hard_reading(query, key, value, bias, start, source_mask, rule)
        if read is not None:
            return read
    energy = (query @ key.transpose(-1, -2)).float() + bias.float().view(-1, 1, 1)
    boundary = hard_stops(energy, start, source_mask, rule)
    return value.gather(2, boundary.unsqueeze(-1).expand(*boundary.shape, value.shape[-1])), boundary

"""Self-attention over fixed parts of the audio, after the Sparse Transformer (Child et al. 2019, arXiv 1904.10509).

Each layer has one pattern, and neighbouring layers different ones, which together let every position reach every
other: "strided" alternates a window of l positions to both sides with every l-th position, "fixed" alternates the
position's own block of l with the last c positions of every block. The original is a causal language model; here, in an
encoder, a position also reads later ones (our reading).

Positions are rearranged so that a pattern is dense attention over blocks. Stored are scores or masks of S · 3l
(window), S²/l (every l-th), S · l (block) and S²c/l (columns) entries, never (S, S); the kernels that hold no scores
hold none here.

Axes: B batch, H heads, S positions, D head width, N blocks, L positions of a block.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_entmax_asr import EntmaxAsrConfig


class Pattern(NamedTuple):
    """Which positions j position i reads.

    "window": i − left ≤ j ≤ i + right; "stride": (i − j) mod left = 0; "block": both in one block of `left` positions;
    "columns": j is one of the last `right` of its block of `left`, where the last block ends with the utterance.
    """

    kind: str
    left: int
    right: int = 0


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]  # (query, key, value, mask)


def layer_pattern(config: EntmaxAsrConfig, layer: int) -> Pattern | None:
    """What the self-attention of encoder layer `layer` reads; None: everything."""
    size = config.encoder_pattern_size
    if config.encoder_pattern == "strided":
        return Pattern("stride", size) if layer % 2 else Pattern("window", size, size)
    if config.encoder_pattern == "fixed":
        return Pattern("columns", size, config.encoder_pattern_columns) if layer % 2 else Pattern("block", size)
    window = getattr(config, "encoder_window", None)  # of the systems to compare with
    return None if window is None else Pattern("window", *window)


def pattern_mask(pattern: Pattern, mask: Tensor | None, positions: int, device: torch.device | None = None) -> Tensor:
    """The pattern as a boolean (B or 1, 1, S, S), true where a query may read a key: its definition, and what is used
    where attention maps are asked for. `mask` (B, 1, 1, S) is true at real positions."""
    if mask is None:
        mask = torch.ones(1, 1, 1, positions, dtype=torch.bool, device=device)
    index = torch.arange(positions, device=mask.device)
    ahead = index - index[:, None]  # (S, S) j − i
    if pattern.kind == "window":
        return mask & (ahead >= -pattern.left) & (ahead <= pattern.right)
    if pattern.kind == "stride":
        return mask & (ahead % pattern.left == 0)
    blocks = index // pattern.left
    if pattern.kind == "block":
        return mask & (blocks == blocks[:, None])
    ends = torch.minimum((blocks + 1) * pattern.left, mask.sum(-1, keepdim=True))  # (B, 1, 1, S)
    return (mask & (index >= ends - pattern.right)).expand(-1, -1, positions, -1)


def attend_in_pattern(
    attend: Attend, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """As `attend` with `pattern_mask`, without that mask: (B, H, S, D).

    Args:
        attend: dense attention, called with (batches of blocks, H, …).
        query, key, value: (B, H, S, D).
        mask: (B, 1, 1, S) boolean, true at real positions, which come first; None means that all are real.
    """
    positions = query.shape[2]
    if mask is None:
        mask = query.new_ones(len(query), 1, 1, positions, dtype=torch.bool)
    if pattern.kind == "columns":
        keys, values, real = _columns(pattern, key, value, mask)
        return attend(query, keys, values, real)[0]
    if pattern.kind == "window":
        return _window(attend, pattern, query, key, value, mask)
    size, across = pattern.left, pattern.kind == "stride"
    q, k, v = (_fold(_filled(x, size), size, across) for x in (query, key, value))
    real = _fold(_filled(mask.transpose(2, 3), size), size, across).transpose(2, 3)
    context = attend(q, k, v, real)[0]
    return _unfold(context, len(query), across)[:, :, :positions]


def _filled(x: Tensor, size: int) -> Tensor:
    """(B, H, S, D) with zeros behind, up to a multiple of `size` positions."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size))


def _fold(x: Tensor, size: int, across: bool) -> Tensor:
    """(B, H, N · size, D) -> each block a row (B · N, H, size, D); across blocks, each place in them (B · size, H, N,
    D)."""
    blocks = x.unflatten(2, (-1, size))  # (B, H, N, L, D)
    return blocks.permute(0, 3, 1, 2, 4).flatten(0, 1) if across else blocks.transpose(1, 2).flatten(0, 1)


def _unfold(x: Tensor, batch: int, across: bool) -> Tensor:
    """What `_fold` made, put back."""
    rows = x.unflatten(0, (batch, -1))
    return (rows.permute(0, 2, 3, 1, 4) if across else rows.transpose(1, 2)).flatten(2, 3)


def _columns(pattern: Pattern, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (B, H, N · c, D) of the last c positions of every block, and which of them are there."""
    size, count, batch = pattern.left, pattern.right, len(key)
    starts = torch.arange(0, key.shape[2], size, device=key.device)  # (N,)
    ends = torch.minimum(starts + size, mask.sum(-1).view(batch, 1))  # (B, N)
    index = ends[..., None] - torch.arange(count, 0, -1, device=key.device)  # (B, N, c)
    real = (index >= starts[:, None]).flatten(1)[:, None, None]
    index = index.flatten(1).clamp(min=0)[:, None, :, None]  # (B, 1, N · c, 1)
    chosen = (x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in (key, value))
    return (*chosen, real)  # type: ignore[return-value]


def _window(attend: Attend, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Blocks as long as the wider side: a block's queries read it and both its neighbours, as far as the window
    goes."""
    positions = query.shape[2]
    left, right = (min(side, positions) for side in (pattern.left, pattern.right))
    size = max(left, right, 1)
    queries = _fold(_filled(query, size), size, False)  # (B · N, H, L, D)
    keys, values = (_around(_filled(x, size), size) for x in (key, value))  # (B · N, H, 3 L, D)
    real = _around(_filled(mask.transpose(2, 3), size), size).transpose(2, 3)  # (B · N, 1, 1, 3 L)
    place = torch.arange(3 * size, device=query.device)
    ahead = place - size - place[:size, None]  # (L, 3 L)
    context = attend(queries, keys, values, real & (ahead >= -left) & (ahead <= right))[0]
    return _unfold(context, len(query), False)[:, :, :positions]


def _around(x: Tensor, size: int) -> Tensor:
    """(B, H, N · size, D) -> each block with its neighbours, zeros (false) beyond the ends: (B · N, H, 3 size, D)."""
    wide = F.pad(x, (0, 0, size, size)).unfold(2, 3 * size, size)  # (B, H, N, D, 3 L)
    return wide.permute(0, 2, 1, 4, 3).flatten(0, 1)

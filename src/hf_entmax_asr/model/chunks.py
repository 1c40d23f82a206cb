"""Chunks of encoder positions: who may read whom, so that an encoder can work while audio comes in.

Positions are cut into chunks of equal size, from the first on. Position s reads every position of its own chunk, later
ones too, and those of a number of chunks before it; never a later chunk. So what a chunk holds is final once its audio
is there, and each layer needs the keys and values of the chunks before it alone.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .configuration_entmax_asr import EntmaxAsrConfig


class Chunks(NamedTuple):
    """size: positions in a chunk, 0 for no chunks; left: chunks before its own that a position reads, −1 for all."""

    size: int = 0
    left: int = -1


NO_CHUNKS = Chunks()


def chunk_mask(chunks: Chunks, scores: Tensor, mask: Tensor | None = None) -> Tensor | None:
    """`mask` and what chunks allow of scores (..., T, S), true where query i may read key j; None where all is."""
    if not chunks.size:
        return mask
    queries, keys = (torch.arange(n, device=scores.device) // chunks.size for n in scores.shape[-2:])
    behind = queries[:, None] - keys  # (T, S) in chunks
    allowed = behind >= 0
    if chunks.left >= 0:
        allowed &= behind <= chunks.left
    return allowed if mask is None else mask & allowed


def encoder_chunks(config: EntmaxAsrConfig, training: bool, asked: Mapping[str, Any] = MappingProxyType({})) -> Chunks:
    """What the encoder works in: as asked for (`encoder_chunk_size`, `encoder_left_chunks`, other names do not count),
    else in training drawn anew for each batch, else as configured.

    Raises:
        ValueError: a size or a number of chunks that is none.
    """
    size, left = asked.get("encoder_chunk_size"), asked.get("encoder_left_chunks")
    if size is None and training:
        if not config.chunk_training_rate or float(torch.rand(())) >= config.chunk_training_rate:
            return NO_CHUNKS
        sizes, lefts = config.chunk_training_sizes, config.chunk_training_left
        return Chunks(sizes[int(torch.randint(len(sizes), ()))], lefts[int(torch.randint(len(lefts), ()))])
    size = config.encoder_chunk_size if size is None else size
    left = config.encoder_left_chunks if left is None else left
    if size < 0 or left < -1:
        raise ValueError(
            f"encoder_chunk_size = {size} must be at least 0 (the whole audio at once), and encoder_left_chunks = "
            f"{left} at least -1 (all before)."
        )
    return Chunks(size, left)

"""Multi-head attention whose weights come from a chosen transform: over a side's own states, and over the audio."""

from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from .chunks import NO_CHUNKS, Chunks
from .configuration_entmax_asr import EntmaxAsrConfig
from .layers import Rotation, rotate
from .patterns import attend_in_pattern, layer_pattern, pattern_mask
from .transforms import apply_weights, make_transform


class CrossHeadAttention(nn.Module):
    """Weights over the heads' outputs, from the query (paper Sec. IV-C); our reading of its "cross-head attention".

    The weights are scaled by H, so that equal ones leave the heads as they are.
    """

    def __init__(self, config: EntmaxAsrConfig, num_heads: int):
        super().__init__()
        self.score = nn.Linear(config.d_model, num_heads)
        self.transform = make_transform(config.cross_head_transform, config, num_heads=1)

    def forward(self, hidden_states: Tensor, context: Tensor) -> Tensor:
        weights = self.transform(self.score(hidden_states).unsqueeze(1)).squeeze(1)  # (B, U, H)
        return context * (weights * weights.shape[-1]).transpose(1, 2).unsqueeze(-1)  # (B, H, U, D)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H·D) -> (B, H, T, D)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H·D)."""
    return x.transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """What every attention of the model has: so many heads of one width. Subclasses make the projections."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear
    borrows_map = lends_map = False  # whether its map is that of an earlier layer, or also that of a later one

    def __init__(self, config: EntmaxAsrConfig, kind: str, layer_idx: int):
        """kind: "encoder" or "decoder" self-attention, or "cross"."""
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.heads(kind, layer_idx)
        self.width = self.num_heads * config.head_width(kind)
        self.scale = config.head_width(kind) ** -0.5

    def heads_of(self, projection: nn.Linear, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, H, T, D)."""
        return split_heads(projection(x), self.num_heads)


class KeyValueCache(Protocol):
    """What self-attention asks of a cache."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Takes those of new states (B, H, T, D) and gives all that they may read (B, H, S, D)."""


class SelfAttention(MultiHeadAttention):
    """transform(Q Kᵀ / √D) V per head (paper eq. 1-3 with the transform in softmax's place).

    A layer that uses the map of another (`EntmaxAsrConfig.encoder_map_groups`) has neither queries nor keys, nor an α.
    """

    def __init__(self, config: EntmaxAsrConfig, kind: str, layer_idx: int):
        super().__init__(config, kind, layer_idx)
        self.borrows_map = config.map_layer(kind, layer_idx) != layer_idx
        self.lends_map = config.lends_map(kind, layer_idx)
        self.pattern = layer_pattern(config, layer_idx) if kind == "encoder" else None
        self.dropout = config.attention_dropout
        if not self.borrows_map:
            self.q_proj = nn.Linear(config.d_model, self.width)
            self.k_proj = nn.Linear(config.d_model, self.width)
            self.transform = make_transform(getattr(config, f"{kind}_transform"), config, self.num_heads)
        self.v_proj = nn.Linear(config.d_model, self.width)
        self.out_proj = nn.Linear(self.width, config.d_model)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        shared_map: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        cache: Cache | KeyValueCache | None = None,
        need_weights: bool = False,
        chunks: Chunks = NO_CHUNKS,
        rotation: Rotation | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Reads the states of its own side.

        Args:
            hidden_states: (B, T, C).
            attention_mask: boolean, broadcastable to (B, H, T, S), true where a query may read a key.
            shared_map: (B, H, T, S) before dropout, for a layer that borrows its map: each layer drops weights anew.
            bias: floating, broadcastable to (B, H, T, S), added to the scores; a layer that borrows its map has none.
            cache: of the keys and values of all layers; filled and read.
            need_weights: without them, α-entmax attention need not hold them.
            chunks: a state reads its chunk and some before it alone, besides what `attention_mask` says.
            rotation: of rotary positions, by which queries and keys are turned.

        Returns:
            output (B, T, C), and weights (B, H, T, S) if they are needed, or lent to another layer.
        """
        value = self.heads_of(self.v_proj, hidden_states)
        key = value[..., :0] if self.borrows_map else rotate(self.heads_of(self.k_proj, hidden_states), rotation)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        dropout_p = self.dropout if self.training else 0.0
        if self.borrows_map:
            if shared_map is None:
                raise ValueError(f"layer {self.layer_idx} has no map of its own; give the one it shares as shared_map.")
            return self.out_proj(merge_heads(apply_weights(shared_map, value, dropout_p))), shared_map
        query = rotate(self.heads_of(self.q_proj, hidden_states), rotation)
        need_weights = need_weights or self.lends_map
        attend = partial(self.transform.attend, scale=self.scale, dropout_p=dropout_p)
        if self.pattern is not None:
            if cache is not None or chunks.size:
                raise ValueError(f"encoder_pattern reads the whole audio ({self.pattern}): no chunks can be encoded.")
            if not need_weights and bias is None:
                context = attend_in_pattern(attend, self.pattern, query, key, value, attention_mask)
                return self.out_proj(merge_heads(context)), None
            attention_mask = pattern_mask(self.pattern, attention_mask, query.shape[2], query.device)
        context, weights = attend(query, key, value, attention_mask, bias, need_weights=need_weights, chunks=chunks)
        return self.out_proj(merge_heads(context)), weights


class CrossAttentionOutput(NamedTuple):
    """What the decoder gets from reading the audio. Recorders of attention maps and boundaries take entries 1 and 2."""

    update: Tensor  # (B, U, C) of the hidden states
    weights: Tensor | None = None  # (B, H, U, S), perhaps None where they were not needed
    boundary: Tensor | None = None  # (B, H, U) where each head stopped; None unless it reads hard
    penalty: Tensor | None = None  # scalar to add to the loss in training; None where none is asked for


class CrossAttention(MultiHeadAttention):
    """transform(Q Kᵀ / √D) V per head, of decoder states over the whole audio."""

    def __init__(self, config: EntmaxAsrConfig, layer_idx: int):
        super().__init__(config, "cross", layer_idx)
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.d_model, self.width)
        self.k_proj = nn.Linear(config.d_model, self.width)
        self.transform = make_transform(config.cross_transform, config, self.num_heads)
        self.v_proj = nn.Linear(config.d_model, self.width)
        self.out_proj = nn.Linear(self.width, config.d_model)
        if config.cross_head_transform != "none":
            self.cross_head = CrossHeadAttention(config, self.num_heads)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        source_mask: Tensor | None = None,
        cache: DynamicLayer | None = None,
        past_tokens: int = 0,
        target_mask: Tensor | None = None,
        need_weights: bool = False,
        reference: Tensor | None = None,
    ) -> CrossAttentionOutput:
        """Reads the audio for U tokens; arguments as for `MonotonicAttention.forward`. It reads all of it for every
        token, so that those before, the mask of the tokens and their times change nothing."""
        key, value = self._keys_and_values(encoder_hidden_states, cache)
        context, weights = self.transform.attend(
            self.heads_of(self.q_proj, hidden_states),
            key,
            value,
            None if source_mask is None else source_mask[:, None, None, :],
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        if hasattr(self, "cross_head"):
            context = self.cross_head(hidden_states, context)
        return CrossAttentionOutput(self.out_proj(merge_heads(context)), weights)

    def _keys_and_values(self, source: Tensor, cache: DynamicLayer | None) -> tuple[Tensor, Tensor]:
        if cache is not None and cache.get_seq_length() > 0:
            return cache.keys, cache.values  # type: ignore[return-value]
        key, value = self.heads_of(self.k_proj, source), self.heads_of(self.v_proj, source)
        return (key, value) if cache is None else cache.update(key, value)

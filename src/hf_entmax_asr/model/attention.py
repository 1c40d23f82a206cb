"""Multi-head attention whose weights come from a chosen transform, with one learned α per head where it is "entmax"."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache

from .configuration_entmax_asr import EntmaxAsrConfig
from .entmax import entmax, entmax15, softmax, sparsemax, topk_softmax
from .entmax_attention import entmax_attention


class AttentionTransform(nn.Module):
    """Scores (B, H, T, S) -> weights, by the transform named `kind`; holds α for "entmax" (paper Sec. III-A)."""

    def __init__(self, config: EntmaxAsrConfig, kind: str, num_heads: int):
        super().__init__()
        self.kind = kind
        self.temperature = config.softmax_temperature
        self.k = config.attention_topk
        if kind == "entmax":
            self.alpha_logit = nn.Parameter(torch.empty(num_heads))  # α = 1 + sigmoid(alpha_logit)
            self.initial_alpha_logit = math.log((config.entmax_alpha_init - 1) / (2 - config.entmax_alpha_init))

    def alpha(self) -> Tensor:
        """(H,) the learned α of each head, always inside (1, 2)."""
        return 1 + torch.sigmoid(self.alpha_logit.float())

    def as_entmax(self) -> tuple[float | Tensor, float] | None:
        """(α, a number or (H,); factor of the scores) where the transform is an α-entmax, None where it is not."""
        match self.kind:
            case "softmax":
                return 1.0, 1 / self.temperature
            case "sparsemax":
                return 2.0, 1.0
            case "entmax15":
                return 1.5, 1.0
            case "entmax":
                return self.alpha(), 1.0
            case _:
                return None

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        match self.kind:
            case "softmax":
                return softmax(scores, self.temperature, mask=mask)
            case "sparsemax":
                return sparsemax(scores, mask=mask)
            case "entmax15":
                return entmax15(scores, mask=mask)
            case "topk":
                return topk_softmax(scores, self.k, mask=mask)
            case _:
                return entmax(scores, self.alpha().view(-1, 1, 1), mask=mask)


class CrossHeadAttention(nn.Module):
    """Weights over the heads' outputs, from the query (paper Sec. IV-C); our reading of its "cross-head attention".

    The weights are scaled by H, so that equal ones leave the heads as they are.
    """

    def __init__(self, config: EntmaxAsrConfig, num_heads: int):
        super().__init__()
        self.score = nn.Linear(config.d_model, num_heads)
        self.transform = AttentionTransform(config, config.cross_head_transform, num_heads=1)

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
    """transform(Q Kᵀ / √D) V per head (paper eq. 1-3 with the transform in softmax's place).

    Self-attention ("encoder" or "decoder"), or cross-attention ("cross"), when `encoder_hidden_states` is given. Never
    replaced by a fused softmax kernel. A layer that uses the map of another (`EntmaxAsrConfig.encoder_map_groups`) has
    neither queries nor keys, nor an α.
    """

    def __init__(self, config: EntmaxAsrConfig, kind: str, layer_idx: int):
        super().__init__()
        is_cross = kind == "cross"
        self.num_heads = config.heads(kind, layer_idx)
        width = self.num_heads * config.head_width(kind)
        self.layer_idx = layer_idx
        self.borrows_map = not is_cross and config.map_layer(kind, layer_idx) != layer_idx
        self.lends_map = not is_cross and config.lends_map(kind, layer_idx)
        self.dropout = config.attention_dropout
        self.scale = config.head_width(kind) ** -0.5
        if not self.borrows_map:
            self.q_proj = nn.Linear(config.d_model, width)
            self.k_proj = nn.Linear(config.d_model, width)
            self.transform = AttentionTransform(config, getattr(config, f"{kind}_transform"), self.num_heads)
        self.v_proj = nn.Linear(config.d_model, width)
        self.out_proj = nn.Linear(width, config.d_model)
        if is_cross and config.cross_head_transform != "none":
            self.cross_head = CrossHeadAttention(config, self.num_heads)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        need_weights: bool = False,
        shared_map: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, C), with a boolean mask that broadcasts to (B, H, T, S) -> output (B, T, C), and weights (B, H, T, S)
        if they are asked for or lent: without them, α-entmax attention need not hold them.

        A layer that borrows its map takes it as `shared_map`, before dropout: each layer drops weights anew.
        """
        key, value = self._keys_and_values(hidden_states, encoder_hidden_states, past_key_values)
        dropout = self.dropout if self.training else 0.0
        if self.borrows_map:
            if shared_map is None:
                raise ValueError(f"layer {self.layer_idx} has no map of its own; give the one it shares as shared_map.")
            weights: Tensor | None = shared_map
        else:
            query = split_heads(self.q_proj(hidden_states), self.num_heads)
            weights = None
            form = None if need_weights or self.lends_map else self.transform.as_entmax()
            if form is not None:
                alpha, factor = form
                context: Tensor = entmax_attention(  # type: ignore[assignment]  # a pair only with return_weights
                    query, key, value, alpha, attention_mask, scale=self.scale * factor, dropout_p=dropout
                )  # (B, H, T, D)
            else:
                scores = query * self.scale @ key.transpose(-1, -2)  # scaled before, for float16's range
                weights = self.transform(scores, attention_mask)
        if weights is not None:
            context = F.dropout(weights, dropout).to(value.dtype) @ value
        if hasattr(self, "cross_head"):
            context = self.cross_head(hidden_states, context)
        return self.out_proj(merge_heads(context)), weights

    def _keys_and_values(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None, past: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        source = hidden_states
        if encoder_hidden_states is not None:
            source = encoder_hidden_states
            if past is not None and past.cross_attention_cache.get_seq_length(self.layer_idx) > 0:
                layer = past.cross_attention_cache.layers[self.layer_idx]
                return layer.keys, layer.values  # type: ignore[union-attr, return-value]
        value = split_heads(self.v_proj(source), self.num_heads)
        key = value[..., :0] if self.borrows_map else split_heads(self.k_proj(source), self.num_heads)
        if past is not None:
            cache = past.self_attention_cache if encoder_hidden_states is None else past.cross_attention_cache
            key, value = cache.update(key, value, self.layer_idx)
        return key, value

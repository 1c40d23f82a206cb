"""Constituent attention: an encoder that groups neighbouring positions bottom-up, and attends within the groups.

It stands in for the Combiner (OpenReview B1eySTVtvB, withdrawn), whose gates prune connections and whose blocks combine
sub-trees, and of which no equations are public. These are the equations of the Tree-Transformer (Wang, Lee & Chen 2019,
arXiv 1909.06639): position i is linked to i + 1 with

    â_i = √(p(i → i+1) p(i+1 → i)),   a_i of a layer = a_i of the layer below + (1 − that) â_i,

where p(i → ·) is a softmax over the two neighbours. With C_ij = Π a between i and j, weights are C ⊙ softmax(scores).

Axes: B batch, H heads, S positions, C width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import MultiHeadAttention, merge_heads
from .configuration_entmax_asr import EntmaxAsrConfig
from .dropout import dropout
from .layers import FeedForward, Positions, residual
from .subsampling import front_end
from .transforms import apply_weights, make_transform

FAINTEST_LINK = 1e-9  # as small as a link counts, so that its logarithm is a number


def neighbour_links(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """â (B, S − 1) of queries and keys (B, S, C): how much positions i and i + 1 want each other. `mask` (B, S)."""
    scores = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5
    scores = scores.float()
    right, left = (scores.diagonal(offset, 1, 2) for offset in (1, -1))  # (B, S − 1) of i for i + 1; of i + 1 for i
    if mask is not None:
        there = mask[:, 1:] & mask[:, :-1]
        right, left = (x.masked_fill(~there, -torch.inf) for x in (right, left))
    ahead, behind = F.pad(right, (0, 1), value=-torch.inf), F.pad(left, (1, 0), value=-torch.inf)  # (B, S)
    whole = torch.logaddexp(ahead, behind)  # −∞ only where there is no neighbour at all
    whole = whole.masked_fill(whole == -torch.inf, 0.0)
    return (0.5 * ((ahead - whole)[:, :-1] + (behind - whole)[:, 1:])).exp()


def constituent_prior(links: Tensor) -> Tensor:
    """C (B, S, S) of links (B, S − 1): the product of the links between two positions, 1 on the diagonal."""
    depth = F.pad(links.clamp(min=FAINTEST_LINK).log().cumsum(1), (1, 0))  # (B, S)
    return (-(depth[:, :, None] - depth[:, None]).abs()).exp()


class ConstituentAttention(MultiHeadAttention):
    """C ⊙ transform(Q Kᵀ / √D) V per head."""

    def __init__(self, config: EntmaxAsrConfig, layer_idx: int):
        super().__init__(config, "encoder", layer_idx)
        self.dropout = config.attention_dropout
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.d_model, self.width) for _ in range(3))
        self.out_proj = nn.Linear(self.width, config.d_model)
        self.link_query, self.link_key = (nn.Linear(config.d_model, config.d_model) for _ in range(2))
        self.transform = make_transform(config.encoder_transform, config, self.num_heads)

    def forward(self, x: Tensor, links: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, S, C), the links (B, S − 1) of the layer below, mask (B, S) -> (B, S, C), the links of this layer."""
        new = neighbour_links(self.link_query(x), self.link_key(x), mask)
        links = new if links is None else links + (1 - links) * new
        query, key, value = (self.heads_of(p, x) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = query * self.scale @ key.transpose(2, 3)
        weights = self.transform(scores, None if mask is None else mask[:, None, None])
        weights = weights * constituent_prior(links)[:, None].to(weights.dtype)
        rate = self.dropout if self.training else 0.0
        return self.out_proj(merge_heads(apply_weights(weights, value, rate))), links


class ConstituentLayer(GradientCheckpointingLayer):
    """Pre-norm constituent attention and feed-forward."""

    def __init__(self, config: EntmaxAsrConfig, layer_idx: int):
        super().__init__()
        self.dropout = config.dropout
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = ConstituentAttention(config, layer_idx)
        self.ffn_layer_norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config, config.encoder_ffn_dim)

    def forward(self, x: Tensor, links: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        update, links = self.self_attn(self.self_attn_layer_norm(x), links, mask)
        x = residual(x, update, self.dropout, self.training)
        return residual(x, self.ffn(self.ffn_layer_norm(x)), self.dropout, self.training), links


class ConstituentEncoder(nn.Module):
    """The recogniser's encoder with constituent attention in its layers."""

    def __init__(self, config: EntmaxAsrConfig):
        super().__init__()
        self.config = config
        self.subsampling = front_end(config)
        self.embed_positions = Positions(config, "encoder")
        self.layers = nn.ModuleList(ConstituentLayer(config, layer) for layer in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, F), (B, T) -> (B, S, C)."""
        x, mask = self.subsampling(input_features, attention_mask)
        x = self.embed_positions(x * (self.config.d_model**0.5 if self.config.scale_embedding else 1.0))
        x, links = dropout(x, self.config.dropout, self.training), None
        for layer in self.layers:
            x, links = layer(x, links, mask)
        return self.layer_norm(x)

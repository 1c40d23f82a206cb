"""The encoder's block: pre-norm sparse self-attention and feed-forward."""

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import KeyValueCache, SelfAttention
from .chunks import NO_CHUNKS, Chunks
from .configuration_entmax_asr import EntmaxAsrConfig
from .layers import FeedForward, Rotation, residual


class EncoderLayer(GradientCheckpointingLayer):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, config: EntmaxAsrConfig, layer_idx: int):
        super().__init__()
        self.dropout = config.dropout
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = SelfAttention(config, "encoder", layer_idx)
        self.ffn_layer_norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config, config.encoder_ffn_dim)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        shared_map: Tensor | None = None,
        need_weights: bool = False,
        chunks: Chunks = NO_CHUNKS,
        cache: KeyValueCache | None = None,
        rotation: Rotation | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, C), mask (B, 1, 1, S) boolean, and the map (B, H, S, S) that the layer before used, for a layer that
        shares it -> (B, S, C), and the map of this layer where a later one shares it. With the keys and values of
        earlier positions in a cache, the states read those too. `rotation`: of rotary positions."""
        normed = self.self_attn_layer_norm(hidden_states)
        update, weights = self.self_attn(
            normed,
            attention_mask,
            shared_map=shared_map,
            cache=cache,
            need_weights=need_weights,
            chunks=chunks,
            rotation=rotation,
        )
        hidden_states = residual(hidden_states, update, self.dropout, self.training)
        update = self.ffn(self.ffn_layer_norm(hidden_states))
        return residual(hidden_states, update, self.dropout, self.training), weights

"""The decoder's block: pre-norm sparse self-attention, monotonic or full cross-attention, feed-forward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import CrossAttention, SelfAttention
from .configuration_entmax_asr import EntmaxAsrConfig
from .layers import FeedForward, residual
from .losses import IGNORED_LABEL
from .monotonic import MonotonicAttention


class DecoderLayer(GradientCheckpointingLayer):
    """One block; returns the hidden states, the head penalty of its monotonic attention (or None) and the map of its
    self-attention (or None)."""

    def __init__(self, config: EntmaxAsrConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.dropout = config.dropout
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = SelfAttention(config, "decoder", layer_idx)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn: MonotonicAttention | CrossAttention
        if config.is_monotonic(layer_idx):
            self.encoder_attn = MonotonicAttention(config, layer_idx)
        else:
            self.encoder_attn = CrossAttention(config, layer_idx)
        self.ffn_layer_norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config, config.decoder_ffn_dim)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        encoder_hidden_states: Tensor,
        source_mask: Tensor | None = None,
        shared_map: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        past_tokens: int = 0,
        target_mask: Tensor | None = None,
        need_weights: bool = False,
        reference: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, U, C), causal mask (B, 1, U, past + U), audio (B, S, C) and its mask (B, S), the map (B, H, U, past + U)
        that the layer before used, for a layer that shares it, mask of the tokens (B, U), positions where they end
        (B, U) for the penalty -> (B, U, C), penalty, and the map of this layer where a later one shares it."""
        update, weights = self.self_attn(
            self.self_attn_layer_norm(hidden_states),
            attention_mask,
            shared_map=shared_map,
            cache=None if past_key_values is None else past_key_values.self_attention_cache,
            need_weights=need_weights,
        )
        hidden_states = residual(hidden_states, update, self.dropout, self.training)

        audio_cache = None
        if past_key_values is not None:
            audio_cache = past_key_values.cross_attention_cache.layers[self.layer_idx]
        update, _, _, penalty = self.encoder_attn(
            self.encoder_attn_layer_norm(hidden_states),
            encoder_hidden_states,
            source_mask,
            audio_cache,
            past_tokens,
            target_mask,
            need_weights,
            reference,
        )
        hidden_states = residual(hidden_states, update, self.dropout, self.training)

        update = self.ffn(self.ffn_layer_norm(hidden_states))
        return residual(hidden_states, update, self.dropout, self.training), penalty, weights


def causal_mask(attention_mask: Tensor | None, tokens: int, past_tokens: int, device: torch.device) -> Tensor:
    """(B or 1, 1, U, past + U) boolean: each token sees those before it and itself, never padding.

    `attention_mask`: (B, past + U), or (B, U) for the new tokens alone; true or nonzero where real.
    """
    total = past_tokens + tokens
    index = torch.arange(total, device=device)
    mask = (index <= index[past_tokens:, None])[None, None]  # (1, 1, U, past + U)
    if attention_mask is None:
        return mask
    if attention_mask.shape[-1] < total:
        missing = attention_mask.new_ones(attention_mask.shape[0], total - attention_mask.shape[-1])
        attention_mask = torch.cat([missing, attention_mask], -1)
    return mask & attention_mask[:, None, None, :total].bool()


def shifted_labels(config: EntmaxAsrConfig, labels: Tensor) -> Tensor:
    """(B, U) labels, −100 where padded -> (B, P + U) decoder inputs: shifted right behind the start token and the P
    tokens of the prompt."""
    given = labels.new_tensor([config.decoder_start_token_id, *config.decoder_prompt_ids])
    shifted = torch.cat([given.expand(len(labels), -1), labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORED_LABEL, config.pad_token_id)


def label_mask(config: EntmaxAsrConfig, labels: Tensor) -> Tensor:
    """(B, U) labels, −100 where padded -> (B, P + U) boolean, true at the decoder inputs that are real."""
    return F.pad(labels != IGNORED_LABEL, (len(config.decoder_prompt_ids), 0), value=True)

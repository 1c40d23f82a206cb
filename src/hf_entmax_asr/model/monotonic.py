"""Monotonic multi-head attention: how the decoder reads the audio, from left to right."""

import torch
from torch import Tensor, nn

from .alignment import (
    expected_alignment,
    expected_soft_attention,
    preserve_mass,
    soft_window,
)
from .attention import CrossAttentionOutput, CrossHeadAttention, MultiHeadAttention, merge_heads
from .cache import MonotonicLayer
from .configuration_entmax_asr import EntmaxAsrConfig
from .head_penalties import head_penalty
from .reading import hard_reading, hard_stops


class MonotonicAttention(MultiHeadAttention):
    """Monotonic multi-head cross-attention (Ma et al. 2020, arXiv 1909.12406; paper Sec. III-B).

    Every head walks over the audio on its own and never back. Training uses the expected alignment of noisy energies;
    inference the hard stops, or the expected alignment of clean ones (`monotonic_decoding`).
    """

    def __init__(self, config: EntmaxAsrConfig, layer_idx: int):
        super().__init__(config, "cross", layer_idx)
        self.config = config
        self.q_proj = nn.Linear(config.d_model, self.width)
        self.k_proj = nn.Linear(config.d_model, self.width)
        self.v_proj = nn.Linear(config.d_model, self.width)
        self.out_proj = nn.Linear(self.width, config.d_model)
        self.energy_bias = nn.Parameter(torch.empty(self.num_heads))
        if config.monotonic_chunk_size != 1:
            self.window_q_proj = nn.Linear(config.d_model, self.width)
            self.window_k_proj = nn.Linear(config.d_model, self.width)
        if config.has_gates(layer_idx):
            self.gate = nn.Parameter(torch.empty(self.num_heads))
        if config.cross_head_transform != "none":
            self.cross_head = CrossHeadAttention(config, self.num_heads)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        source_mask: Tensor | None = None,
        cache: MonotonicLayer | None = None,
        past_tokens: int = 0,
        target_mask: Tensor | None = None,
        need_weights: bool = False,
        reference: Tensor | None = None,
    ) -> CrossAttentionOutput:
        """Reads the audio for U tokens.

        Args:
            hidden_states: (B, U, C) of the decoder.
            encoder_hidden_states: (B, S, C).
            source_mask: (B, S) boolean, true where real.
            cache: of this layer; filled and advanced.
            past_tokens: how many tokens the cache has behind it.
            target_mask: (B, U) boolean, true where a token is real; padding does not count in the head penalty.
            need_weights: without them, heads that read one position hard need not look at the whole audio.
            reference: (B, U) the encoder position at which a token's sound ends, NaN where unknown, for the penalty.
        """
        query = self.heads_of(self.q_proj, hidden_states) * self.scale
        key, value, window_key = self._keys_and_values(encoder_hidden_states, cache)
        alone = self.config.monotonic_chunk_size == 1 and self.config.monotonic_head_wait is None
        alone = alone and not self.config.monotonic_shared_stops
        if self._reads_hard() and alone and not need_weights:
            start = self._first_start(cache, past_tokens, "hard")
            context, stops = hard_reading(query, key, value, self.energy_bias, start, source_mask, *self._firing())
            if cache is not None:
                cache.record(stops, past_tokens)
            return CrossAttentionOutput(self._output(hidden_states, context), boundary=stops)
        energy = (query @ key.transpose(-1, -2)).float() + self.energy_bias.float().view(-1, 1, 1)
        if self.config.monotonic_shared_stops:
            active = self.active_heads().view(-1, 1, 1)
            energy = (energy * active).sum(1, keepdim=True) / active.sum(0).clamp(min=1)
        if self.training and self.config.energy_noise_std > 0:
            energy = energy + torch.randn_like(energy) * self.config.energy_noise_std
        window_energy = self._of_each_head(energy)
        if window_key is not None:
            window_query = self.heads_of(self.window_q_proj, hidden_states) * self.scale
            window_energy = (window_query @ window_key.transpose(-1, -2)).float()
        weights, alignment, boundary = self._align(energy, window_energy, source_mask, cache, past_tokens)
        output = self._output(hidden_states, weights.to(value.dtype) @ value)
        penalty = None
        if self.training:
            penalty = self._penalty(self._of_each_head(energy), alignment, source_mask, target_mask, reference)
        return CrossAttentionOutput(output, weights, boundary, penalty)

    def active_heads(self) -> Tensor:
        """(H,) boolean: heads that take part; one whose gate is 0 does not, and decoding need not wait for it."""
        if hasattr(self, "gate"):
            return self.gate.detach() != 0
        return torch.ones(self.num_heads, dtype=torch.bool, device=self.energy_bias.device)

    def _keys_and_values(self, source: Tensor, cache: MonotonicLayer | None) -> tuple[Tensor, Tensor, Tensor | None]:
        if cache is not None and cache.get_seq_length() > 0:
            return cache.keys, cache.values, cache.window_keys  # type: ignore[return-value]
        key = self.heads_of(self.k_proj, source)
        value = self.heads_of(self.v_proj, source)
        window_key = None
        if self.config.monotonic_chunk_size != 1:
            window_key = self.heads_of(self.window_k_proj, source)
        if cache is not None:
            cache.update(key, value)
            cache.window_keys = window_key
        return key, value, window_key

    def take_in(self, source: Tensor, cache: MonotonicLayer, more: bool) -> None:
        """Appends what this layer reads of the states (B, S, C) that follow those in its cache.

        With `more` to come, one position of zeros stands behind them: a head that finds no place to stop stops there
        and not at the last position, as it does where the audio ends. It makes room for the next states.
        """
        key, value, window_key = self._keys_and_values(source, None)
        if cache.get_seq_length() > 0:
            key = torch.cat([cache.keys[:, :, :-1], key], 2)  # type: ignore[index]
            value = torch.cat([cache.values[:, :, :-1], value], 2)  # type: ignore[index]
            if window_key is not None:
                window_key = torch.cat([cache.window_keys[:, :, :-1], window_key], 2)  # type: ignore[index]
        if more:
            key, value = nn.functional.pad(key, (0, 0, 0, 1)), nn.functional.pad(value, (0, 0, 0, 1))
            window_key = None if window_key is None else nn.functional.pad(window_key, (0, 0, 0, 1))
        cache.replace(key, value, window_key)

    def _output(self, hidden_states: Tensor, context: Tensor) -> Tensor:
        """What the heads read (B, H, U, D), as the update of the hidden states (B, U, C)."""
        context = context * self._head_scale(hidden_states)
        if hasattr(self, "cross_head"):
            context = self.cross_head(hidden_states, context)
        return self.out_proj(merge_heads(context))

    def _firing(self) -> tuple[str, float]:
        """Rule and probability by which hard heads stop."""
        return self.config.firing_rule, self.config.firing_probability

    def _reads_hard(self) -> bool:
        return not self.training and self.config.monotonic_decoding == "hard"

    def _of_each_head(self, of_stops: Tensor) -> Tensor:
        """(B, H or 1, …) of what stops -> (B, H, …): heads that share their stops have the same."""
        return of_stops.expand(-1, self.num_heads, *(-1,) * (of_stops.dim() - 2))

    def _first_start(self, cache: MonotonicLayer | None, past_tokens: int, decoding: str) -> Tensor | None:
        """(B, H) where hard heads stand before the first of the new tokens, or (B, H, S) of soft ones; of heads that
        share their stops the first. None at the beginning."""
        start = cache.state(past_tokens) if cache is not None else None
        if start is None:
            return None
        filled = "hard" if start.dim() == 2 else "soft"
        if filled != decoding:
            raise ValueError(
                f"The cache was filled with monotonic_decoding='{filled}' and is now read with '{decoding}'."
            )
        return start[:, :1] if self.config.monotonic_shared_stops else start

    def _align(
        self,
        energy: Tensor,
        window_energy: Tensor,
        source_mask: Tensor | None,
        cache: MonotonicLayer | None,
        past_tokens: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weights (B, H, U, S), and of alignment (B, H, U, S) and boundary (B, H, U) those that were needed.

        The energy is (B, 1, U, S) where heads share their stops.
        """
        chunk = self.config.monotonic_chunk_size
        rule, probability = self._firing()
        alignment = boundary = None
        if self._reads_hard():
            start, wait = self._first_start(cache, past_tokens, "hard"), self.config.monotonic_head_wait
            among = wait is not None and hasattr(self, "gate") and not self.config.monotonic_shared_stops
            active = self.active_heads() if among else None
            boundary = self._of_each_head(hard_stops(energy, start, source_mask, rule, wait, active, probability))
            weights = soft_window(window_energy, boundary, chunk, source_mask)
        else:
            start = self._first_start(cache, past_tokens, "soft")
            alignment = expected_alignment(preserve_mass(energy, source_mask), source_mask, start)
            alignment = self._of_each_head(alignment)
            weights = expected_soft_attention(alignment, window_energy, chunk, source_mask)
            if self.training and self.config.monotonic_straight_through:
                stops = hard_stops(energy.detach(), None, source_mask, rule, probability=probability)
                stops = self._of_each_head(stops)
                read = soft_window(window_energy.detach(), stops, chunk, source_mask)
                weights = read + (weights - weights.detach())
        progress = alignment if boundary is None else boundary
        if cache is not None and progress is not None:
            cache.record(progress, past_tokens)
        return weights, alignment, boundary

    def _head_scale(self, hidden_states: Tensor) -> Tensor:
        """Gates and HeadDrop, as a factor that broadcasts against (B, H, U, D)."""
        scale = hidden_states.new_ones(1, self.num_heads)
        if hasattr(self, "gate"):
            scale = scale * self.gate.to(scale.dtype)
        if self.training and self.config.head_drop > 0:
            draw = torch.rand(hidden_states.shape[0], self.num_heads, device=hidden_states.device)
            kept = (draw >= self.config.head_drop) | (draw == draw.amax(1, keepdim=True))  # at least one
            scale = scale * kept * (self.num_heads / kept.sum(1, keepdim=True))
        return scale[:, :, None, None].to(hidden_states.dtype)

    def _penalty(
        self,
        energy: Tensor,
        alignment: Tensor | None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Tensor | None:
        """The head regulariser of this layer, unweighted (see `EntmaxAsrConfig.head_regularizer`)."""
        if self.layer_idx not in self.config.head_regularizer_layers or alignment is None:
            return None
        match self.config.head_regularizer:
            case "gate_l1":
                return self.gate.abs().sum()
            case "group_lasso":
                slices = self.out_proj.weight.unflatten(1, (self.num_heads, -1))  # (C, H, D)
                return torch.linalg.vector_norm(slices, dim=(0, 2)).sum()
        return head_penalty(self.config, energy, alignment, source_mask, target_mask, reference)

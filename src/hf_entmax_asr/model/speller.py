"""The decoder of Listen, Attend and Spell (Chan et al. 2016, arXiv 1508.01211): LSTMs with attention over the audio.

The cells read the last token and what was attended last; the newest state of the upper one asks the audio anew. In
generation the states after every token are kept as "keys" of a cache of transformers, which so can be reordered,
repeated and cropped as any.

Axes: B batch, U tokens, S positions, C width, L layers, H cells of a layer, Z = L · 2 H + C numbers of a state.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from .configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from .dropout import dropout
from .entmax import softmax
from .outputs import EntmaxAsrDecoderOutput


class Speller(nn.Module):
    """Tokens and encoder states -> decoder states, one token after the other."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        self.config = config
        width, size = config.d_model, config.decoder_lstm_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.cells = nn.ModuleList(
            nn.LSTMCell(size if layer else 2 * width, size) for layer in range(config.decoder_layers)
        )
        self.query = nn.Linear(size, width)
        self.key = nn.Linear(width, width)
        self.output = nn.Linear(size + width, width)

    def forward(
        self,
        input_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        next_logits: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> EntmaxAsrDecoderOutput:
        """Arguments as for the recogniser's decoder; `next_logits` turns a state (B, C) into scores of the next token,
        for scheduled sampling."""
        if input_ids is None and inputs_embeds is None:
            raise ValueError("Give the decoder decoder_input_ids or decoder_inputs_embeds.")
        if encoder_hidden_states is None:
            raise ValueError("The decoder needs the encoder's states.")
        inputs = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, U, C)
        cache = (past_key_values if past_key_values is not None else DynamicCache()) if use_cache else None
        state = self._state(cache, inputs)
        keys = self.key(encoder_hidden_states).tanh()  # (B, S, C)
        outputs, states = list[Tensor](), list[Tensor]()
        for step in range(inputs.shape[1]):
            token = inputs[:, step]
            if step and next_logits is not None and self.training and self.config.scheduled_sampling:
                token = self._sampled(token, next_logits(outputs[-1]))
            state, output = self._step(token, state, keys, encoder_hidden_states, encoder_attention_mask)
            outputs.append(output)
            states.append(state)
        if cache is not None:
            kept = torch.stack(states, 1)[:, None]  # (B, 1, U, Z)
            cache.update(kept, kept[..., :0], 0)
        return EntmaxAsrDecoderOutput(last_hidden_state=torch.stack(outputs, 1), past_key_values=cache)

    def _state(self, cache: Cache | None, inputs: Tensor) -> Tensor:
        """(B, Z) after the tokens before these."""
        if cache is not None and cache.get_seq_length():
            kept: Tensor = cache.layers[0].keys  # type: ignore[assignment,union-attr]
            return kept[:, 0, -1]
        size = 2 * len(self.cells) * self.config.decoder_lstm_size + self.config.d_model
        return inputs.new_zeros(len(inputs), size)

    def _step(
        self, token: Tensor, state: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One token (B, C) later: the state (B, Z), and what the next token is told from (B, C)."""
        size, rate = self.config.decoder_lstm_size, self.config.dropout
        *cells, context = state.split([size] * 2 * len(self.cells) + [self.config.d_model], 1)
        x, after = torch.cat([token, context], 1), []
        for layer, cell in enumerate(self.cells):
            hidden, memory = cell(x, (cells[2 * layer], cells[2 * layer + 1]))
            after += [hidden, memory]
            x = dropout(hidden, rate, self.training)
        scores = (keys @ self.query(x).tanh()[:, :, None]).squeeze(2)  # (B, S)
        weights = softmax(scores, mask=None if mask is None else mask.bool())
        context = (weights[:, None].to(values.dtype) @ values).squeeze(1)
        output = self.output(torch.cat([x, context], 1)).tanh()
        return torch.cat([*after, context.to(hidden.dtype)], 1), dropout(output, rate, self.training)

    def _sampled(self, token: Tensor, logits: Tensor) -> Tensor:
        """Embeddings (B, C) of the true tokens, or with some probability of ones drawn from the model."""
        drawn = self.embed_tokens(torch.multinomial(logits.detach().float().softmax(-1), 1).squeeze(1))
        own = torch.rand(len(token), 1, device=token.device) < self.config.scheduled_sampling
        return torch.where(own, drawn, token)

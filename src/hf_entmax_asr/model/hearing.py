"""Greedy decoding by monotonic heads while audio comes in: a token is written once its heads have stopped.

Axes: B batch (1), H heads, S positions, C width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cache import make_cache
from .generation_inputs import tokens_of_frames
from .monotonic import MonotonicAttention


class WrittenToken(NamedTuple):
    """id, log-probability, and by monotonic layer where each head stopped, in positions of the utterance."""

    id: int
    score: float
    stops: list[list[int]]


def check_streamable(model: Any) -> None:
    """
    Raises:
        ValueError: a model that must hear all of the audio before it can write.
    """
    config = model.config
    if config.cross_attention != "monotonic" or config.first_monotonic_layer > 0:
        full = config.decoder_layers if config.cross_attention != "monotonic" else config.first_monotonic_layer
        raise ValueError(
            f"{full} of {config.decoder_layers} decoder layers read the whole audio for every token "
            f"(cross_attention = {config.cross_attention!r}, first_monotonic_layer = {config.first_monotonic_layer}), "
            "so no token can be written before its end. Stream a model whose layers are all monotonic: train with "
            "model.cross_attention=monotonic, model.first_monotonic_layer=0 (a Whisper can start so)."
        )
    if config.monotonic_decoding != "hard":
        raise ValueError(
            f"monotonic_decoding = {config.monotonic_decoding!r} needs the whole audio; heads that stop are needed: "
            "set model.config.monotonic_decoding = 'hard'."
        )
    if model.training:
        raise ValueError("The model is in training mode: call model.eval().")


class TokenWriter:
    """Tokens of one utterance, greedily, under the model's generation config (suppressed tokens and the like)."""

    def __init__(self, model: Any, prompt: Sequence[int]):
        """prompt: tokens behind the start token, before the text."""
        self.model = model
        self.cache = make_cache(model.config)
        self._held: list[Any] = list(self.cache.cross_attention_cache.layers)  # a `MonotonicLayer` each
        self.given = [model.config.decoder_start_token_id, *prompt]
        self.sequence = list(self.given)
        self.positions = 0
        self._most_tokens = 0  # that a text of the audio so far can have (`max_tokens_per_position`)
        self.ended = False
        self._more = True
        self._read = 0  # tokens of the sequence that the decoder has read
        self._layers: list[MonotonicAttention] = [layer.encoder_attn for layer in model.get_decoder().layers]
        self.active = [layer.active_heads().tolist() for layer in self._layers]
        settings = model.generation_config
        ends = settings.eos_token_id if settings.eos_token_id is not None else model.config.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else list(ends or ())
        self._processors = model._get_logits_processor(
            generation_config=settings, input_ids_seq_length=len(self.given), device=model.device
        )

    @torch.no_grad()
    def hear(self, states: Tensor | None, sounding: int, more: bool) -> None:
        """Takes the next states (1, S, C) of the encoder, or None, in how many of all frames so far something sounds,
        and whether more are to come."""
        if states is None:
            states = torch.zeros(1, 0, self.model.config.d_model, device=self.model.device)
        self.positions += states.shape[1]
        self._more = more
        self._most_tokens = int(tokens_of_frames(self.model.config, torch.tensor(sounding)))
        states = states.to(next(self.model.get_decoder().parameters()).dtype)
        for layer, held in zip(self._layers, self._held, strict=True):
            layer.take_in(states, held, more)
            if held.progress is not None:  # heads that do not count may have been sent beyond the end
                held.progress = held.progress.clamp(max=max(0, self.positions - 1 + more))

    @torch.no_grad()
    def write(self) -> WrittenToken | None:
        """The next token of the text, if its heads have found their places; the end is not told, but `ended` then."""
        while not self.ended and self.positions:
            if self._table_is_full():
                return None
            if len(self.sequence) - len(self.given) >= self._most_tokens:
                if not self._more:
                    self.ended = True
                    self.sequence += self._ends[:1]
                return None
            logits = self._step(self.sequence[self._read])
            if logits is None:
                return None
            if self._read < len(self.sequence):  # a token of the prompt: the next one is given
                continue
            ids = torch.tensor([self.sequence], device=logits.device)
            scores = self._processors(ids, logits.float()).log_softmax(-1)[0]
            token = int(scores.argmax())
            self.sequence.append(token)
            if token in self._ends:
                self.ended = True
                return None
            stops = [held.progress[0, :, -1].tolist() for held in self._held]
            return WrittenToken(token, float(scores[token]), stops)
        return None

    def _step(self, token: int) -> Tensor | None:
        """Logits (1, V) behind the token; None, and nothing has changed, while a head waits for audio."""
        decoder, positions = self.model.get_decoder(), self.positions
        outputs = decoder(
            input_ids=torch.tensor([[token]], device=self.model.device),
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
        )
        for held, active in zip(self._held, self.active, strict=True):
            stops = held.progress[0, :, -1].tolist()
            if self._more and any(stop >= positions for stop, counts in zip(stops, active, strict=True) if counts):
                self.cache.self_attention_cache.crop(-1)
                return None
        self._read += 1
        return self.model.lm_head(outputs.last_hidden_state[:, -1])

    def _table_is_full(self) -> bool:
        config = self.model.config
        return config.decoder_positions == "learned" and self._read >= config.max_target_positions

    @property
    def numel(self) -> int:
        """Numbers held between calls."""
        layers = [*self.cache.self_attention_cache.layers, *self._held]
        names = ("keys", "values", "window_keys", "progress")
        held = [getattr(layer, name, None) for layer in layers for name in names]
        return sum(tensor.numel() for tensor in held if tensor is not None)

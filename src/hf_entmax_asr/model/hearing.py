"""Greedy decoding by monotonic heads while audio comes in: a token is written once its heads have stopped. Beams:
`live_beams.py`.

Axes: B streams, H heads, S positions, U tokens, C width, D head width, V vocabulary.
"""

import math
from collections.abc import Generator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from .cache import make_cache
from .generation_inputs import no_circles, tokens_of_frames
from .layers import project
from .monotonic import MonotonicAttention
from .streaming import padded_in_front


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
    if weight := getattr(model.generation_config, "ctc_weight", None):
        raise ValueError(
            f"generation_config.ctc_weight = {weight}: CTC scores a text by the whole audio, which is not there yet "
            "while it comes in. Set model.generation_config.ctc_weight = 0, or give the whole audio to generate."
        )
    if model.training:
        raise ValueError("The model is in training mode: call model.eval().")


class Step(NamedTuple):
    """What the decoder of a stream has to read: the next token of each row of the writer."""

    writer: "TokenWriter"
    tokens: list[int]


class TokenWriter:
    """Tokens of one utterance, greedily, under a generation config (suppressed tokens and the like)."""

    def __init__(
        self,
        model: Any,
        prompt: Sequence[int],
        settings: Any = None,
        limit: int | None = None,
        rows: int = 1,
        processors: Sequence[LogitsProcessor] = (),
    ):
        """
        Args:
            model: whose heads are monotonic.
            prompt: tokens behind the start token, before the text.
            settings: a generation config, by default the model's.
            limit: so many tokens are written at most, the end among them.
            rows: texts that are tried at a time.
            processors: of their scores, before those of the settings.
        """
        self.model = model
        self.rows = rows
        self.cache = make_cache(model.config, num_beams=rows)
        self.held: list[Any] = list(self.cache.cross_attention_cache.layers)  # a `MonotonicLayer` each
        self.given = [model.config.decoder_start_token_id, *prompt]
        self.sequence = list(self.given)  # what is written, and at the end of the text its end
        self.positions = 0
        self._most_tokens = 0  # that a text of the audio so far can have (`max_tokens_per_position`)
        self.ended = False
        self.end_stops: list[list[int]] | None = None  # of the heads, when the model ended the text
        self._more = True
        self.read = 0  # tokens of the sequence that the decoder has read
        self._layers: list[MonotonicAttention] = [layer.encoder_attn for layer in model.get_decoder().layers]
        self.active = [layer.active_heads().tolist() for layer in self._layers]
        self._longest = math.inf if limit is None else len(self.given) + limit  # tokens of the sequence
        if model.config.decoder_positions == "learned":
            self._longest = min(self._longest, model.config.max_target_positions)
        settings = model.generation_config if settings is None else settings
        ends = settings.eos_token_id if settings.eos_token_id is not None else model.config.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else list(ends or ())
        self._processors = model._get_logits_processor(
            generation_config=settings,
            input_ids_seq_length=len(self.given),
            logits_processor=LogitsProcessorList([*processors, *no_circles(settings, {})]),
            device=model.device,
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
        states = states.to(next(self.model.get_decoder().parameters()).dtype).expand(self.rows, -1, -1)
        for layer, held in zip(self._layers, self.held, strict=True):
            layer.take_in(states, held, more)
            if held.progress is not None:  # heads that do not count may have been sent beyond the end
                held.progress = held.progress.clamp(max=max(0, self.positions - 1 + more))

    @property
    def found_end(self) -> bool:
        """Whether the model ended the text, and not the length that one can have."""
        return self.ended and len(self.sequence) - len(self.given) <= self._most_tokens

    def pending(self) -> list[int]:
        """Ids of the likeliest text behind what is written, which may still change: none without beams."""
        return []

    def write(self) -> Generator[Step, Tensor | None, WrittenToken | None]:
        """Asks for steps of the decoder, and returns the next token of the text, if its heads have found their places;
        the end is not told, but `ended` then."""
        while not self.ended and self.positions:
            if len(self.sequence) >= self._longest:
                return None
            if len(self.sequence) - len(self.given) >= self._most_tokens:
                if not self._more:
                    self.ended = True
                    self.sequence += self._ends[:1]
                return None
            logits = yield Step(self, self.sequence[self.read : self.read + 1])
            if logits is None:
                return None
            if self.read < len(self.sequence):  # a token of the prompt: the next one is given
                continue
            ids = torch.tensor([self.sequence], device=logits.device)
            scores = self._processors(ids, logits.float()).log_softmax(-1)[0]
            token = int(scores.argmax())
            self.sequence.append(token)
            stops = [held.progress[0, :, -1].tolist() for held in self.held]
            if token in self._ends:
                self.ended, self.end_stops = True, stops
                return None
            return WrittenToken(token, float(scores[token]), stops)
        return None

    def has_read(self) -> bool:
        """Whether the heads found places for the tokens that were read last; else nothing has changed, and they are to
        be read again when more audio has come."""
        for held, active in zip(self.held, self.active, strict=True):
            farthest = held.progress[:, :, -1].amax(0).tolist()
            if self._more and any(
                stop >= self.positions for stop, counts in zip(farthest, active, strict=True) if counts
            ):
                self.cache.self_attention_cache.crop(-1)
                return False
        self.read += 1
        return True

    @property
    def numel(self) -> int:
        """Numbers held between calls."""
        layers = [*self.cache.self_attention_cache.layers, *self.held]
        names = ("keys", "values", "window_keys", "progress")
        held = [getattr(layer, name, None) for layer in layers for name in names]
        return sum(tensor.numel() for tensor in held if tensor is not None)


class HeldTogether:
    """What one monotonic layer holds of the audio of several streams, as one `MonotonicLayer`; shorter audio is padded
    behind its end."""

    def __init__(self, rows: Sequence[Any], past: Sequence[int]):
        """rows: a `MonotonicLayer` of each; past: tokens that each has read."""
        self.rows, self.past = rows, past
        self.lengths = [row.keys.shape[2] for row in rows]
        names = ("keys", "values", "window_keys")
        self.keys, self.values, self.window_keys = (
            self._padded([getattr(row, name) for row in rows]) for name in names
        )

    def _padded(self, tensors: Sequence[Tensor | None]) -> Tensor | None:
        """(B, H, S of the longest, D)."""
        longest, found = max(self.lengths), [tensor for tensor in tensors if tensor is not None]
        rows = [torch.nn.functional.pad(tensor, (0, 0, 0, longest - tensor.shape[2])) for tensor in found]
        return torch.cat(rows) if rows else None

    def mask(self, device: torch.device) -> Tensor:
        """(B, S) true where audio is, or the place behind it where heads wait."""
        return torch.arange(max(self.lengths), device=device) < torch.tensor(self.lengths, device=device)[:, None]

    def get_seq_length(self) -> int:
        return max(self.lengths)

    def state(self, tokens: int) -> Tensor:
        """(B, H) where the heads stand."""
        rows = [row.state(past) for row, past in zip(self.rows, self.past, strict=True)]
        start = torch.zeros(1, self.keys.shape[1], dtype=torch.long, device=self.keys.device)  # type: ignore[union-attr]
        return torch.cat([start if row is None else row for row in rows])

    def record(self, progress: Tensor, tokens: int) -> None:
        """(B, H, 1) of the newest token of each."""
        for row, past, stops in zip(self.rows, self.past, progress.split(1), strict=True):
            row.record(stops, past)


class ReadTogether:
    """Keys and values of the tokens of several streams, as the cache of one; shorter texts are padded in front."""

    def __init__(self, caches: Sequence[Any]):
        self.caches = caches

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Those of the newest token of each (B, H, 1, D) -> of all their tokens (B, H, U, D)."""
        rows = zip(self.caches, key.split(1), value.split(1), strict=True)
        pairs = [cache.update(k, v, layer_idx) for cache, k, v in rows]
        return padded_in_front([k for k, _ in pairs]), padded_in_front([v for _, v in pairs])


@torch.no_grad()
def take(steps: Sequence[Step]) -> list[Tensor | None]:
    """Logits (rows, V) behind the tokens of each step, of different streams of one model; None for those whose heads
    wait for audio. Steps of one row go through the decoder in one pass."""
    found: list[Tensor | None] = [None] * len(steps)
    single = [index for index, step in enumerate(steps) if step.writer.rows == 1]
    for group in ([single] if single else []) + [[index] for index in range(len(steps)) if index not in single]:
        for index, logits in zip(group, _take_alike([steps[index] for index in group]), strict=True):
            found[index] = logits
    return found


def _take_alike(steps: Sequence[Step]) -> list[Tensor | None]:
    """As `take`, of several steps of one row, or one of any number of rows."""
    writers = [step.writer for step in steps]
    model, decoder = writers[0].model, writers[0].model.get_decoder()
    ids = torch.tensor([[token] for step in steps for token in step.tokens], device=model.device)
    if len(steps) == 1:
        outputs = decoder(input_ids=ids, past_key_values=writers[0].cache, use_cache=True, return_dict=True)
        states = [outputs.last_hidden_state]
    else:
        states = list(_take_together(decoder, writers, ids).split(1))
    read = [writer.has_read() for writer in writers]
    if not any(read):
        return [None] * len(steps)
    last = [rows[:, -1] for rows, has_read in zip(states, read, strict=True) if has_read]
    logits = project(model.lm_head, torch.cat(last))
    parts = iter(logits.split([writer.rows for writer, has_read in zip(writers, read, strict=True) if has_read]))
    return [next(parts) if has_read else None for has_read in read]


def _take_together(decoder: Any, writers: Sequence[TokenWriter], ids: Tensor) -> Tensor:
    """The decoder's states (B, 1, C) behind the tokens (B, 1)."""
    past = [writer.read for writer in writers]
    embedded = decoder.embed_tokens(ids) * decoder._embedding_scale()
    x = torch.cat([decoder.embed_positions(row, first) for row, first in zip(embedded.split(1), past, strict=True)])
    longest = max(past) + 1
    read = torch.tensor(past, device=x.device) + 1
    mask = (torch.arange(longest, device=x.device) >= longest - read[:, None])[:, None, None]  # (B, 1, 1, U)
    audio = [HeldTogether(rows, past) for rows in zip(*(writer.held for writer in writers), strict=True)]
    cache = SimpleNamespace(
        self_attention_cache=ReadTogether([writer.cache.self_attention_cache for writer in writers]),
        cross_attention_cache=SimpleNamespace(layers=audio),
    )
    source_mask, shared_map = audio[0].mask(x.device), None
    for layer in decoder.layers:
        x, _, shared_map = layer(x, mask, None, source_mask, shared_map, past_key_values=cache, past_tokens=longest - 1)
    return decoder.layer_norm(x)

"""The recogniser as two functions of tensors, for graphs: the encoder, and one step of the decoder.

What the decoder carries from token to token (keys, values, where each monotonic head stands) goes in and comes out by
name, so that a graph holds no state. What it reads of the audio is computed once, with the encoder.

Axes: B batch, T frames, F mel bins, S encoder positions, C width, H heads of a layer, D head width, P tokens before,
V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hf_entmax_asr.model.attention import split_heads
from hf_entmax_asr.model.cache import MonotonicLayer, ValueLayer
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.modeling_entmax_asr import EntmaxAsrForConditionalGeneration

PROJECTIONS = {"keys": "k_proj", "values": "v_proj", "window_keys": "window_k_proj"}  # of cross-attention


class Given(NamedTuple):
    """A tensor that a graph takes."""

    name: str
    axes: tuple[str | int, ...]  # sizes; those that may change by name: batch, frames, positions, past
    dtype: torch.dtype = torch.float32


class ExportedEncoder(nn.Module):
    """Features (B, T, F), T a multiple of `frames_per_position`, and their mask (B, T), 1 = real -> states (B, S, C),
    mask of positions (B, S), and what each decoder layer reads of them: keys and values (B, H, S, D), and keys of its
    soft window where it has one."""

    def __init__(self, model: EntmaxAsrForConditionalGeneration):
        super().__init__()
        self.encoder = model.get_encoder()
        self.projections, self.heads = nn.ModuleDict(), {}
        for i, layer in enumerate(model.model.decoder.layers):
            for kind, given in audio_tensors(model.config, i).items():
                self.projections[given.name] = getattr(layer.encoder_attn, PROJECTIONS[kind])
                self.heads[given.name] = layer.encoder_attn.num_heads
        features = Given("input_features", ("batch", "frames", model.config.num_mel_bins))
        self.inputs = (features, Given("attention_mask", ("batch", "frames"), torch.int64))
        self.outputs = ("states", "position_mask", *self.projections)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_features, attention_mask = tensors
        # Attention by its weights: what does without them is α-entmax alone, softmax included.
        outputs = self.encoder(input_features, attention_mask=attention_mask, return_dict=True, output_attentions=True)
        states = outputs.last_hidden_state
        read = [split_heads(project(states), self.heads[name]) for name, project in self.projections.items()]
        return states, self.encoder.position_mask(attention_mask), *read


class ExportedDecoderStep(nn.Module):
    """The token before (B, 1), mask of positions (B, S), what is read of the audio, and what the step before returned
    -> logits (B, V) of the next token, and what the next step takes."""

    def __init__(self, model: EntmaxAsrForConditionalGeneration):
        super().__init__()
        self.decoder, self.lm_head = model.model.decoder, model.lm_head
        config = model.config
        layers = range(config.decoder_layers)
        self.carried = [given for layer in layers for given in carried_tensors(config, layer)]
        audio = [given for layer in layers for given in audio_tensors(config, layer).values()]
        tokens = Given("token_ids", ("batch", 1), torch.int64)
        self.inputs = (tokens, Given("position_mask", ("batch", "positions"), torch.bool), *audio, *self.carried)
        self.outputs = ("logits", *(output_name(given) for given in self.carried))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = {each.name: tensor for each, tensor in zip(self.inputs, tensors, strict=True)}
        cache = self._cache(given)
        outputs = self.decoder(
            input_ids=given["token_ids"],
            encoder_hidden_states=given["audio_values_0"],  # not read: its keys and values are in the cache
            encoder_attention_mask=given["position_mask"],
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            output_attentions=True,  # as in the encoder
        )
        kept: dict[str, Tensor] = {}
        for i, layer in enumerate(cache.self_attention_cache.layers):
            kept |= {f"keys_{i}": layer.keys, f"values_{i}": layer.values}  # type: ignore[dict-item,union-attr]
        for i, layer in enumerate(cache.cross_attention_cache.layers):
            if isinstance(layer, _Reading):
                kept[f"head_positions_{i}"] = layer.positions
        logits = self.lm_head(outputs.last_hidden_state[:, -1])
        return logits, *(kept[name] for name in self.outputs[1:])

    def _cache(self, given: dict[str, Tensor]) -> EncoderDecoderCache:
        """The tensors as the cache that the decoder knows."""
        text, audio = DynamicCache(), DynamicCache()
        for i in range(len(self.decoder.layers)):
            values = given[f"past_values_{i}"]
            text.layers.append(_Held(given.get(f"past_keys_{i}", values[..., :0]), values))
            keys, values = given[f"audio_keys_{i}"], given[f"audio_values_{i}"]
            positions = given.get(f"past_head_positions_{i}")
            if positions is None:
                audio.layers.append(_Held(keys, values))
            else:
                audio.layers.append(_Reading(keys, values, given.get(f"audio_window_keys_{i}"), positions))
        return EncoderDecoderCache(text, audio)


class _Held(ValueLayer):
    """Keys and values, perhaps of no tokens: whether there are any is not asked, for it would bind the graph to the
    answer."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


class _Reading(MonotonicLayer):
    """The audio for a monotonic layer of which only the last positions of the heads are known, which is enough."""

    def __init__(self, keys: Tensor, values: Tensor, window_keys: Tensor | None, positions: Tensor):
        super().__init__()
        self.replace(keys, values, window_keys)
        self.positions = positions  # (B, H)

    def get_seq_length(self) -> int:
        return self.values.shape[2]  # type: ignore[union-attr]

    def state(self, tokens: int) -> Tensor:
        return self.positions

    def record(self, progress: Tensor, tokens: int) -> None:
        self.positions = progress[:, :, -1]


def audio_tensors(config: EntmaxAsrConfig, layer: int) -> dict[str, Given]:
    """By kind, what a decoder layer reads of the audio."""
    kinds = ["keys", "values"]
    if config.is_monotonic(layer) and config.monotonic_chunk_size != 1:
        kinds.append("window_keys")
    axes = ("batch", config.heads("cross", layer), "positions", config.head_width("cross"))
    return {kind: Given(f"audio_{kind}_{layer}", axes) for kind in kinds}


def carried_tensors(config: EntmaxAsrConfig, layer: int) -> list[Given]:
    """What a decoder layer hands from one token to the next: as it is taken, all zeros before the first."""
    axes = ("batch", config.heads("decoder", layer), "past", config.head_width("decoder"))
    kinds = ("keys", "values") if config.map_layer("decoder", layer) == layer else ("values",)
    result = [Given(f"past_{kind}_{layer}", axes) for kind in kinds]
    if config.is_monotonic(layer):
        heads = config.heads("cross", layer)
        result.append(Given(f"past_head_positions_{layer}", ("batch", heads), torch.int64))
    return result


def output_name(given: Given) -> str:
    """What a carried tensor is called where it comes out."""
    return given.name.removeprefix("past_")

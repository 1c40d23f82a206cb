"""What generation carries from token to token: keys, values, and how far each monotonic head has read."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from .configuration_entmax_asr import EntmaxAsrConfig


class MonotonicLayer(DynamicLayer):
    """Cross-attention cache of one monotonic layer.

    Beside the keys and values of the audio, computed once, it keeps where each head stopped for every token so far:
    `boundary` (B, H, U) with hard decoding, or the alignment (B, H, U, S) with soft decoding. The whole history is
    kept, so that a cache that is cropped (assisted decoding) or reordered (beams) stays right.
    """

    def __init__(self, num_beams: int = 1):
        """num_beams: so many rows, neighbours, belong to one utterance; within it keys and values are the same."""
        super().__init__()
        self.num_beams = num_beams
        self.progress: Tensor | None = None
        self.window_keys: Tensor | None = None

    def tensors(self) -> list[str]:
        """Names of the extra tensors that exist, batch first."""
        return [name for name in ("progress", "window_keys") if getattr(self, name) is not None]

    def state(self, tokens: int) -> Tensor | None:
        """Progress after the first `tokens` tokens: (B, H) or (B, H, S); None before the first.

        Raises:
            ValueError: the tokens went through the cache without this layer.
        """
        if tokens == 0:
            return None
        known = 0 if self.progress is None else self.progress.shape[2]
        if self.progress is None or known < tokens:
            raise ValueError(
                f"past_key_values holds {tokens} tokens but head positions for {known}. Pass on the past_key_values "
                "that the model returned, not the object that it was given."
            )
        return self.progress[:, :, tokens - 1]

    def record(self, progress: Tensor, tokens: int) -> None:
        """Appends the progress of the newest tokens behind the first `tokens`."""
        self.progress = progress if self.progress is None else torch.cat([self.progress[:, :, :tokens], progress], 2)

    def replace(self, keys: Tensor, values: Tensor, window_keys: Tensor | None) -> None:
        """Those of more audio in place of what is held; the progress stays."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys, self.values, self.window_keys = keys, values, window_keys

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        names = self.tensors()
        own = torch.arange(len(beam_idx), device=beam_idx.device) // self.num_beams
        if self.num_beams > 1 and torch.equal(beam_idx // self.num_beams, own):
            names = [name for name in names if name == "progress"]
        else:
            super().reorder_cache(beam_idx)
        for name in names:
            setattr(self, name, getattr(self, name).index_select(0, beam_idx.to(getattr(self, name).device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.num_beams *= repeats
        for name in self.tensors():
            setattr(self, name, getattr(self, name).repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.num_beams = 1  # which rows are left of an utterance is not known
        for name in self.tensors():
            setattr(self, name, getattr(self, name)[indices, ...])

    def reset(self) -> None:
        super().reset()
        self.progress = self.window_keys = None


class ValueLayer(DynamicLayer):
    """Self-attention cache of a layer that uses the map of another: values (B, H, U, D), and keys of width 0."""

    def get_seq_length(self) -> int:
        return 0 if self.values is None else self.values.shape[-2]


def make_cache(config: EntmaxAsrConfig, cache: Cache | None = None, num_beams: int = 1) -> EncoderDecoderCache:
    """An empty cache with a `MonotonicLayer` for each monotonic decoder layer and a `ValueLayer` for each that shares
    the self-attention map of another; or a user's cache, made to fit in place.

    num_beams: so many rows, neighbours, belong to one utterance, as `generate` lays beams out.

    Raises:
        ValueError: a cache that cannot carry the state of monotonic heads.
    """
    if cache is None:
        cache = DynamicCache()
    if isinstance(cache, DynamicCache):
        cache = EncoderDecoderCache(cache, DynamicCache())
    if not isinstance(cache, EncoderDecoderCache) or not isinstance(cache.cross_attention_cache, DynamicCache):
        raise ValueError(
            f"past_key_values is a {type(cache).__name__}; this model needs an EncoderDecoderCache of two DynamicCache "
            "objects, because its heads keep a position for every token. Leave past_key_values unset."
        )
    for layer in range(config.decoder_layers):
        cross = MonotonicLayer if config.is_monotonic(layer) else DynamicLayer
        _place(cross, cache.cross_attention_cache, layer, num_beams)
        if config.decoder_map_groups is not None:
            borrows = config.map_layer("decoder", layer) != layer
            _place(ValueLayer if borrows else DynamicLayer, cache.self_attention_cache, layer)
    return cache


def _place(kind: type[DynamicLayer], cache: Cache, index: int, num_beams: int = 1) -> None:
    """Puts an empty layer of the kind where there is none. Asked at every step of decoding."""
    if index < len(cache.layers) and isinstance(cache.layers[index], kind):
        return
    layer = MonotonicLayer(num_beams) if kind is MonotonicLayer else kind()
    if index == len(cache.layers):
        cache.layers.append(layer)
    else:
        if cache.get_seq_length(index) > 0:
            raise ValueError(
                f"layer {index} of past_key_values is a filled {type(cache.layers[index]).__name__}, not a "
                f"{kind.__name__}; it was not made by this model."
            )
        cache.layers[index] = layer

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

    def __init__(self):
        super().__init__()
        self.progress: Tensor | None = None
        self.window_keys: Tensor | None = None

    def tensors(self) -> list[str]:
        """Names of the extra tensors that exist, batch first."""
        return [name for name in ("progress", "window_keys") if getattr(self, name) is not None]

    def state(self, tokens: int) -> Tensor | None:
        """Progress after the first `tokens` tokens: (B, H) or (B, H, S); None before the first."""
        return None if self.progress is None or tokens == 0 else self.progress[:, :, tokens - 1]

    def record(self, progress: Tensor, tokens: int) -> None:
        """Appends the progress of the newest tokens behind the first `tokens`."""
        self.progress = progress if self.progress is None else torch.cat([self.progress[:, :, :tokens], progress], 2)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        for name in self.tensors():
            setattr(self, name, getattr(self, name).index_select(0, beam_idx.to(getattr(self, name).device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for name in self.tensors():
            setattr(self, name, getattr(self, name).repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        for name in self.tensors():
            setattr(self, name, getattr(self, name)[indices, ...])

    def reset(self) -> None:
        super().reset()
        self.progress = self.window_keys = None


def make_cache(config: EntmaxAsrConfig) -> EncoderDecoderCache:
    """An empty cache with a `MonotonicLayer` for each monotonic decoder layer."""
    return with_monotonic_layers(EncoderDecoderCache(DynamicCache(), DynamicCache()), config)


def with_monotonic_layers(cache: Cache, config: EntmaxAsrConfig) -> EncoderDecoderCache:
    """Makes a user's empty cache fit this model, in place.

    Raises:
        ValueError: a cache that cannot carry the state of monotonic heads.
    """
    if isinstance(cache, DynamicCache):
        cache = EncoderDecoderCache(cache, DynamicCache())
    if not isinstance(cache, EncoderDecoderCache) or not isinstance(cache.cross_attention_cache, DynamicCache):
        raise ValueError(
            f"past_key_values is a {type(cache).__name__}; this model needs an EncoderDecoderCache of two DynamicCache "
            "objects, because its heads keep a position for every token. Leave past_key_values unset."
        )
    layers = cache.cross_attention_cache.layers
    for layer in range(config.decoder_layers):
        kind = MonotonicLayer if config.is_monotonic(layer) else DynamicLayer
        if layer == len(layers):
            layers.append(kind())
        elif not isinstance(layers[layer], kind):
            if cache.cross_attention_cache.get_seq_length(layer) > 0:
                raise ValueError(
                    f"layer {layer} of past_key_values holds keys but no head positions; it was not made by this model."
                )
            layers[layer] = kind()
    return cache

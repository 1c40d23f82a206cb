"""Generation: what it carries from token to token (keys, values, how far each monotonic head has read), and where the
heads stopped."""

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

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


def as_encoder_outputs(encoder_outputs: BaseModelOutput | tuple) -> BaseModelOutput:
    """A copy of encoder outputs given as an object or as a tuple (states, hidden states, attentions)."""
    if isinstance(encoder_outputs, tuple):
        return BaseModelOutput(*encoder_outputs[:3])
    return type(encoder_outputs)(**encoder_outputs)


class EntmaxAsrGenerationMixin(PreTrainedModel, GenerationMixin):
    """`generate` with the cache of this model, which also tells where each monotonic head stopped."""

    # GenerationMixin types `self` as a class of its own that exists for type checkers alone, hence the ignores below.
    config: EntmaxAsrConfig

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config=None, *args, **kwargs):
        """As in transformers, with greedy search, sampling, beam search and assisted decoding.

        With `return_dict_in_generate=True`, a model whose monotonic heads read hard also returns `boundaries`: one
        (N, H, U) tensor of encoder positions per monotonic layer for the N returned sequences (see `head_boundaries`).
        They cost one more pass of the decoder over the finished sequences; the audio is encoded once.
        """
        settings, _ = self._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
        features = kwargs.get("input_features") if inputs is None else inputs
        encoder_outputs = kwargs.get("encoder_outputs")
        wants_boundaries = settings.return_dict_in_generate and self._stops_are_hard()
        if encoder_outputs is None and features is not None and wants_boundaries:
            encoder_outputs = self.get_encoder()(
                features,
                attention_mask=kwargs.get("attention_mask"),
                output_attentions=settings.output_attentions,
                output_hidden_states=settings.output_hidden_states,
                return_dict=True,
            )
        if encoder_outputs is not None:
            # A copy, because transformers repeats the states for each beam in place.
            kwargs["encoder_outputs"] = as_encoder_outputs(encoder_outputs)
        result = super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]
        if isinstance(result, ModelOutput) and wants_boundaries and encoder_outputs is not None:
            states, mask = encoder_outputs[0], kwargs.get("attention_mask")
            repeats = result.sequences.shape[0] // states.shape[0]  # sequences of one utterance are neighbours
            result["boundaries"] = self.head_boundaries(
                result.sequences,
                attention_mask=None if mask is None else mask.repeat_interleave(repeats, 0),
                encoder_outputs=(states.repeat_interleave(repeats, 0),),
            )
        return result

    def _stops_are_hard(self) -> bool:
        return self.config.cross_attention == "monotonic" and self.config.monotonic_decoding == "hard"

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """Our cache in place of the default one, because monotonic heads carry their positions in it."""
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation = {implementation!r} is not supported: the heads of this model keep positions "
                "that a static, offloaded or quantized cache has no place for. Leave cache_implementation unset."
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = make_cache(self.config, num_beams=generation_config.num_beams or 1)
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]

    @torch.no_grad()
    def head_boundaries(
        self,
        sequences: Tensor,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
    ) -> tuple[Tensor, ...]:
        """Where each monotonic head stops for each token of `sequences`.

        Args:
            sequences: (B, 1 + U) as `generate` returns them, decoder start token first.
            input_features, attention_mask: of the same utterances, or `encoder_outputs` in place of the features.

        Returns:
            One (B, H, U) tensor of encoder positions per monotonic layer; entry u belongs to token sequences[:, 1 + u]
            (what stands behind the end of a sentence means nothing). Empty for a model without monotonic layers, or
            with monotonic_decoding="soft".
        """
        training, _ = self.training, self.eval()
        try:
            outputs = self.model(
                input_features,
                attention_mask=attention_mask,
                decoder_input_ids=sequences[:, :-1],
                encoder_outputs=encoder_outputs,
                use_cache=False,
                output_boundaries=True,
                return_dict=True,
            )
        finally:
            self.train(training)
        return outputs.boundaries

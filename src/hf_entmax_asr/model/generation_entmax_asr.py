"""Generation: `generate` of transformers with the cache of this model, and where the monotonic heads stopped."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .cache import make_cache
from .configuration_entmax_asr import EntmaxAsrConfig
from .prompts import DETECT, likeliest_languages, prompt_ids


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
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        language: str | None = None,
        task: str | None = None,
        **kwargs: Any,
    ) -> ModelOutput | Tensor:
        """As in transformers, with greedy search, sampling, beam search and assisted decoding.

        `language` ("en", …, or "auto" to choose the likeliest for each utterance) and `task` ("transcribe",
        "translate") are for models that started from a multilingual Whisper; by default the configuration's
        `decoder_prompt_ids` stand before the text.

        With `return_dict_in_generate=True`, a model whose monotonic heads read hard also returns `boundaries`: one
        (N, H, U) tensor of encoder positions per monotonic layer for the N returned sequences (see `head_boundaries`).
        They cost one more pass of the decoder over the finished sequences; the audio is encoded once.
        """
        settings, _ = self._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
        features = kwargs.get("input_features") if inputs is None else inputs
        encoder_outputs = kwargs.get("encoder_outputs")
        wants_boundaries = settings.return_dict_in_generate and self._stops_are_hard()
        needs_states = wants_boundaries or language == DETECT
        if encoder_outputs is None and features is not None and needs_states:
            encoder_outputs = self.get_encoder()(
                features,
                attention_mask=kwargs.get("attention_mask"),
                output_attentions=settings.output_attentions,
                output_hidden_states=settings.output_hidden_states,
                return_dict=True,
            )
        source = features if encoder_outputs is None else encoder_outputs[0]
        if source is not None and kwargs.get("decoder_input_ids") is None:
            kwargs |= self._prompt(source, encoder_outputs, kwargs.get("attention_mask"), language, task)
        kwargs |= self._token_limit(generation_config, kwargs)
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

    def _prompt(
        self,
        source: Tensor,
        encoder_outputs: BaseModelOutput | tuple | None,
        attention_mask: Tensor | None,
        language: str | None,
        task: str | None,
    ) -> dict[str, Tensor]:
        """`decoder_input_ids` (B, 1 + tokens of the prompt) for the B rows of `source`; nothing without a prompt."""
        given = (self.config.decoder_start_token_id,)
        start = torch.tensor(given, device=source.device).expand(len(source), -1)
        if language == DETECT:
            outputs = self(encoder_outputs=encoder_outputs, attention_mask=attention_mask, decoder_input_ids=start)
            languages = likeliest_languages(outputs.logits[:, 0], self.generation_config)
            prompts = [prompt_ids(self.generation_config, each, task) for each in languages]
        elif language is not None or task is not None:
            prompts = [prompt_ids(self.generation_config, language, task)] * len(source)
        else:
            prompts = [list(self.config.decoder_prompt_ids)] * len(source)
        if not prompts[0]:
            return {}
        return {"decoder_input_ids": torch.cat([start, torch.tensor(prompts, device=source.device)], 1)}

    def _token_limit(self, generation_config: GenerationConfig | None, asked: dict[str, Any]) -> dict[str, int]:
        """No more tokens than a learned table of positions has rows; so many, where nobody set a limit."""
        if self.config.decoder_positions != "learned":
            return {}
        most, given = self.config.max_target_positions, asked.get("decoder_input_ids")
        settings = generation_config or self.generation_config
        new_tokens, length = (asked.get(name) or getattr(settings, name) for name in ("max_new_tokens", "max_length"))
        if new_tokens is not None:
            return {"max_new_tokens": min(new_tokens, most - (1 if given is None else given.shape[1]))}
        return {"max_length": most if length in (None, GenerationConfig().max_length) else min(length, most)}

    def _stops_are_hard(self) -> bool:
        return self.config.cross_attention == "monotonic" and self.config.monotonic_decoding == "hard"

    def _prepare_cache_for_generation(  # type: ignore[override]  # it says bool there and returns nothing
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
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

    def transcriber(self, processor: Any, **options: Any) -> Any:
        """A pipeline of this model: audio of any length to text, with times of words where they are asked for.

        Args:
            processor: with the feature extractor and the tokenizer of this model.
            options: of `EntmaxAsrPipeline`.
        """
        # Here, because transformers takes a second to import its pipelines.
        from .pipeline_entmax_asr import EntmaxAsrPipeline

        return EntmaxAsrPipeline(
            self, feature_extractor=processor.feature_extractor, tokenizer=processor.tokenizer, **options
        )

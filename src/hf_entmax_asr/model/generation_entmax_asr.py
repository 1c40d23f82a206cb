"""Generation: `generate` of transformers with the cache of this model, and where the monotonic heads stopped."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, logging

from .cache import make_cache
from .chunks import Chunks, encoder_chunks
from .configuration_entmax_asr import EntmaxAsrConfig
from .ctc_generation import generate_with_ctc_alone, weight_of_ctc, with_ctc
from .generation_inputs import (
    NO_LIMIT,
    EndWithAudio,
    check_source,
    gathers_shards,
    most_tokens,
    no_circles,
    with_cheap_suppression,
)
from .live_generation import check_live, generate_live
from .pauses import PauseRule
from .prompts import DETECT, likeliest_languages, prompt_ids
from .sessions import StreamSession


def as_encoder_outputs(encoder_outputs: BaseModelOutput | tuple) -> BaseModelOutput:
    """A copy of encoder outputs given as an object or as a tuple (states, hidden states, attentions)."""
    if isinstance(encoder_outputs, tuple):
        return BaseModelOutput(*encoder_outputs[:3])
    return type(encoder_outputs)(**encoder_outputs)


logger = logging.get_logger(__name__)

CUT = (
    "A text was cut where it had more tokens than speech of its length has (config.max_tokens_per_position for each "
    "position of the encoder). The audio may hold no speech, or speech unlike that of the training; or the model does "
    "not stop yet."
)


class EntmaxAsrGenerationMixin(PreTrainedModel, GenerationMixin):
    """`generate` with the cache of this model, which also tells where each monotonic head stopped."""

    # GenerationMixin types `self` as a class of its own that exists for type checkers alone, hence the ignores below.
    config: EntmaxAsrConfig

    def post_init(self) -> None:
        super().post_init()
        if self.generation_config is not None:
            self.generation_config.max_length = NO_LIMIT  # else pipelines set one of their own, too short for minutes
            self.generation_config._from_model_config = False  # else what is its own (ctc_weight) is lost when loaded

    @gathers_shards
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

        A text ends at the latest where it has as many tokens as speech of its length can (`max_tokens_per_position` of
        the configuration), with a warning; `max_new_tokens` and `max_length` can end it before. A phrase stands at most
        `max_repeats` times in a row (8; 0: as often as the model will), so that no text goes round in circles.

        With `return_dict_in_generate=True`, a model whose monotonic heads read hard also returns `boundaries`, as
        `head_boundaries` has them for the N returned sequences, at the cost of one more pass of the decoder.

        `ctc_weight`, here or in the generation configuration: 0, the default, is the decoder alone, between 0 and 1
        CTC has its say at every token (see `ctc_prefix`), 1 is CTC alone, without the decoder (see `ctc_search`).

        `input_features` may be an iterator of pieces of audio or features as they come in: see `live_generation`.
        """
        features = kwargs.get("input_features") if inputs is None else inputs
        if isinstance(features, Iterator):
            return self._generate_live(features, generation_config, language, task, kwargs)
        settings, _ = self._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
        encoder_outputs, cache = kwargs.get("encoder_outputs"), kwargs.get("past_key_values")
        ctc_weight = weight_of_ctc(self, settings, kwargs)
        chunks = {name: kwargs.pop(name, None) for name in ("encoder_chunk_size", "encoder_left_chunks")}
        check_source(self.config, features, encoder_outputs, kwargs.get("attention_mask"), cache)
        wants_boundaries = settings.return_dict_in_generate and self._stops_are_hard()
        needs_states = wants_boundaries or language == DETECT or ctc_weight > 0 or {*chunks.values()} != {None}
        if encoder_outputs is None and features is not None and needs_states:
            wanted = {name: getattr(settings, name) for name in ("output_attentions", "output_hidden_states")}
            mask = kwargs.get("attention_mask")
            encoder_outputs = self.get_encoder()(features, attention_mask=mask, return_dict=True, **chunks, **wanted)
        source = features if encoder_outputs is None else encoder_outputs[0]
        if source is not None and kwargs.get("decoder_input_ids") is None:
            kwargs |= self._prompt(source, encoder_outputs, kwargs.get("attention_mask"), language, task)
        limits = most_tokens(self.config, features, encoder_outputs, kwargs.get("attention_mask"))
        if encoder_outputs is not None and ctc_weight == 1:
            _, others = self._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
            longest = self._longest(generation_config, kwargs, None)
            return generate_with_ctc_alone(self, settings, encoder_outputs, others, limits, longest)
        generation_config, kwargs, end = self._with_limits(settings, generation_config, kwargs, limits)
        if encoder_outputs is not None:
            kwargs["encoder_outputs"] = as_encoder_outputs(encoder_outputs)  # a copy: beams repeat states in place
            if ctc_weight > 0:
                kwargs |= with_ctc(self, ctc_weight, settings, encoder_outputs[0], kwargs)
        result = super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]
        if end is not None and limits is not None and (end.cut & (limits > 0)).any():
            logger.warning_once(CUT)
        if isinstance(result, ModelOutput) and wants_boundaries and encoder_outputs is not None:
            result["boundaries"] = self._boundaries(result.sequences, encoder_outputs[0], kwargs.get("attention_mask"))
        return result

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        return with_cheap_suppression(super()._get_logits_processor(*args, **kwargs))  # type: ignore[misc]

    def _boundaries(self, sequences: Tensor, states: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Of all returned sequences (N, 1 + U), for encoder states (B, S, C) and the mask (B, T) of frames."""
        repeats = sequences.shape[0] // states.shape[0]  # sequences of one utterance are neighbours
        return self.head_boundaries(
            sequences,
            attention_mask=None if mask is None else mask.repeat_interleave(repeats, 0),
            encoder_outputs=(states.repeat_interleave(repeats, 0),),
        )

    def _generate_live(
        self,
        pieces: Iterator[Any],
        generation_config: GenerationConfig | None,
        language: str | None,
        task: str | None,
        asked: dict[str, Any],
    ) -> ModelOutput | Tensor:
        """`generate` while audio comes in."""
        settings, others = self._prepare_generation_config(generation_config, **asked)  # type: ignore[misc]
        ctc_weight = weight_of_ctc(self, settings, others)
        chunks = encoder_chunks(self.config, False, asked)
        check_live(self, settings, chunks, ctc_weight, others)
        self._prepare_special_tokens(settings, device=self.device)  # type: ignore[misc]
        prompt = self._spoken_prompt(language, task)
        return generate_live(
            self,
            pieces,
            chunks,
            prompt,
            settings,
            self._longest(generation_config, asked, None) - 1 - len(prompt),
            asked.get("processor"),
            asked.get("streamer"),
            asked.get("logits_processor") or (),
        )

    def stream(
        self,
        processor: Any,
        chunk_ms: float = 640,
        left_chunks: int = -1,
        *,
        num_beams: int = 1,
        pause_ms: float | None = None,
        longest_seconds: float = 25.0,
        language: str | None = None,
        task: str | None = None,
        logits_processor: Sequence[LogitsProcessor] = (),
    ) -> StreamSession:
        """A session that writes text while audio comes in: `docs/streaming.md`.

        Args:
            processor: of this model.
            chunk_ms: audio that the encoder takes in at a time; a multiple of the time from position to position.
            left_chunks: chunks before it that a chunk reads in the encoder; -1: all. Bounded ones bound what is held.
            num_beams: more than 1 searches as `generate` does, and commits what all that can still win agree on.
            pause_ms: a pause so long ends an utterance, and the next one begins anew; None: all audio is one utterance,
                as in `generate`.
            longest_seconds: with `pause_ms`, an utterance is cut at the best place before it is longer than that.
            language, task: as in `generate`, but for "auto".
            logits_processor: as in `generate`; `FusedModel.stream` puts its language model here.

        Raises:
            ValueError: a model that must hear the end before it can write, features that need it, impossible values.
        """
        if num_beams < 1:
            raise ValueError(f"num_beams = {num_beams} must be at least 1.")
        extractor = processor.feature_extractor
        position_ms = 1000 * extractor.seconds_per_frame * self.config.frames_per_position
        size = round(chunk_ms / position_ms)
        if size < 1 or abs(size * position_ms - chunk_ms) > 1e-6:
            raise ValueError(
                f"chunk_ms = {chunk_ms} must be a multiple of {position_ms:g} ms, the time from one encoder position "
                f"to the next: {max(1, size) * position_ms:g} is the nearest."
            )
        if left_chunks < -1:
            raise ValueError(f"left_chunks = {left_chunks} must be at least 0, or -1 for all.")
        rule = None if pause_ms is None else PauseRule(pause_ms, longest_seconds * 1000)
        prompt = self._spoken_prompt(language, task)
        chunks = Chunks(size, left_chunks)
        return StreamSession(
            self,
            processor,
            chunks,
            pause_rule=rule,
            prompt=prompt,
            num_beams=num_beams,
            logits_processor=logits_processor,
        )

    def _spoken_prompt(self, language: str | None, task: str | None) -> list[int]:
        """Tokens behind the start token for audio that comes in."""
        if language == DETECT:
            raise ValueError(f"language = {DETECT!r} needs the whole audio: name the language.")
        if language is None and task is None:
            return list(self.config.decoder_prompt_ids)
        return prompt_ids(self.generation_config, language, task)

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

    def _with_limits(
        self,
        settings: GenerationConfig,
        generation_config: GenerationConfig | None,
        asked: dict[str, Any],
        limits: Tensor | None,
    ) -> tuple[GenerationConfig | None, dict[str, Any], EndWithAudio | None]:
        """The arguments of `generate` with the limits (B,) of the texts in them, and what notes the texts cut there."""
        length = {"max_length": self._longest(generation_config, asked, limits), "max_new_tokens": None}
        processors = [*(asked.get("logits_processor") or ()), *no_circles(settings, asked)]
        end = None
        if limits is not None and settings.eos_token_id is not None:
            ends = torch.as_tensor(settings.eos_token_id, device=limits.device).reshape(-1)
            given = asked.get("decoder_input_ids")
            end = EndWithAudio(limits, ends, 1 if given is None else given.shape[1])
            processors.append(end)
        asked["logits_processor"] = LogitsProcessorList(processors)
        if generation_config is None:
            return None, asked | length, end
        # Transformers wants all options in the configuration, where there is one.
        generation_config = copy.deepcopy(generation_config)
        generation_config.update(**length)
        return generation_config, {name: value for name, value in asked.items() if name not in length}, end

    def _longest(self, generation_config: GenerationConfig | None, asked: dict[str, Any], limits: Tensor | None) -> int:
        """The max_length of `generate`: no text is longer than audio and user let it, or a learned table of positions.

        limits: (B,) tokens of each text by its audio.
        """
        sources = (asked, vars(generation_config or GenerationConfig()), vars(self.generation_config))
        new_tokens, length = (
            next((source[name] for source in sources if source.get(name) is not None), None)
            for name in ("max_new_tokens", "max_length")
        )
        given = asked.get("decoder_input_ids")
        start = 1 if given is None else given.shape[1]
        longest = NO_LIMIT if limits is None else start + int(limits.max()) + 1
        if self.config.decoder_positions == "learned":
            longest = min(longest, self.config.max_target_positions)
        if new_tokens is not None:
            return min(longest, start + new_tokens)
        return longest if length is None else min(longest, length)

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

"""The systems that the paper compares with, out of an encoder and a head: RNN-T, SA-T, Sync-Transformer, LAS, CTC
models.

Features, tokens, losses per token, `generate` and checkpoints are those of the recogniser, so that all are trained
alike. What each system is, and where it differs from the original: docs/baselines.md.

Axes: B batch, T frames, S positions, U tokens, W = U + 1, C width, V vocabulary.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers import initialization as init
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, Seq2SeqLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from .configuration_entmax_asr import EntmaxAsrConfig
from .configuration_entmax_asr_baselines import MODEL_CLASSES, EntmaxAsrBaselineConfig
from .constituents import ConstituentEncoder
from .convolutional import Convolution, GatedConvolutionEncoder, JasperEncoder, MaskedBatchNorm
from .ctc_search import additions_of, likeliest_texts
from .feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from .generation_entmax_asr import as_encoder_outputs
from .generation_entmax_asr_baselines import SearchGenerationMixin
from .losses import IGNORED_LABEL, summed_ctc_loss, text_targets
from .modeling_entmax_asr import (
    EntmaxAsrDecoder,
    EntmaxAsrEncoder,
    EntmaxAsrForConditionalGeneration,
    EntmaxAsrModel,
    EntmaxAsrPreTrainedModel,
)
from .outputs import EntmaxAsrSeq2SeqLMOutput
from .processing_entmax_asr import EntmaxAsrProcessor
from .recurrent import PyramidEncoder, RecurrentEncoder
from .speller import Speller
from .transducer import transducer_head
from .transducer_lattice import (
    alignment_log_probability,
    best_alignment,
    streamed_emissions,
    transducer_log_probability,
)
from .transducer_search import Text, TextScorer, transducer_beams, transducer_greedy
from .transforms import learned_alphas

ENCODER_CLASSES: dict[str, type[nn.Module]] = {
    "constituent": ConstituentEncoder,
    "blstm": RecurrentEncoder,
    "pyramid": PyramidEncoder,
    "glu_conv": GatedConvolutionEncoder,
    "jasper": JasperEncoder,
}


class EntmaxAsrBaselinePreTrainedModel(EntmaxAsrPreTrainedModel):
    """Loading, saving and initialisation of the models of this file."""

    config: EntmaxAsrBaselineConfig
    _no_split_modules = ["EncoderLayer", "DecoderLayer", "ConstituentLayer", "BidirectionalLSTM", "JasperBlock"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        """As in the recogniser; LSTMs evenly within ±1/√cells, as torch has it."""
        if isinstance(module, (nn.LSTM, nn.LSTMCell)):
            for parameter in module.parameters():
                init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, Convolution):
            init.kaiming_uniform_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)
            if hasattr(module, "gain"):
                init.ones_(module.gain)
        elif isinstance(module, MaskedBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        else:
            super()._init_weights(module)

    def _check_head(self, config: EntmaxAsrBaselineConfig) -> None:
        """Refuses the configuration of another class: its weights would be made up, with a warning alone."""
        if MODEL_CLASSES[config.head] != type(self).__name__:
            raise ValueError(
                f"head = {config.head!r} is of {MODEL_CLASSES[config.head]}, not of {type(self).__name__}."
            )

    def alphas(self) -> dict[str, Tensor]:
        """The learned α (H,) of every attention module with the transform "entmax", detached."""
        return learned_alphas(self)

    def gates(self) -> dict[str, Tensor]:
        """None: gates are of monotonic heads."""
        return {}

    def proximal_gate_step(self, optimizer: torch.optim.Optimizer) -> None:
        """As of the recogniser; there are no gates."""


class EntmaxAsrBaselineEncoder(EntmaxAsrBaselinePreTrainedModel):
    """Features -> encoder states, by any encoder but the recogniser's own."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__(config)
        self.body = ENCODER_CLASSES[config.encoder_type](config)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple | BaseModelOutput:
        """input_features (B, T, F), attention_mask (B, T) 1 = real -> last_hidden_state (B, S, C)."""
        if kwargs.get("encoder_chunk_size"):
            raise ValueError(f"encoder_chunk_size: an encoder of type {self.config.encoder_type!r} has no chunks.")
        return BaseModelOutput(last_hidden_state=self.body(input_features, attention_mask))


def make_encoder(config: EntmaxAsrBaselineConfig) -> EntmaxAsrPreTrainedModel:
    """The encoder that the configuration names."""
    return EntmaxAsrEncoder(config) if config.encoder_type == "transformer" else EntmaxAsrBaselineEncoder(config)


class EntmaxAsrBaselineDecoder(EntmaxAsrBaselinePreTrainedModel):
    """Tokens and encoder states -> decoder states, by the speller of LAS."""

    main_input_name = "input_ids"

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__(config)
        self.speller = Speller(config)
        self.post_init()

    @property
    def embed_tokens(self) -> nn.Embedding:
        return self.speller.embed_tokens

    @embed_tokens.setter
    def embed_tokens(self, value: nn.Embedding) -> None:
        self.speller.embed_tokens = value

    @can_return_tuple
    def forward(self, **kwargs: Any) -> Any:
        """Arguments as for `Speller.forward`."""
        return self.speller(**kwargs)


class EntmaxAsrBaselineModel(EntmaxAsrModel, EntmaxAsrBaselinePreTrainedModel):
    """Encoder and decoder without an output projection."""

    config: EntmaxAsrBaselineConfig

    def __init__(self, config: EntmaxAsrBaselineConfig):
        EntmaxAsrPreTrainedModel.__init__(self, config)
        self.encoder: Any = make_encoder(config)
        self.decoder: Any = (EntmaxAsrDecoder if config.head == "attention" else EntmaxAsrBaselineDecoder)(config)
        self.post_init()


class EntmaxAsrBaselineForConditionalGeneration(EntmaxAsrForConditionalGeneration, EntmaxAsrBaselinePreTrainedModel):
    """An encoder with attention heads behind it: the recogniser's decoder, or that of LAS."""

    config: EntmaxAsrBaselineConfig

    def __init__(self, config: EntmaxAsrBaselineConfig):
        self._check_head(config)
        EntmaxAsrPreTrainedModel.__init__(self, config)
        self.model = EntmaxAsrBaselineModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.ctc_loss_weight > 0:
            self.ctc_head = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    # Trainer and generate read the names of its arguments.
    @wraps(EntmaxAsrForConditionalGeneration.forward)
    def forward(self, *args: Any, **kwargs: Any) -> tuple | EntmaxAsrSeq2SeqLMOutput:  # type: ignore[override]
        if self.training and self.config.head == "lstm_attention":
            kwargs["next_logits"] = self.lm_head
        return super().forward(*args, **kwargs)

    def _prepare_cache_for_generation(  # type: ignore[override]  # it says bool there and returns nothing
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if self.config.head == "lstm_attention" and model_kwargs.get("past_key_values") is None:
            if generation_config.use_cache is not False:
                model_kwargs["past_key_values"] = DynamicCache()
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


class EntmaxAsrBaselineForCTC(EntmaxAsrBaselinePreTrainedModel, SearchGenerationMixin):
    """An encoder and a score of every symbol at every position."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        self._check_head(config)
        super().__init__(config)
        self.encoder = make_encoder(config)
        self.ctc_head = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple | CausalLMOutput:
        """Arguments as for `EntmaxAsrForConditionalGeneration.forward` -> logits (B, S, V), and with labels the CTC
        loss per target token."""
        states = encoded(self, input_features, attention_mask, encoder_outputs)
        logits = self.ctc_head(states)
        loss = None
        if labels is not None:
            ctc = summed_ctc_loss(self.config, logits, labels, self.position_mask(attention_mask))
            loss = ctc / step_tokens(labels, num_items_in_batch)
        return CausalLMOutput(loss=loss, logits=logits)

    def search_texts(
        self, states: Tensor, mask: Tensor | None, limits: list[int], beams: int, scorer: TextScorer
    ) -> list[tuple[Text, float]]:
        symbols = scorer.symbols
        log_probs = self.ctc_head(states).float().log_softmax(2)
        log_probs[..., symbols.never] = -torch.inf
        lengths = torch.full((len(states),), states.shape[1], device=states.device) if mask is None else mask.sum(1)
        most = torch.minimum(lengths, torch.tensor(limits, device=states.device))
        start = torch.tensor([symbols.start], device=states.device)
        additions = additions_of(scorer.processors, start, log_probs.shape[2]) if scorer.processors else None
        found = likeliest_texts(log_probs, lengths, most, symbols.end, symbols.blank, beams, additions)
        best = zip(found.tokens[:, 0].tolist(), found.lengths[:, 0].tolist(), found.scores[:, 0].tolist(), strict=True)
        return [(tuple(tokens[:count]), score) for tokens, count, score in best]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; the checkpoint is one of AutoModelForCTC too."""
        name = f"{__name__.split('.')[-1]}.{type(self).__name__}"
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), "AutoModelForCTC": name}
        super().save_pretrained(*args, **kwargs)


class EntmaxAsrBaselineForTransducer(EntmaxAsrBaselinePreTrainedModel, SearchGenerationMixin):
    """An encoder and a transducer's head."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        self._check_head(config)
        super().__init__(config)
        self.encoder = make_encoder(config)
        self.head = transducer_head(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return next(module for name, module in self.head.named_modules() if name.endswith("embed_tokens"))

    def get_output_embeddings(self) -> nn.Module:
        return self.head.lm_head

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple | Seq2SeqLMOutput:
        """Arguments as for `EntmaxAsrForConditionalGeneration.forward` -> encoder states (B, S, C), and with labels the
        transducer's loss per target token. There are no logits: all of them would be (B, S, W, V)."""
        states = encoded(self, input_features, attention_mask, encoder_outputs)
        loss = None
        if labels is not None:
            summed = self._summed_loss(states, self.position_mask(attention_mask), labels)
            loss = summed / step_tokens(labels, num_items_in_batch)
        return Seq2SeqLMOutput(loss=loss, encoder_last_hidden_state=states)

    def _summed_loss(self, states: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        """−log P of the texts, and λ times that of their likeliest alignments; an utterance without one adds
        nothing."""
        config = self.config
        texts, counts = text_targets(config, labels)  # (B, U), (B,)
        start = texts.new_full((len(texts), 1), config.decoder_start_token_id)
        sources, steps = self.head.sources(states, mask)
        read = self.head.read(torch.cat([start, texts], 1))
        logits_of: Callable[[Tensor], Tensor] = lambda part: self.head.logits(part, read)  # noqa: E731
        blank, label = streamed_emissions(logits_of, sources, texts, config.pad_token_id, config.joint_frames)
        found = transducer_log_probability(blank, label, steps, counts)
        possible = found.isfinite()
        loss = -found.where(possible, 0.0).sum()
        if config.path_loss_weight:
            path = best_alignment(blank, label, steps, counts)
            along = alignment_log_probability(blank, label, steps, path)
            loss = loss - config.path_loss_weight * along.where(possible, 0.0).sum()
        return loss

    def search_texts(
        self, states: Tensor, mask: Tensor | None, limits: list[int], beams: int, scorer: TextScorer
    ) -> list[tuple[Text, float]]:
        sources, steps = self.head.sources(states, mask)
        most = self.config.max_symbols_per_position
        if beams == 1 and scorer.processors is None:
            texts = transducer_greedy(self.head, sources, steps.tolist(), limits, scorer.symbols, most)
            return [(text, 0.0) for text in texts]
        rows = zip(sources, steps.tolist(), limits, strict=True)
        return [transducer_beams(self.head, row[:n], limit, beams, most, scorer)[0] for row, n, limit in rows]


def encoded(
    model: Any, features: Tensor | None, attention_mask: Tensor | None, outputs: BaseModelOutput | tuple | None
) -> Tensor:
    """Encoder states (B, S, C), those given or those of the features."""
    if outputs is None:
        if features is None:
            raise ValueError("Give input_features (B, T, F), or encoder_outputs computed before.")
        outputs = model.encoder(features, attention_mask=attention_mask, return_dict=True)
    states: Tensor = as_encoder_outputs(outputs).last_hidden_state  # type: ignore[assignment]
    return states


def step_tokens(labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | int:
    """Target tokens that a loss is divided by: those of the whole step where that is made of several batches."""
    return (labels != IGNORED_LABEL).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch


def recogniser_class(config: EntmaxAsrConfig) -> Any:
    """The class of a model that transcribes, of the recogniser's configuration or of one of these systems."""
    if isinstance(config, EntmaxAsrBaselineConfig):
        return BASELINE_CLASSES[config.model_class]
    return EntmaxAsrForConditionalGeneration


BASELINE_CLASSES: dict[str, Any] = {
    model.__name__: model
    for model in (EntmaxAsrBaselineForConditionalGeneration, EntmaxAsrBaselineForCTC, EntmaxAsrBaselineForTransducer)
}
# This file, not the package's __init__, is what travels with a checkpoint: what a Hub user needs stands here.
EntmaxAsrBaselineConfig.register_for_auto_class()
for _class in BASELINE_CLASSES.values():
    _class.register_for_auto_class("AutoModelForSpeechSeq2Seq")
    # The ASR pipeline looks class names up here to tell what transcribes by `generate`.
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES[f"{EntmaxAsrBaselineConfig.model_type}.{_class.__name__}"] = (
        _class.__name__
    )
# Not in the copy that travels: the next checkpoint would then be read with the code of this one.
if __name__.startswith("hf_entmax_asr."):
    AutoConfig.register(EntmaxAsrBaselineConfig.model_type, EntmaxAsrBaselineConfig, exist_ok=True)
    # Auto classes choose among several by `architectures` of the configuration.
    AutoModelForSpeechSeq2Seq.register(EntmaxAsrBaselineConfig, tuple(BASELINE_CLASSES.values()), exist_ok=True)
    AutoModelForCTC.register(EntmaxAsrBaselineConfig, EntmaxAsrBaselineForCTC, exist_ok=True)
    AutoFeatureExtractor.register(EntmaxAsrBaselineConfig, EntmaxAsrFeatureExtractor, exist_ok=True)
    AutoProcessor.register(EntmaxAsrBaselineConfig, EntmaxAsrProcessor, exist_ok=True)

__all__ = [
    "EntmaxAsrBaselineForCTC",
    "EntmaxAsrBaselineForConditionalGeneration",
    "EntmaxAsrBaselineForTransducer",
]

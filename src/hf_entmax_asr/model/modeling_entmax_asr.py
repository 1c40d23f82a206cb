"""EntmaxAsr: an encoder-decoder speech recogniser with adaptively sparse and monotonic attention (arXiv 2209.15176)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import MultiHeadAttention, SelfAttention
from .cache import make_cache
from .chunks import encoder_chunks
from .configuration_entmax_asr import EntmaxAsrConfig
from .decoder import DecoderLayer, causal_mask, label_mask, shifted_labels
from .dropout import dropout
from .encoder import EncoderLayer
from .generation_entmax_asr import EntmaxAsrGenerationMixin, as_encoder_outputs
from .generation_inputs import without_text_inputs
from .head_penalties import reference_positions
from .layers import Positions, project
from .losses import recognition_losses, shrink_gates
from .monotonic import MonotonicAttention
from .outputs import EntmaxAsrDecoderOutput, EntmaxAsrModelOutput, EntmaxAsrSeq2SeqLMOutput
from .subsampling import front_end, position_mask
from .transforms import AttentionTransform, learned_alphas, mean_density


class EntmaxAsrPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and length arithmetic shared by the models of this file."""

    config: EntmaxAsrConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]  # noqa: RUF012
    # A fused kernel would compute softmax whatever the configuration says, and α would never learn.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = False

    def _init_weights(self, module: nn.Module) -> None:
        """Xavier for projections, unit-variance embeddings after their factor √C; covers every bare parameter."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding) or (isinstance(module, Positions) and hasattr(module, "weight")):
            init.normal_(module.weight, mean=0.0, std=self.config.d_model**-0.5)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, AttentionTransform):
            module.reset_parameters()
        elif isinstance(module, MonotonicAttention):
            init.constant_(module.energy_bias, self.config.energy_bias_init)
            if hasattr(module, "gate"):
                init.ones_(module.gate)

    def freeze_encoder(self) -> None:
        """Train everything but the encoder."""
        self.get_encoder().requires_grad_(False)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; AutoModel, too, then finds its class without this package."""
        if self.config.model_type == EntmaxAsrConfig.model_type:
            own = {"AutoModel": f"modeling_entmax_asr.{EntmaxAsrModel.__name__}"}
            self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | own
        super().save_pretrained(*args, **kwargs)

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor) -> Tensor:
        """Encoder positions of utterances of `input_lengths` feature frames."""
        return self.config.positions_of(input_lengths)

    def position_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Mask of feature frames (B, T), 1 = real, -> boolean mask of encoder positions (B, S)."""
        return None if attention_mask is None else position_mask(attention_mask, self.config.frames_per_position)

    def _embedding_scale(self) -> float:
        """What features and embeddings are multiplied by before positions are added."""
        return math.sqrt(self.config.d_model) if self.config.scale_embedding else 1.0

    def _needs_weights(self, kwargs: dict) -> bool:
        """Whether attention maps were asked for: without them, α-entmax attention need not hold them."""
        return bool(kwargs.get("output_attentions", self.config.output_attentions))


class EntmaxAsrEncoder(EntmaxAsrPreTrainedModel):
    """Features -> encoder states."""

    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": SelfAttention}  # noqa: RUF012

    def __init__(self, config: EntmaxAsrConfig):
        super().__init__(config)
        self.subsampling = front_end(config)
        self.embed_positions = Positions(config, "encoder")
        self.layers = nn.ModuleList(EncoderLayer(config, layer) for layer in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple | BaseModelOutput:
        """input_features (B, T, F), attention_mask (B, T) 1 = real -> last_hidden_state (B, S, C); in chunks, by the
        configuration or the arguments encoder_chunk_size and encoder_left_chunks."""
        x, mask = self.subsampling(input_features, attention_mask)  # (B, S, C), (B, S)
        x, rotation = self.embed_positions(x * self._embedding_scale()), self.embed_positions.rotation(x)
        x = dropout(x, self.config.dropout, self.training)
        key_mask = None if mask is None else mask[:, None, None, :]
        shared_map = None  # positional, as all that carries gradients: gradient checkpointing needs it so
        need_weights, chunks = self._needs_weights(kwargs), encoder_chunks(self.config, self.training, kwargs)
        for layer in self.layers:
            x, shared_map = layer(x, key_mask, shared_map, need_weights=need_weights, chunks=chunks, rotation=rotation)
        return BaseModelOutput(last_hidden_state=self.layer_norm(x))


class EntmaxAsrDecoder(EntmaxAsrPreTrainedModel):
    """Tokens and encoder states -> decoder states."""

    main_input_name = "input_ids"
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": DecoderLayer,
        "attentions": SelfAttention,
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="encoder_attn"),
        "boundaries": OutputRecorder(MonotonicAttention, index=2, layer_name="encoder_attn"),
    }

    def __init__(self, config: EntmaxAsrConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_positions = Positions(config, "decoder")
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        reference: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | EntmaxAsrDecoderOutput:
        """input_ids (B, U) or inputs_embeds (B, U, C), encoder_hidden_states (B, S, C), encoder_attention_mask (B, S),
        reference (B, U) positions of the tokens' ends, for the head penalty -> last_hidden_state (B, U, C)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give the decoder exactly one of decoder_input_ids and decoder_inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids) * self._embedding_scale()
        past_key_values = make_cache(self.config, past_key_values) if use_cache else None
        past_tokens = 0 if past_key_values is None else past_key_values.get_seq_length()
        tokens = inputs_embeds.shape[1]
        x = self.embed_positions(inputs_embeds, past_tokens)
        x = dropout(x, self.config.dropout, self.training)
        self_mask = causal_mask(attention_mask, tokens, past_tokens, x.device)
        source_mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        target_mask = None if attention_mask is None else attention_mask[:, -tokens:].bool()
        penalties, shared_map = [], None
        need_weights = self._needs_weights(kwargs)
        for layer in self.layers:
            x, penalty, shared_map = layer(
                x,
                self_mask,
                encoder_hidden_states,  # positional: gradient checkpointing needs it so
                source_mask,
                shared_map,
                past_key_values=past_key_values,
                past_tokens=past_tokens,
                target_mask=target_mask,
                need_weights=need_weights,
                reference=reference,
            )
            if penalty is not None:
                penalties.append(penalty)
        return EntmaxAsrDecoderOutput(
            last_hidden_state=self.layer_norm(x),
            past_key_values=past_key_values,
            head_penalty=torch.stack(penalties).sum() if penalties else None,
        )


class EntmaxAsrModel(EntmaxAsrPreTrainedModel):
    """Encoder and decoder without an output projection."""

    def __init__(self, config: EntmaxAsrConfig):
        super().__init__(config)
        self.encoder = EntmaxAsrEncoder(config)
        self.decoder = EntmaxAsrDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]
        self.decoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> tuple | EntmaxAsrModelOutput:
        """Arguments as for `EntmaxAsrForConditionalGeneration.forward`."""
        if encoder_outputs is None:
            if input_features is None:
                raise ValueError("Give input_features (B, T, F), or encoder_outputs computed before.")
            encoder_outputs = self.encoder(input_features, attention_mask=attention_mask, return_dict=True, **kwargs)
        encoder_outputs = as_encoder_outputs(encoder_outputs)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=self.position_mask(attention_mask),
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return EntmaxAsrModelOutput.of_sides(encoder_outputs, decoder_outputs)


class EntmaxAsrForConditionalGeneration(EntmaxAsrPreTrainedModel, EntmaxAsrGenerationMixin):
    """The recogniser: audio features in, tokens out."""

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: EntmaxAsrConfig):
        super().__init__(config)
        self.model = EntmaxAsrModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.ctc_loss_weight > 0:
            self.ctc_head = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the CTC head follows."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if hasattr(self, "ctc_head"):
            self.ctc_head = self._get_resized_lm_head(self.ctc_head, embeddings.weight.shape[0])
        return embeddings

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        token_frames: Tensor | None = None,  # with "label" in its name, Trainer would ask for it at evaluation
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple | EntmaxAsrSeq2SeqLMOutput:
        """
        Args:
            input_features: (B, T, F) log-mel features of the feature extractor.
            attention_mask: (B, T), 1 = real frame; None means that no frame is padding.
            decoder_input_ids: (B, U) tokens so far, starting with `decoder_start_token_id`.
            decoder_attention_mask: (B, U) or (B, past + U), 1 = real token.
            encoder_outputs, past_key_values: of an earlier call; the latter is ignored with `use_cache=False`.
            decoder_inputs_embeds: (B, U, C) in place of decoder_input_ids.
            labels: (B, U) target tokens ending with `eos_token_id`, −100 where padded.
            token_frames: (B, U) feature frame at which each of them ends in the audio, NaN where unknown, for the head
                penalty "reference".
            num_items_in_batch: target tokens of the whole step, of several batches (Trainer).
            kwargs: output_attentions, output_hidden_states, output_boundaries, return_dict.

        Returns:
            `loss` with labels: (1 − w) · cross entropy + w · CTC + λ · head penalty, the first two per target token;
            `logits` (B, U, V), attentions, `boundaries` and the parts of the loss.
        """
        if labels is not None:
            use_cache = False if past_key_values is None else use_cache  # training makes no cache
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
                if decoder_attention_mask is None:
                    decoder_attention_mask = label_mask(self.config, labels)
        outputs = self.model(
            input_features,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            reference=reference_positions(self.config, token_frames),
            return_dict=True,
            **without_text_inputs(kwargs),
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None:
            hidden_states = hidden_states[:, -labels.shape[1] :]  # without those of the prompt
        logits = project(self.lm_head, hidden_states)
        source_mask = self.position_mask(attention_mask)
        parts = {} if labels is None else self._losses(outputs, logits, labels, source_mask, num_items_in_batch)
        return EntmaxAsrSeq2SeqLMOutput.of_model(outputs, logits=logits, **parts)

    def _losses(
        self,
        outputs: EntmaxAsrModelOutput,
        logits: Tensor,
        labels: Tensor,
        source_mask: Tensor | None,
        num_items_in_batch: Tensor | int | None,
    ) -> dict[str, Tensor]:
        """The loss and its parts (see `recognition_losses`), with the CTC logits where there is a CTC head."""
        ctc_logits = None
        if self.config.ctc_loss_weight > 0:
            ctc_logits = self.ctc_head(outputs.encoder_last_hidden_state)
        losses = recognition_losses(
            self.config,
            logits,
            labels,
            ctc_logits=ctc_logits,
            source_mask=source_mask,
            head_penalty=outputs.head_penalty,
            density=mean_density(self) if self.training and self.config.sparsity_weight > 0 else None,
            num_items_in_batch=num_items_in_batch,
            label_smoothing=self.config.label_smoothing if self.training else 0.0,
        )
        return losses if ctc_logits is None else {"ctc_logits": ctc_logits.detach(), **losses}

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """As `shifted_labels`; the name is that of transformers."""
        return shifted_labels(self.config, labels)

    def alphas(self) -> dict[str, Tensor]:
        """The learned α (H,) of every attention module with the transform "entmax", detached."""
        return learned_alphas(self)

    def gates(self) -> dict[str, Tensor]:
        """The gate (H,) of every monotonic attention module that has gates, detached."""
        return {name: gate.detach() for name, gate in self._gates().items()}

    def proximal_gate_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Soft threshold of every gate, to be called after `optimizer.step()`; see `shrink_gates`. No-op without."""
        shrink_gates(set(self._gates().values()), optimizer, self.config.head_regularizer_weight)

    def _gates(self) -> dict[str, nn.Parameter]:
        return {
            name.removeprefix("model."): module.gate
            for name, module in self.named_modules()
            if isinstance(module, MonotonicAttention) and hasattr(module, "gate")
        }


# This file, not the package's __init__, is what travels with a checkpoint: what a Hub user needs stands here.
EntmaxAsrConfig.register_for_auto_class()
EntmaxAsrModel.register_for_auto_class("AutoModel")
EntmaxAsrForConditionalGeneration.register_for_auto_class("AutoModelForSpeechSeq2Seq")
# The ASR pipeline looks the class name up here to tell an encoder-decoder from a CTC model.
MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES[EntmaxAsrConfig.model_type] = EntmaxAsrForConditionalGeneration.__name__
# Not in the copy that travels: the next checkpoint would then be read with the code of this one.
if __name__.startswith("hf_entmax_asr."):
    AutoConfig.register(EntmaxAsrConfig.model_type, EntmaxAsrConfig, exist_ok=True)
    AutoModel.register(EntmaxAsrConfig, EntmaxAsrModel, exist_ok=True)
    AutoModelForSpeechSeq2Seq.register(EntmaxAsrConfig, EntmaxAsrForConditionalGeneration, exist_ok=True)

__all__ = ["EntmaxAsrForConditionalGeneration", "EntmaxAsrModel", "EntmaxAsrPreTrainedModel"]

"""What the models of this package return, beyond the fields of transformers' own output classes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)


@dataclass
class EntmaxAsrDecoderOutput(BaseModelOutputWithPastAndCrossAttentions):
    """Decoder output; `head_penalty` is the unweighted head regulariser of a training pass, `boundaries` (with
    `output_boundaries=True`) where each head stopped, one (B, H, U) per monotonic layer."""

    head_penalty: Tensor | None = None
    boundaries: tuple[Tensor, ...] | None = None


@dataclass
class EntmaxAsrModelOutput(Seq2SeqModelOutput):
    """As `Seq2SeqModelOutput`, with `head_penalty` and `boundaries` of the decoder."""

    head_penalty: Tensor | None = None
    boundaries: tuple[Tensor, ...] | None = None

    @classmethod
    def of_sides(cls, encoder: BaseModelOutput, decoder: EntmaxAsrDecoderOutput) -> "EntmaxAsrModelOutput":
        """What both sides returned, under the names that transformers gives them."""
        return cls(
            last_hidden_state=decoder.last_hidden_state,
            past_key_values=decoder.past_key_values,  # type: ignore[arg-type]  # a Cache there, ours is the kind here
            decoder_hidden_states=decoder.hidden_states,
            decoder_attentions=decoder.attentions,
            cross_attentions=decoder.cross_attentions,
            encoder_last_hidden_state=encoder.last_hidden_state,
            encoder_hidden_states=encoder.hidden_states,
            encoder_attentions=encoder.attentions,
            head_penalty=decoder.head_penalty,
            boundaries=decoder.boundaries,
        )


@dataclass
class EntmaxAsrSeq2SeqLMOutput(Seq2SeqLMOutput):
    """As `Seq2SeqLMOutput`, with the parts of the loss (detached), `ctc_logits` (B, S, V) and `boundaries`."""

    cross_entropy_loss: Tensor | None = None
    ctc_loss: Tensor | None = None
    head_penalty: Tensor | None = None
    ctc_logits: Tensor | None = None
    boundaries: tuple[Tensor, ...] | None = None

    @classmethod
    def of_model(cls, outputs: EntmaxAsrModelOutput, **more: Any) -> "EntmaxAsrSeq2SeqLMOutput":
        """What the model returned, but its last hidden state and penalty; `more`: logits and the parts of the loss."""
        kept: dict[str, Any] = {k: v for k, v in outputs.items() if k not in ("last_hidden_state", "head_penalty")}
        return cls(**kept, **more)

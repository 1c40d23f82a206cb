"""What the models of this package return, beyond the fields of transformers' own output classes."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import (
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


@dataclass
class EntmaxAsrSeq2SeqLMOutput(Seq2SeqLMOutput):
    """As `Seq2SeqLMOutput`, with the parts of the loss (detached), `ctc_logits` (B, S, V) and `boundaries`."""

    cross_entropy_loss: Tensor | None = None
    ctc_loss: Tensor | None = None
    head_penalty: Tensor | None = None
    ctc_logits: Tensor | None = None
    boundaries: tuple[Tensor, ...] | None = None

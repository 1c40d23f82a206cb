"""All meters of one analysis, fed with what a model gives back for each batch: a few numbers per head."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hf_entmax_asr.analysis.locality import (
    AgreementMeter,
    MeanMeter,
    cross_attention_measures,
    self_attention_measures,
)
from hf_entmax_asr.analysis.monotonic_heads import MonotonicMeter
from hf_entmax_asr.analysis.phoneme_attention import PhonemeAttentionMeter
from hf_entmax_asr.analysis.phonemes import NO_CLASS, SILENCE
from hf_entmax_asr.analysis.probe import PhonemeProbe
from hf_entmax_asr.analysis.sparsity import ScoreHistogram, SparsityMeter

Kind = Literal["encoder", "decoder", "cross", "monotonic"]
Part = Literal["train", "test", "unused"]  # what the probe does with a batch


class AttentionMeters:
    """What attention did in the batches so far.

    Attributes:
        kinds: of each attention module, by names such as encoder.layers.0.self_attn.
        means, sparsity: by the same names.
        agreement: of all encoder heads.
        histograms: of the weights of self-attention, by "encoder" and "decoder".
        monotonic: None before a batch with monotonic heads.
        phonemes: None without phoneme classes.
        probe: None until somebody sets one.
    """

    def __init__(self, model: Any, classes: Sequence[str] | None = None) -> None:
        """
        Args:
            model: its configuration and gates are read, nothing is run.
            classes: of the phonemes.
        """
        self.model, self.classes = model, classes
        self.kinds: dict[str, Kind] = {}
        self.means, self.sparsity, self.agreement = MeanMeter(), SparsityMeter(), AgreementMeter()
        self.histograms = {"encoder": ScoreHistogram(), "decoder": ScoreHistogram()}
        self.monotonic: MonotonicMeter | None = None
        self.phonemes = None if classes is None else PhonemeAttentionMeter(classes)
        self.probe: PhonemeProbe | None = None

    def update(
        self,
        output: Any,
        tokens: Tensor,
        positions: Tensor,
        phonemes: Tensor | None = None,
        part: Part = "unused",
    ) -> None:
        """Add a batch.

        Args:
            output: of the model, with all attentions, the encoder's hidden states, and boundaries.
            tokens: (B, U) boolean, true at real target tokens.
            positions: (B, S) boolean, true at real encoder positions.
            phonemes: (B, S) numbers of classes, NO_CLASS (−1) where there is none.
        """
        encoder = _by_module("encoder", "self_attn", output.encoder_attentions)
        self._add("encoder", encoder, positions, positions)
        prompt = len(self.model.config.decoder_prompt_ids)  # it is read, but nothing is heard for it
        read = torch.nn.functional.pad(tokens, (prompt, 0), value=True)
        self._add("decoder", _by_module("decoder", "self_attn", output.decoder_attentions), read, read, causal=True)
        cross = [weights[:, :, prompt:] for weights in output.cross_attentions]
        self._add("cross", _by_module("decoder", "encoder_attn", cross), tokens, positions)
        self.agreement.update(encoder, positions, positions)
        if output.boundaries:
            if self.monotonic is None:
                self.monotonic = self._monotonic_meter()
            boundaries = [stops[:, :, prompt:] for stops in output.boundaries]
            self.monotonic.update(boundaries, tokens.sum(1), positions.sum(1))
        if self.phonemes is not None and phonemes is not None:
            self.phonemes.update(encoder, phonemes, positions)
            self._add_to_probe(output.encoder_hidden_states, phonemes, part)

    def _add(
        self,
        side: Literal["encoder", "decoder", "cross"],
        maps: Mapping[str, Tensor],
        queries: Tensor,
        keys: Tensor,
        causal: bool = False,
    ) -> None:
        self.sparsity.update(maps, queries, keys, causal)
        for layer, (name, weights) in enumerate(maps.items()):
            self.kinds[name] = "monotonic" if side == "cross" and self.model.config.is_monotonic(layer) else side
            if side == "cross":
                self.means.update(name, cross_attention_measures(weights, queries, keys))
                continue
            self.means.update(name, self_attention_measures(weights, queries, causal))
            self.histograms[side].update(weights, queries, keys, causal)

    def _add_to_probe(self, hidden_states: Sequence[Tensor], phonemes: Tensor, part: Part) -> None:
        """What is to be told apart are phonemes; silence is left out."""
        if self.probe is None or self.classes is None or part == "unused":
            return
        if SILENCE in self.classes:
            phonemes = phonemes.masked_fill(phonemes == self.classes.index(SILENCE), NO_CLASS)
        (self.probe.train if part == "train" else self.probe.test)(hidden_states, phonemes)

    def _monotonic_meter(self) -> MonotonicMeter:
        config, gates = self.model.config, self.model.gates()
        layers = [layer for layer in range(config.decoder_layers) if config.is_monotonic(layer)]
        ones = {f"decoder.layers.{layer}.encoder_attn": torch.ones(config.heads("cross", layer)) for layer in layers}
        active = [gates.get(name, heads).cpu() != 0 for name, heads in ones.items()]
        return MonotonicMeter(config.first_monotonic_layer, active if torch.cat(active).any() else None)


def _by_module(side: str, module: str, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{side}.layers.{layer}.{module}": weights for layer, weights in enumerate(maps)}

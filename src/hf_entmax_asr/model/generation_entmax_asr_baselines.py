"""`generate` of the systems without a decoder of transformers' kind: CTC and transducers."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from .generation_entmax_asr import as_encoder_outputs
from .generation_inputs import NO_LIMIT, check_source, gathers_shards, most_tokens, without_text_inputs
from .transducer_search import Symbols, Text, TextScorer

UNSUPPORTED = {"do_sample": False, "num_return_sequences": 1, "num_beam_groups": 1}  # and what they must be


class SearchGenerationMixin(PreTrainedModel, GenerationMixin):
    """`generate` with the contract of transformers, by `search_texts` of the model."""

    config: EntmaxAsrBaselineConfig

    def post_init(self) -> None:
        super().post_init()
        settings: Any = self.generation_config
        if settings is not None:
            settings.max_length = NO_LIMIT  # else pipelines set one of their own, too short for minutes
            if self.config.head == "ctc":  # what gives language models and others the weight of CTC asks for it here
                settings.ctc_weight = 1.0
            settings._from_model_config = False  # else what is its own is lost when loaded

    def search_texts(
        self, states: Tensor, mask: Tensor | None, limits: list[int], beams: int, scorer: TextScorer
    ) -> list[tuple[Text, float]]:
        """Encoder states (B, S, C) and their mask (B, S) -> the text of each utterance, without blanks, and its score
        (0 of a transducer's greedy search)."""
        raise NotImplementedError

    @gathers_shards
    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        **kwargs: Any,
    ) -> ModelOutput | Tensor:
        """Token ids (B, U) as the recogniser gives them: the start token, the text without blanks, the end token,
        padding.

        Greedy with num_beams = 1 and no logits processors, else a beam search that sums over alignments. Processors (a
        language model) judge each next token of a text and its end, never a blank. A text has at most as many tokens as
        speech of its length can (`max_tokens_per_position`), and at most max_new_tokens.

        Args:
            inputs: features (B, T, F), or `input_features`, or `encoder_outputs` of them.
            kwargs: num_beams, max_new_tokens, max_length, return_dict_in_generate, as in transformers.

        Raises:
            ValueError: sampling, several sequences for one utterance, or an argument that means nothing here.
        """
        features = kwargs.pop("input_features", None) if inputs is None else inputs
        settings, others = self._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
        self._check_settings(settings, without_text_inputs(others))
        check_source(self.config, features, encoder_outputs, attention_mask)
        if encoder_outputs is None:
            if features is None:
                raise ValueError("Give input_features (B, T, F), or encoder_outputs computed before.")
            encoder_outputs = self.get_encoder()(features, attention_mask=attention_mask, return_dict=True)
        states: Tensor = as_encoder_outputs(encoder_outputs).last_hidden_state  # type: ignore[assignment]
        limits = most_tokens(self.config, features, encoder_outputs, attention_mask)
        asked = NO_LIMIT if settings.max_new_tokens is None else settings.max_new_tokens
        if settings.max_length is not None:
            asked = min(asked, settings.max_length - 1)
        most = [asked] * len(states) if limits is None else [min(asked, limit) for limit in limits.tolist()]
        scorer = TextScorer(logits_processor, self._symbols())
        mask = self.position_mask(attention_mask)  # type: ignore[operator]
        found = self.search_texts(states, mask, most, settings.num_beams or 1, scorer)
        sequences = self._as_sequences([text for text, _ in found], states.device)
        if not settings.return_dict_in_generate:
            return sequences
        scores = torch.tensor([score for _, score in found], device=states.device)
        return ModelOutput(sequences=sequences, sequences_scores=scores)

    def _check_settings(self, settings: GenerationConfig, others: dict[str, Any]) -> None:
        for name, only in UNSUPPORTED.items():
            if (value := getattr(settings, name, None)) not in (None, only):
                raise ValueError(f"{name} = {value!r}: a {self.config.head} model searches greedily or with num_beams.")
        weight, own = getattr(settings, "ctc_weight", None), int(self.config.head == "ctc")
        if weight not in (None, own):
            raise ValueError(f"ctc_weight = {weight}: of a {self.config.head} model it is {own}; leave it out.")
        if given := [name for name, value in others.items() if value is not None]:
            raise ValueError(f"{given[0]} means nothing to a {self.config.head} model: leave it out.")

    def _symbols(self) -> Symbols:
        config = self.config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        never = {config.bos_token_id, config.decoder_start_token_id, *ends} - {None, config.pad_token_id}
        end = next((token for token in ends if token is not None), config.pad_token_id)
        return Symbols(config.pad_token_id, sorted(never), config.decoder_start_token_id, end)

    def _as_sequences(self, texts: list[Text], device: torch.device) -> Tensor:
        symbols = self._symbols()
        longest = max(map(len, texts))
        rows = [[symbols.start, *t, symbols.end, *[self.config.pad_token_id] * (longest - len(t))] for t in texts]
        return torch.tensor(rows, device=device)

"""The processor: audio to features, text to labels, token ids back to text."""

from typing import Any

from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from .configuration_entmax_asr import EntmaxAsrConfig
from .losses import IGNORED_LABEL


class EntmaxAsrProcessor(ProcessorMixin):
    """Joins an `EntmaxAsrFeatureExtractor` and a tokenizer, as other speech processors of transformers do.

    Options go to whichever of the two knows them. Those that both know (padding, max_length, ...) can be kept apart
    with ``audio_kwargs={...}`` and ``text_kwargs={...}``. By default everything is padded to the longest and comes as
    PyTorch tensors. `decode` and `batch_decode` are the tokenizer's.
    """

    text_kwargs = {"padding": True, "return_tensors": "pt"}  # noqa: RUF012 (as in transformers)
    audio_kwargs = {"return_tensors": "pt"}  # noqa: RUF012 (as in transformers)

    def __init__(self, feature_extractor: Any, tokenizer: Any):
        super().__init__(feature_extractor, tokenizer)

    def __call__(self, audio: Any = None, text: str | list[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Features of ``audio``, labels of ``text``, or both.

        Args:
            audio: a recording or a batch of them, as in `EntmaxAsrFeatureExtractor.__call__`. Give its
                ``sampling_rate`` (Hz) with it.
            text: a transcript or a list of them, one a recording.

        Returns:
            With audio, input_features (B, T, F) and attention_mask (B, T), 1 where a frame is real; with text as well,
            also labels (B, U), the token ids and ``</s>``, padded with -100. With text alone, what the tokenizer
            returns: input_ids and attention_mask (B, U).

        Raises:
            ValueError: neither audio nor text; a different number of texts and recordings; audio that the feature
                extractor refuses.
        """
        if audio is None and text is None:
            raise ValueError("Nothing to process: give audio, text or both.")
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        if audio is None:
            return self.tokenizer(text, **options["text_kwargs"])
        features = self.feature_extractor(audio, **options["audio_kwargs"])
        if text is None:
            return features
        texts = [text] if isinstance(text, str) else list(text)
        if len(texts) != len(features["input_features"]):
            raise ValueError(f"{len(features['input_features'])} recordings but {len(texts)} texts: give one for each.")
        return_tensors = options["text_kwargs"].pop("return_tensors", None)
        encoded = self.tokenizer(texts, **options["text_kwargs"] | {"return_attention_mask": True})
        labels = [
            [token if real else IGNORED_LABEL for token, real in zip(ids, mask, strict=True)]
            for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]
        return BatchFeature({**features, "labels": labels}, tensor_type=return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        """What the model's forward takes from a call with audio and text."""
        return [*self.feature_extractor.model_input_names, "labels"]


EntmaxAsrProcessor.register_for_auto_class()
# Not in the copy that travels with a checkpoint: the next checkpoint would then be read with the code of this one.
if __name__.startswith("hf_entmax_asr."):
    AutoProcessor.register(EntmaxAsrConfig, EntmaxAsrProcessor, exist_ok=True)

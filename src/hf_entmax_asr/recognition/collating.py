"""From examples to a batch: features computed for the whole batch at once, labels padded with -100."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_entmax_asr.audio import waveform_of
from hf_entmax_asr.augmentation import Draw, SpecAugment, WaveformPerturbation, change_speed
from hf_entmax_asr.model.losses import IGNORED_LABEL


class SpeechSeq2SeqCollator:
    """Data collator for this package's training engine and for `Seq2SeqTrainer`.

    An example is a mapping with

    - `input_features` (T, F), or `audio` in any form that `waveform_of` takes: a mono waveform as a 1-D array at the
      processor's sampling rate, a path, or a row of a datasets `Audio` column, decoded or not; it is played at `speed`
      where that is given. Both, where `perturb` may change the audio: features are computed where it does;
    - `labels` (token ids) or `text`, unless the batch is for inference only; other keys are ignored;
    - perhaps `label_ends`, the seconds at which each of the labels ends in the audio, NaN where unknown.

    The batch holds `input_features` (B, T, F), `attention_mask` (B, T) with 1 at real frames, `labels` (B, U) and, of
    examples with ends, `token_frames` (B, U).
    With `Seq2SeqTrainer` set `remove_unused_columns=False`, because the columns it would keep are the model's.
    """

    def __init__(
        self,
        processor: Any,
        spec_augment: SpecAugment | None = None,
        perturb: WaveformPerturbation | None = None,
        decoder_inputs_by: Any = None,
    ) -> None:
        """`perturb` and `spec_augment` change every batch: give them only to a collator that serves training alone.

        With a model as `decoder_inputs_by`, labels come with the decoder inputs that it makes of them, which Trainer's
        `label_smoothing_factor` needs. Models with a prompt (`decoder_prompt_ids`) are refused there; set
        `label_smoothing` of the model's configuration instead.
        """
        if decoder_inputs_by is not None and decoder_inputs_by.config.decoder_prompt_ids:
            raise ValueError(
                f"the model has a prompt of {len(decoder_inputs_by.config.decoder_prompt_ids)} tokens, which Trainer's "
                "label smoothing does not know: set config.label_smoothing instead of label_smoothing_factor"
            )
        self.decoder_inputs_by = decoder_inputs_by
        self.feature_extractor = processor.feature_extractor
        self.tokenizer = processor.tokenizer
        self.spec_augment, self.perturb = spec_augment, perturb

    def __call__(
        self, examples: Sequence[Mapping[str, Any]], generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Collate; `generator` is the source of the augmentation's randomness.

        Raises:
            ValueError: an example has neither features nor audio, or no audio where the waveform is to be perturbed.
        """
        labels: list[Sequence[int]] = []
        draws = [None if self.perturb is None else self.perturb.draw(generator) for _ in examples]
        replaced = [self.perturb is not None and self.perturb.replaces(draw) for draw in draws]
        features, mask, moved = self._features(examples, draws)
        if self.spec_augment is not None:
            features = self.spec_augment(features, mask.sum(dim=1), generator)
        collated = {"input_features": features, "attention_mask": mask}
        if all("labels" in example or "text" in example for example in examples):
            labels = [self._labels(example, empty) for example, empty in zip(examples, replaced, strict=True)]
            collated["labels"] = pad_labels(labels)
            if (model := self.decoder_inputs_by) is not None:
                collated["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(collated["labels"])
                collated["decoder_attention_mask"] = (collated["labels"] != IGNORED_LABEL).int()
        if all("label_ends" in example for example in examples):
            ends = [torch.tensor(example["label_ends"]) for example in examples]
            for row, labels_of_row in enumerate(labels):
                if moved[row]:  # the times are not those of this audio
                    ends[row] = torch.full((len(labels_of_row),), math.nan)
            padded = torch.nn.utils.rnn.pad_sequence(ends, batch_first=True, padding_value=math.nan)
            collated["token_frames"] = padded / self.feature_extractor.seconds_per_frame
        return collated

    def _labels(self, example: Mapping[str, Any], replaced: bool) -> Sequence[int]:
        if replaced:
            return self.tokenizer("").input_ids
        return example["labels"] if "labels" in example else self.tokenizer(example["text"]).input_ids

    def _features(
        self, examples: Sequence[Mapping[str, Any]], draws: Sequence[Draw | None]
    ) -> tuple[torch.Tensor, torch.Tensor, list[bool]]:
        """(B, T, F), their mask (B, T), and in which of them speech is not where it was. Features that are there are
        taken where the audio stays as it is."""
        known = [
            draw is None and "input_features" in example and example.get("speed", 1.0) == 1
            for example, draw in zip(examples, draws, strict=True)
        ]
        moved = [False] * len(examples)
        waveforms: list[np.ndarray] = []
        for row in (row for row, there in enumerate(known) if not there):
            waveform = self._waveform(examples[row])
            samples = len(waveform)
            if self.perturb is not None:
                waveform = self.perturb.apply(waveform, draws[row])
                moved[row] = len(waveform) != samples or self.perturb.replaces(draws[row])
            waveforms.append(waveform)
        made: Iterator[torch.Tensor] = iter(())
        if waveforms:
            rate = self.feature_extractor.sampling_rate
            batch = self.feature_extractor(waveforms, sampling_rate=rate, padding=True, return_tensors="pt")
            if not any(known):
                return batch["input_features"], batch["attention_mask"], moved
            lengths = batch["attention_mask"].sum(dim=1).tolist()
            made = (row[:length] for row, length in zip(batch["input_features"], lengths, strict=True))
        rows = [e["input_features"] if there else next(made) for e, there in zip(examples, known, strict=True)]
        return *pad_features(rows), moved

    def _waveform(self, example: Mapping[str, Any]) -> np.ndarray:
        if "audio" not in example:
            needed = "'audio'" if self.perturb is not None else "'input_features' or 'audio'"
            raise ValueError(f"an example needs {needed}; this one has {sorted(example)}")
        waveform = waveform_of(example["audio"], self.feature_extractor.sampling_rate)
        return waveform if example.get("speed", 1.0) == 1 else change_speed(waveform, example["speed"])


def pad_features(features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack (T_i, F) features of any float type into float32 (B, T, F), zero after each end, and their mask (B, T)."""
    tensors = [torch.as_tensor(f) for f in features]
    lengths = torch.tensor([len(t) for t in tensors])
    padded = torch.zeros(len(tensors), int(lengths.max()), tensors[0].shape[1])
    for row, tensor in zip(padded, tensors, strict=True):
        row[: len(tensor)] = tensor
    mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    return padded, mask.int()


def pad_labels(labels: Sequence[Sequence[int]]) -> torch.Tensor:
    """Stack token ids into (B, U), with -100 (ignored by the loss) after each end."""
    padded = torch.full((len(labels), max(len(row) for row in labels)), IGNORED_LABEL, dtype=torch.long)
    for target, row in zip(padded, labels, strict=True):
        target[: len(row)] = torch.as_tensor(row)
    return padded

"""Batches of the plan, read and collated ahead where worker processes are asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hf_entmax_asr.augmentation import SpecAugment, WaveformPerturbation, find_noise_files
from hf_entmax_asr.error_messages import described
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.utterances import DataError, Utterances
from hf_entmax_asr.training.batching import BatchOptions, BatchStream, MicroBatch
from hf_entmax_asr.training.recipe import AugmentationSection, Recipe, RecipeError


class _CollatedBatches(Dataset):
    """Maps a MicroBatch to itself and its tensors; runs in the loader's workers."""

    def __init__(self, utterances: Utterances, collator: SpeechSeq2SeqCollator) -> None:
        self.utterances, self.collator = utterances, collator

    def __getitem__(self, batch: MicroBatch) -> tuple[MicroBatch, dict[str, torch.Tensor] | str]:
        """The batch and its tensors; in their place what is wrong, for an error of a worker would come as a page."""
        generator = torch.Generator().manual_seed(batch.seed)
        try:
            with_audio = self.collator.perturb is not None
            chosen = zip(batch.indices, batch.speeds, strict=True)
            examples = [self.utterances.example(index, speed, with_audio) for index, speed in chosen]
            return batch, self.collator(examples, generator)
        except (OSError, ValueError, MemoryError) as error:
            return batch, described(error)


def _identity(item: Any) -> Any:
    return item


def _spec_augment(section: AugmentationSection) -> SpecAugment | None:
    if section.frequency_masks == section.time_masks == 0:
        return None
    return SpecAugment(
        F=section.frequency_mask_bins,
        m_F=section.frequency_masks,
        T=section.time_mask_frames,
        m_T=section.time_masks,
        p=section.time_mask_share,
    )


def noise_files(section: AugmentationSection) -> tuple[Path, ...]:
    """The recordings of noise that the recipe names; none where it names no folder: white noise.

    Raises:
        RecipeError: the folder holds none.
    """
    if section.noise_path is None:
        return ()
    try:
        return find_noise_files(section.noise_path)
    except ValueError as error:
        raise RecipeError(f"augmentation.noise_path: {error}; null takes white noise") from error


def _perturbation(section: AugmentationSection, sampling_rate: int) -> WaveformPerturbation | None:
    if section.volume_db == section.noise_share == section.silence_share == section.no_speech_share == 0:
        return None
    return WaveformPerturbation(
        volume_db=section.volume_db,
        noise_share=section.noise_share,
        noise_snr_db=section.noise_snr_db,
        noise_files=noise_files(section),
        sampling_rate=sampling_rate,
        silence_share=section.silence_share,
        silence_seconds=section.silence_seconds,
        no_speech_share=section.no_speech_share,
    )


def batch_loader(
    recipe: Recipe, processor: Any, train: Utterances, accelerator: Any, epoch: int = 0, next_index: int = 0
) -> DataLoader:
    """Endless (MicroBatch, tensors) of this process, from a position of the stream on."""
    section = recipe.batching
    options = BatchOptions(
        frames_per_batch=section.frames_per_batch,
        max_utterances=section.max_utterances,
        shuffle_window=section.shuffle_window,
        short_first_epochs=section.short_first_epochs,
        speeds=recipe.augmentation.speeds,
        seed=recipe.seed,
    )
    stream = BatchStream(
        train.frames,
        train.tokens,
        options,
        frames_at=processor.feature_extractor.frames_at,
        accumulation_steps=section.accumulation_steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        epoch=epoch,
        next_index=next_index,
    )
    perturb = _perturbation(recipe.augmentation, processor.feature_extractor.sampling_rate)
    collator = SpeechSeq2SeqCollator(processor, _spec_augment(recipe.augmentation), perturb)
    return DataLoader(
        _CollatedBatches(train, collator),
        sampler=stream,  # of MicroBatch, not of indices
        batch_size=None,
        collate_fn=_identity,
        num_workers=section.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator().manual_seed(recipe.seed),  # else the loader draws from the global one
    )


def training_batches(
    recipe: Recipe, processor: Any, train: Utterances, accelerator: Any, epoch: int = 0, next_index: int = 0
) -> Iterator[tuple[MicroBatch, dict[str, torch.Tensor]]]:
    """What `batch_loader` loads.

    Raises:
        DataError: a recording cannot be read, or a process that reads has ended.
    """
    batches = iter(batch_loader(recipe, processor, train, accelerator, epoch, next_index))
    while True:
        try:
            batch, tensors = next(batches)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a process that reads the audio ahead has ended ({str(error).splitlines()[0]}): was it killed for "
                "want of memory? Lower batching.num_workers, or set it to 0"
            ) from error
        if isinstance(tensors, str):
            raise DataError(f"a batch cannot be read: {tensors}")
        yield batch, tensors

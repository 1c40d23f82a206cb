"""Batches bounded by padded frames, planned from lengths alone: a run resumes at the exact batch, without replay.

An epoch's plan is a pure function of (lengths, options, seed, epoch). The position in training is then two integers,
the epoch and the next batch in it, and every process can compute the whole plan: each takes its own batches, and knows
the token count of the others', which makes the gradient of a step the mean over the tokens of all processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BatchOptions:
    """How an epoch is cut into batches.

    Attributes:
        frames_per_batch: bound on utterances x longest utterance, in feature frames.
        max_utterances: bound on utterances.
        shuffle_window: lengths are sorted within random windows of about this many batches. Small: more random
            batches and more padding.
        short_first_epochs: the first epochs go from the shortest batch to the longest instead.
        seed: of the shuffling and of the augmentation.
    """

    frames_per_batch: int
    max_utterances: int = 256
    shuffle_window: int = 16
    short_first_epochs: int = 0
    seed: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """One process's share of an optimizer step (one of `accumulation_steps` shares).

    Attributes:
        indices: utterances.
        weight: factor of this batch's mean loss, such that summing over accumulation and averaging over processes
            gives the mean over all tokens of the step.
        seed: of this batch's augmentation.
        step_frames: real frames of the whole step, all processes together.
        epoch, next_index: where the stream stands once the step is done.
    """

    indices: tuple[int, ...]
    weight: float
    seed: int
    step_frames: int
    epoch: int
    next_index: int


def cut_batches(order: Sequence[int] | np.ndarray, frames: np.ndarray, options: BatchOptions) -> list[tuple[int, ...]]:
    """Cut utterances, taken in `order`, into batches within the bounds.

    Raises:
        ValueError: one utterance alone is above `frames_per_batch`.
    """
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    longest = 0
    for index in order:
        length = int(frames[index])
        if length > options.frames_per_batch:
            raise ValueError(
                f"an utterance of {length} frames does not fit a batch of {options.frames_per_batch} frames: "
                "raise frames_per_batch or lower the longest duration allowed"
            )
        longest = max(longest, length)
        full = len(current) == options.max_utterances or longest * (len(current) + 1) > options.frames_per_batch
        if current and full:
            batches.append(tuple(current))
            current, longest = [], length
        current.append(int(index))
    if current:
        batches.append(tuple(current))
    return batches


def plan_epoch(frames: np.ndarray, options: BatchOptions, epoch: int) -> list[tuple[int, ...]]:
    """The batches of one epoch; the same arguments always give the same plan.

    Args:
        frames: (utterances,) feature frames of each utterance.
    """
    generator = np.random.default_rng([options.seed, epoch])
    shuffled = generator.permutation(len(frames))
    if epoch < options.short_first_epochs:
        # Equal lengths keep their random order: a stable sort of a shuffled list.
        return cut_batches(shuffled[np.argsort(frames[shuffled], kind="stable")], frames, options)
    per_batch = min(options.max_utterances, options.frames_per_batch / max(1.0, float(np.mean(frames))))
    window = max(1, round(options.shuffle_window * per_batch))
    windows = [shuffled[start : start + window] for start in range(0, len(shuffled), window)]
    by_length = [w[np.argsort(frames[w], kind="stable")] for w in windows]
    # Up in one window, down in the next: no batch holds the longest of one and the shortest of another.
    order = np.concatenate([w[::-1] if number % 2 else w for number, w in enumerate(by_length)])
    batches = cut_batches(order, frames, options)
    return [batches[i] for i in generator.permutation(len(batches))]


class BatchStream:
    """Endless micro-batches of one process, from a position on. Iterate; read the position off the last MicroBatch.

    A step takes `accumulation_steps * world_size` consecutive batches of the plan and runs over the end of an epoch
    into the next one, so that every process always has a batch.
    """

    def __init__(
        self,
        frames: Sequence[int] | np.ndarray,
        tokens: Sequence[int] | np.ndarray,
        options: BatchOptions,
        *,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        next_index: int = 0,
    ) -> None:
        """`frames` and `tokens` (utterances,) are the feature frames and the target tokens of each utterance."""
        if len(frames) == 0 or len(frames) != len(tokens):
            raise ValueError(
                f"{len(frames)} frame counts and {len(tokens)} token counts: one of each per utterance, at least one"
            )
        self.frames, self.tokens = np.asarray(frames), np.asarray(tokens)
        self.options = options
        self.accumulation_steps, self.rank, self.world_size = accumulation_steps, rank, world_size
        self.epoch, self.next_index = epoch, next_index

    def __iter__(self) -> Iterator[MicroBatch]:
        epoch, index = self.epoch, self.next_index
        plan = plan_epoch(self.frames, self.options, epoch)
        while True:
            step: list[tuple[int, ...]] = []
            seeds: list[int] = []
            for _ in range(self.accumulation_steps * self.world_size):
                if index >= len(plan):
                    epoch, index = epoch + 1, 0
                    plan = plan_epoch(self.frames, self.options, epoch)
                step.append(plan[index])
                seeds.append(_augmentation_seed(self.options.seed, epoch, index))
                index += 1
            tokens = [int(self.tokens[list(batch)].sum()) for batch in step]
            step_frames = sum(int(self.frames[list(batch)].sum()) for batch in step)
            for share in range(self.rank, len(step), self.world_size):
                weight = tokens[share] * self.world_size / max(1, sum(tokens))
                yield MicroBatch(step[share], weight, seeds[share], step_frames, epoch, index)


def _augmentation_seed(seed: int, epoch: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, index, 1]).generate_state(1)[0])

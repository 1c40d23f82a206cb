"""Batches bounded by padded frames, planned from lengths alone: a run resumes at the exact batch, without replay.

An epoch's plan is a pure function of (lengths, options, seed, epoch). The position in training is then two integers,
the epoch and the next batch in it, and every process can compute the whole plan: each takes its own batches, and knows
the token count of the others', which makes the gradient of a step the mean over the tokens of all processes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hf_entmax_asr.recognition.batches import MAX_UTTERANCES, cut_batches

FramesAt = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (frames, speeds) -> frames at these speeds


@dataclass(frozen=True)
class BatchOptions:
    """How an epoch is cut into batches.

    Attributes:
        frames_per_batch: bound on utterances x longest utterance, in feature frames.
        max_utterances: bound on utterances.
        shuffle_window: lengths are sorted within random windows of about this many batches. Small: more random
            batches and more padding.
        short_first_epochs: the first epochs go from the shortest batch to the longest instead.
        speeds: every utterance is played at one of these in every epoch, each equally likely.
        seed: of the shuffling and of the augmentation.
    """

    frames_per_batch: int
    max_utterances: int = MAX_UTTERANCES
    shuffle_window: int = 16
    short_first_epochs: int = 0
    speeds: tuple[float, ...] = (1.0,)
    seed: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """One process's share of an optimizer step (one of `accumulation_steps` shares).

    Attributes:
        indices: utterances.
        speeds: of each.
        weight: factor of this batch's mean loss, such that summing over accumulation and averaging over processes
            gives the mean over all tokens of the step.
        seed: of this batch's augmentation.
        step_frames: real frames of the whole step, all processes together.
        epoch, next_index: where the stream stands once the step is done.
    """

    indices: tuple[int, ...]
    speeds: tuple[float, ...]
    weight: float
    seed: int
    step_frames: int
    epoch: int
    next_index: int


def draw_speeds(count: int, options: BatchOptions, epoch: int) -> np.ndarray:
    """(utterances,) the speed of each utterance in one epoch; the same arguments always give the same speeds."""
    return np.random.default_rng([options.seed, epoch, 2]).choice(options.speeds, count)


def plan_epoch(frames: np.ndarray, options: BatchOptions, epoch: int) -> list[tuple[int, ...]]:
    """The batches of one epoch; the same arguments always give the same plan.

    Args:
        frames: (utterances,) feature frames of each utterance, at its speed in this epoch.
    """
    generator = np.random.default_rng([options.seed, epoch])
    shuffled = generator.permutation(len(frames))
    if epoch < options.short_first_epochs:
        # Equal lengths keep their random order: a stable sort of a shuffled list.
        return cut_batches(
            shuffled[np.argsort(frames[shuffled], kind="stable")],
            frames,
            options.frames_per_batch,
            options.max_utterances,
        )
    per_batch = min(options.max_utterances, options.frames_per_batch / max(1.0, float(np.mean(frames))))
    window = max(1, round(options.shuffle_window * per_batch))
    windows = [shuffled[start : start + window] for start in range(0, len(shuffled), window)]
    by_length = [w[np.argsort(frames[w], kind="stable")] for w in windows]
    # Up in one window, down in the next: no batch holds the longest of one and the shortest of another.
    order = np.concatenate([w[::-1] if number % 2 else w for number, w in enumerate(by_length)])
    batches = cut_batches(order, frames, options.frames_per_batch, options.max_utterances)
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
        frames_at: FramesAt | None = None,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        next_index: int = 0,
    ) -> None:
        """`frames` and `tokens` (utterances,) are the feature frames and the target tokens of each utterance;
        `frames_at` says how many frames they have at other speeds (that of the feature extractor)."""
        if len(frames) == 0 or len(frames) != len(tokens):
            raise ValueError(
                f"{len(frames)} frame counts and {len(tokens)} token counts: one of each per utterance, at least one"
            )
        if frames_at is None and set(options.speeds) != {1.0}:
            raise ValueError(f"speeds are {options.speeds}: give frames_at, which knows the frames at each of them")
        self.frames_at = frames_at
        self.frames, self.tokens = np.asarray(frames), np.asarray(tokens)
        self.options = options
        self.accumulation_steps, self.rank, self.world_size = accumulation_steps, rank, world_size
        self.epoch, self.next_index = epoch, next_index

    def __iter__(self) -> Iterator[MicroBatch]:
        epoch, index = self.epoch, self.next_index
        plan, frames, speeds = self._plan(epoch)
        while True:
            step: list[tuple[int, ...]] = []
            step_speeds: list[tuple[float, ...]] = []
            seeds: list[int] = []
            step_frames = 0
            for _ in range(self.accumulation_steps * self.world_size):
                if index >= len(plan):
                    epoch, index = epoch + 1, 0
                    plan, frames, speeds = self._plan(epoch)
                batch = list(plan[index])
                step.append(plan[index])
                step_speeds.append(tuple(speeds[batch].tolist()))
                step_frames += int(frames[batch].sum())
                seeds.append(_augmentation_seed(self.options.seed, epoch, index))
                index += 1
            tokens = [int(self.tokens[list(batch)].sum()) for batch in step]
            for share in range(self.rank, len(step), self.world_size):
                weight = tokens[share] * self.world_size / max(1, sum(tokens))
                yield MicroBatch(step[share], step_speeds[share], weight, seeds[share], step_frames, epoch, index)

    def _plan(self, epoch: int) -> tuple[list[tuple[int, ...]], np.ndarray, np.ndarray]:
        """The batches of an epoch, and each utterance's frames and speed in it."""
        speeds = draw_speeds(len(self.frames), self.options, epoch)
        frames = self.frames if self.frames_at is None else self.frames_at(self.frames, speeds)
        return plan_epoch(frames, self.options, epoch), frames, speeds


def _augmentation_seed(seed: int, epoch: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, index, 1]).generate_state(1)[0])

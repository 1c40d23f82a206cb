"""Batches planned from lengths: bounds, buckets, place in the stream, and shares of several processes."""

from dataclasses import replace

import numpy as np
import pytest

from hf_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.training.batching import BatchOptions, BatchStream, draw_speeds, plan_epoch

FRAMES = np.random.default_rng(3).integers(20, 300, 200)
frames_at = EntmaxAsrFeatureExtractor().frames_at


def test_every_epoch_holds_every_utterance_once_within_the_bounds():
    options = BatchOptions(frames_per_batch=2000, max_utterances=15, shuffle_window=3)
    plans = [plan_epoch(FRAMES, options, epoch) for epoch in range(2)]
    for plan in plans:
        assert sorted(i for batch in plan for i in batch) == list(range(200))
        assert max(len(b) * FRAMES[list(b)].max() for b in plan) <= 2000
        assert max(map(len, plan)) <= 15
        padded = sum(len(b) * FRAMES[list(b)].max() for b in plan)
        assert FRAMES.sum() / padded > 0.8  # bucketed: random batches of these lengths would be at 0.6
    assert plans[0] != plans[1]
    assert plans[0] == plan_epoch(FRAMES, options, 0)
    assert plans[0] != plan_epoch(FRAMES, replace(options, seed=1), 0)


def test_short_first_epochs_go_from_short_to_long():
    options = BatchOptions(frames_per_batch=2000, short_first_epochs=1)
    longest = [FRAMES[list(b)].max() for b in plan_epoch(FRAMES, options, 0)]
    assert longest == sorted(longest)
    longest = [FRAMES[list(b)].max() for b in plan_epoch(FRAMES, options, 1)]
    assert longest != sorted(longest)


def take(stream: BatchStream, count: int):
    batches = iter(stream)
    return [next(batches) for _ in range(count)]


def test_a_stream_goes_on_where_another_stood_without_replay():
    options = BatchOptions(frames_per_batch=2000)
    whole = take(BatchStream(FRAMES, FRAMES, options), 60)
    assert whole[-1].epoch > 0
    for cut in (1, 17, 40):
        place = whole[cut - 1].epoch, whole[cut - 1].next_index
        rest = BatchStream(FRAMES, FRAMES, options, epoch=place[0], next_index=place[1])
        assert take(rest, 60 - cut) == whole[cut:]


def test_processes_share_the_batches_of_one_process_and_weights_make_a_mean_over_tokens():
    options = BatchOptions(frames_per_batch=2000)
    tokens = np.random.default_rng(4).integers(1, 50, 200)
    alone = take(BatchStream(FRAMES, tokens, options, accumulation_steps=4), 40)
    shared = [
        take(BatchStream(FRAMES, tokens, options, accumulation_steps=2, rank=rank, world_size=2), 20) for rank in (0, 1)
    ]
    together = [batch for pair in zip(*shared, strict=True) for batch in pair]
    assert [b.indices for b in together] == [b.indices for b in alone]
    assert [b.seed for b in together] == [b.seed for b in alone]
    for step in range(10):
        own = alone[4 * step : 4 * step + 4]
        counts = [tokens[list(b.indices)].sum() for b in own]
        np.testing.assert_allclose([b.weight for b in own], np.array(counts) / sum(counts))
        # An average over 2 processes of sums over 2 shares gives the same mean.
        np.testing.assert_allclose([b.weight / 2 for b in together[4 * step : 4 * step + 4]], [b.weight for b in own])


SPEEDS = BatchOptions(frames_per_batch=2000, speeds=(0.9, 1.0, 1.1), seed=4)


def test_other_speeds_need_the_frames_at_them():
    with pytest.raises(ValueError, match="give frames_at"):
        BatchStream(FRAMES, FRAMES, SPEEDS)


def test_speeds_are_drawn_anew_in_every_epoch_and_equally_likely():
    speeds = [draw_speeds(30_000, SPEEDS, epoch) for epoch in (0, 1)]
    for speed in SPEEDS.speeds:
        assert (speeds[0] == speed).mean() == pytest.approx(1 / 3, abs=0.01)
    assert (speeds[0] == speeds[1]).mean() == pytest.approx(1 / 3, abs=0.01)  # independent
    assert np.array_equal(speeds[0], draw_speeds(30_000, SPEEDS, 0))


def test_batches_are_bounded_by_the_frames_at_the_drawn_speeds():
    batches = take(BatchStream(FRAMES, FRAMES, SPEEDS, frames_at=frames_at), 40)
    lengths = [frames_at(FRAMES[list(b.indices)], np.array(b.speeds)) for b in batches]
    assert max(len(length) * length.max() for length in lengths) <= 2000
    assert [b.step_frames for b in batches] == [length.sum() for length in lengths]
    assert {speed for b in batches for speed in b.speeds} == {0.9, 1.0, 1.1}
    drawn = draw_speeds(len(FRAMES), SPEEDS, 0)
    assert batches[0].speeds == tuple(drawn[list(batches[0].indices)])
    middle = batches[24]
    resumed = BatchStream(FRAMES, FRAMES, SPEEDS, frames_at=frames_at, epoch=middle.epoch, next_index=middle.next_index)
    assert take(resumed, 15) == batches[25:]


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.1, 2.0])
def test_frames_at_a_speed_bound_those_of_the_resampled_waveform(speed):
    """Feature frames of n samples by the extractor's rule, against those of ceil(n / speed)."""
    samples = np.arange(400, 20_000, 7)
    before, after = (1 + np.maximum(0, n - 400) // 160 for n in (samples, np.ceil(samples / speed)))
    excess = frames_at(before, speed) - after
    assert excess.min() >= 0
    assert excess.max() <= 2
    assert np.array_equal(frames_at(before, 1.0), before)

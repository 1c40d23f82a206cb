"""Who waits for whom: against loops, by hand, and on the boundaries of a model."""

import pytest
import torch

from hf_entmax_asr.analysis import MonotonicMeter
from reference_analysis import monotonic_loop
from support.small_models import features, small_model, targets


def example(batch: int = 5, layers: int = 2, heads: int = 3, tokens: int = 7):
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(0, 3, (batch, layers * heads, tokens), generator=generator)
    stops = steps.cumsum(-1)
    stops[0, 1, 3] = 0  # a step to the left
    positions = stops.amax((1, 2)) + torch.tensor([1, 1, 4, 1, 2])[:batch]
    counts = torch.tensor([7, 3, 1, 6, 5])[:batch]
    return stops.unflatten(1, (layers, heads)).unbind(1), counts, positions


def check(summary, expected):
    for name, value in expected.items():
        torch.testing.assert_close(getattr(summary, name).double(), value, msg=name)


def test_summary_equals_loops_whatever_the_batches():
    boundaries, tokens, positions = example()
    expected = monotonic_loop(torch.cat(boundaries, 1), tokens.tolist(), positions.tolist())
    assert expected["order_violations"].sum() > 0
    for cuts in ([slice(0, 5)], [slice(0, 2), slice(2, 3), slice(3, 5)]):
        meter = MonotonicMeter(first_layer=1)
        for cut in cuts:
            width = int(tokens[cut].max())  # batches are as wide as their longest text
            meter.update([layer[cut, :, :width] for layer in boundaries], tokens[cut], positions[cut])
        summary = meter.summary()
        check(summary, expected)
        assert summary.heads == ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2))
        assert (summary.tokens, summary.utterances) == (22, 5)


def test_what_follows_the_end_of_the_sentence_means_nothing():
    boundaries, tokens, positions = example()
    clean, dirty = MonotonicMeter(), MonotonicMeter()
    clean.update(boundaries, tokens, positions)
    behind = torch.arange(7) >= tokens[:, None]
    dirty.update([layer.masked_fill(behind[:, None], 999) for layer in boundaries], tokens, positions)
    for name, value in vars(clean.summary()).items():
        found = getattr(dirty.summary(), name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def test_by_hand():
    meter = MonotonicMeter()
    meter.update([torch.tensor([[[0, 2, 4], [1, 2, 9]]])], torch.tensor([3]), torch.tensor([10]))
    summary = meter.summary()
    assert summary.lag.tolist() == [0, 2]
    assert summary.last_share.tolist() == pytest.approx([1 / 6, 5 / 6])  # the second token is tied
    assert summary.coverage.tolist() == [0.5, 1]
    assert summary.waiting.tolist() == [[0, 2], [0, 0]]
    assert summary.at_end_share.tolist() == [0, 0]  # the last token may well stop at the end
    assert summary.order_violations.tolist() == [0, 0]


def test_nobody_waits_for_a_head_whose_gate_is_zero():
    stops = torch.tensor([[[0, 2], [5, 6], [1, 3]]])
    meter = MonotonicMeter(active=[torch.tensor([False, True, True])])
    meter.update([stops], torch.tensor([2]), torch.tensor([8]))
    summary = meter.summary()
    assert summary.last_share.tolist() == [0, 1, 0]
    assert summary.lag.tolist() == [-1, 3.5, 0]  # the earliest is the earliest of those that take part
    with pytest.raises(ValueError, match="no head is active"):
        MonotonicMeter(active=[torch.tensor([False, False])])


@pytest.mark.parametrize("firing_rule", ["threshold", "cumulative"])
def test_a_model_never_steps_left(firing_rule):
    model = small_model(lively=True, firing_rule=firing_rule)
    input_features, mask = features()
    labels = targets()
    sequences = torch.cat([torch.ones(3, 1, dtype=torch.long), labels.masked_fill(labels < 0, 0)], 1)
    boundaries = model.head_boundaries(sequences, input_features, mask)
    meter = MonotonicMeter()
    meter.update(boundaries, (labels >= 0).sum(1), model.position_mask(mask).sum(1))
    summary = meter.summary()
    assert summary.order_violations.tolist() == [0] * 8
    assert summary.coverage.max() <= 1
    assert summary.coverage.unique().numel() > 1  # the heads of a lively model walk


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boundaries": []}, "there are no boundaries"),
        ({"tokens": torch.tensor([4])}, "tokens holds 4, but the boundaries are of 3"),
        ({"tokens": torch.tensor([3, 3])}, r"tokens has shape \(2,\)"),
        ({"positions": torch.tensor([4])}, "1 boundaries lie outside the audio"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {
        "boundaries": [torch.tensor([[[0, 2, 4]]])],
        "tokens": torch.tensor([3]),
        "positions": torch.tensor([5]),
    } | change
    with pytest.raises(ValueError, match=message):
        MonotonicMeter().update(**arguments)


def test_sets_of_heads_are_not_mixed():
    meter = MonotonicMeter()
    with pytest.raises(ValueError, match="no boundaries were measured"):
        meter.summary()
    meter.update([torch.zeros(1, 2, 3)], torch.tensor([3]), torch.tensor([5]))
    with pytest.raises(ValueError, match="came after"):
        meter.update([torch.zeros(1, 3, 3)], torch.tensor([3]), torch.tensor([5]))
    with pytest.raises(ValueError, match="active names 1 heads"):
        MonotonicMeter(active=[torch.ones(1)]).update([torch.zeros(1, 3, 3)], torch.tensor([3]), torch.tensor([5]))

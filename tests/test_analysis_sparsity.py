"""Counting zeros: against loops written out, over any cut of a data set into batches, and with masks."""

import pytest
import torch

from hf_entmax_asr import entmax
from hf_entmax_asr.analysis import ScoreHistogram, SparsityMeter, allowed_entries, sparsity_counts


def example(batch: int = 3, heads: int = 2, queries: int = 5, keys: int = 7, causal: bool = False):
    """A map with zeros, and masks of which the first utterance uses all, the others less."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(batch, heads, queries, keys, generator=generator)
    query_mask = torch.arange(queries) < torch.tensor([queries, 3, 1, 4, 2])[:batch, None]
    key_mask = torch.arange(keys) < torch.tensor([keys, 4, 6, 2, 5])[:batch, None]
    allowed = key_mask[:, None, None, :].expand(batch, heads, queries, keys)
    if causal:
        allowed = allowed & torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return entmax(scores, 1.6, mask=allowed), query_mask, key_mask


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("use_query_mask", [False, True])
def test_counts_equal_loops(causal, use_query_mask):
    attention, query_mask, key_mask = example(causal=causal)
    _, heads, queries, keys = attention.shape
    zeros, support, rows = [0] * heads, [0] * heads, [0] * heads
    for b in range(attention.shape[0]):
        for h in range(heads):
            for i in range(queries):
                if use_query_mask and not query_mask[b, i]:
                    continue
                seen = [j for j in range(keys) if key_mask[b, j] and (not causal or j <= i + keys - queries)]
                rows[h] += bool(seen)
                zeros[h] += sum(attention[b, h, i, j].item() == 0 for j in seen)
                support[h] += sum(attention[b, h, i, j].item() > 0 for j in seen)
    assert sum(zeros) > 0
    counts = sparsity_counts(attention, query_mask if use_query_mask else None, key_mask, causal)
    assert counts.zeros.tolist() == zeros
    assert counts.queries.tolist() == rows
    assert counts.allowed.tolist() == [z + s for z, s in zip(zeros, support, strict=True)]
    expected = [z / (z + s) for z, s in zip(zeros, support, strict=True)]
    assert counts.zero_share.tolist() == pytest.approx(expected)
    assert counts.support_size.tolist() == pytest.approx([s / r for s, r in zip(support, rows, strict=True)])


def test_closed_forms():
    uniform = sparsity_counts(torch.full((1, 1, 4, 4), 0.25))
    assert (uniform.zero_share.item(), uniform.support_size.item()) == (0, 4)
    identity = sparsity_counts(torch.eye(4)[None, None])
    assert (identity.zero_share.item(), identity.support_size.item()) == (0.75, 1)
    triangle = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    causal = sparsity_counts(triangle[None, None], causal=True)
    assert (causal.zero_share.item(), causal.support_size.item()) == (0, 2.5)


def test_smallest_weights_are_no_zeros():
    weights = torch.tensor([[[[1.0, 1e-45, 0.0, -0.0]]]])  # 1e-45 is subnormal, the smallest float32 above 0
    assert sparsity_counts(weights).zeros.tolist() == [2]


def test_padding_does_not_change_the_counts():
    attention, query_mask, key_mask = example()
    padded = torch.nn.functional.pad(attention, (0, 4, 0, 3))
    counts = sparsity_counts(attention, query_mask, key_mask)
    again = sparsity_counts(
        padded, torch.nn.functional.pad(query_mask, (0, 3)), torch.nn.functional.pad(key_mask, (0, 4))
    )
    for name in ("zeros", "allowed", "queries"):
        assert getattr(counts, name).tolist() == getattr(again, name).tolist()


def test_meter_does_not_depend_on_the_cut_into_batches():
    attention, query_mask, key_mask = example(batch=5)
    whole, single = SparsityMeter(), SparsityMeter()
    maps = {"encoder.layers.0.self_attn": attention, "encoder.layers.1.self_attn": attention[:, :1]}
    whole.update(maps, query_mask.long(), key_mask.long())  # masks as a processor gives them: 0 and 1
    for b in (slice(0, 1), slice(1, 4), slice(4, 5)):
        single.update({name: weights[b] for name, weights in maps.items()}, query_mask[b], key_mask[b])
    assert list(single.counts) == list(maps)
    for name in maps:
        assert single.counts[name].zero_share.tolist() == whole.counts[name].zero_share.tolist()
        assert single.counts[name].support_size.tolist() == whole.counts[name].support_size.tolist()
    assert whole.counts["encoder.layers.1.self_attn"].zero_share.shape == (1,)  # fewer heads, say after pruning


def test_nothing_allowed_is_nan():
    attention = torch.zeros(1, 2, 3, 3)
    counts = sparsity_counts(attention, key_mask=torch.zeros(1, 3))
    assert counts.zero_share.isnan().all()
    assert counts.support_size.isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": torch.ones(2, 3, 3)}, r"shape \(2, 3, 3\)"),
        ({"key_mask": torch.ones(2, 28)}, r"key_mask has shape \(2, 28\), but the map needs \(2, 7\)"),
        ({"query_mask": torch.ones(1, 5)}, r"query_mask has shape \(1, 5\), but the map needs \(2, 5\)"),
        ({"key_mask": torch.tensor([[1] * 7, [1] * 6 + [0]])}, "weight on 10 entries"),
        ({"causal": True}, "weight on 6 entries"),
        ({"attention": torch.full((2, 2, 7, 5), 0.2), "causal": True}, "7 and 5"),
        ({"attention": torch.full((2, 2, 5, 7), torch.nan)}, "NaN"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"attention": torch.full((2, 2, 5, 7), 1 / 7)} | change
    if message == "weight on 6 entries":  # 2 utterances, 1 head; the diagonal and below are allowed
        arguments["attention"] = torch.full((2, 1, 3, 3), 1 / 3)
    with pytest.raises(ValueError, match=message):
        allowed_entries(**arguments)


def test_histogram_counts_every_entry_once():
    histogram = ScoreHistogram(smallest=1e-3, bins_per_decade=1)
    assert histogram.edges.tolist() == pytest.approx([1e-3, 1e-2, 1e-1, 1])
    row = torch.tensor([0.0, 1e-9, 9e-4, 1.1e-3, 0.009, 0.02, 0.2, 0.5, 1.0, 1.0000001])
    histogram.update(row.view(1, 1, 1, -1))
    assert histogram.counts.tolist() == [2, 1, 4]
    assert (histogram.zeros, histogram.below, histogram.total) == (1, 2, 10)
    assert histogram.zero_share == 0.1


def test_histogram_over_batches_and_masks_equals_the_counts():
    attention, query_mask, key_mask = example(batch=5)
    whole, single = ScoreHistogram(), ScoreHistogram()
    whole.update(attention, query_mask, key_mask)
    for b in range(5):
        one = slice(b, b + 1)
        single.update(attention[one], query_mask[one], key_mask[one])
    assert whole.counts.tolist() == single.counts.tolist()
    counts = sparsity_counts(attention, query_mask, key_mask)
    assert whole.zeros == single.zeros == counts.zeros.sum()
    assert whole.total == single.total == counts.allowed.sum()
    assert whole.zeros + whole.below + whole.counts.sum() == whole.total


def test_histogram_takes_half_precision_and_refuses_bad_bins():
    histogram = ScoreHistogram()
    assert histogram.zero_share != histogram.zero_share  # NaN
    histogram.update(torch.tensor([[[[0.5, 0.5, 0.0]]]], dtype=torch.bfloat16))
    assert (histogram.zeros, histogram.counts.sum().item()) == (1, 2)
    with pytest.raises(ValueError, match="smallest = 0"):
        ScoreHistogram(smallest=0)
    with pytest.raises(ValueError, match="bins_per_decade = 0"):
        ScoreHistogram(bins_per_decade=0)

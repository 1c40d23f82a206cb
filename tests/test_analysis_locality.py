"""Near or far, vertical, even: closed forms, loops written out, and no influence of padding or batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_entmax_asr import entmax
from hf_entmax_asr.analysis import (
    AgreementMeter,
    MeanMeter,
    attention_entropy,
    cross_attention_measures,
    diagonality,
    diagonality_curve,
    head_divergence,
    self_attention_measures,
    uniform_attention,
    verticality,
)
from reference_analysis import (
    cad_by_integration,
    divergence_loop,
    entropy_loop,
    mean_distance,
    share_within,
    verticality_loop,
)

LENGTHS = (9, 6, 1, 2)


def example(causal: bool = False, heads: int = 3, keys: int = 9):
    """Maps (4, heads, 9, keys) with zeros, and the mask of utterances of 9, 6, 1 and 2 positions."""
    generator = torch.Generator().manual_seed(3)
    scores = 2 * torch.randn(len(LENGTHS), heads, 9, keys, generator=generator)
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    allowed = mask[:, None, None, :].expand_as(scores)
    if causal:
        allowed = allowed & torch.ones(9, 9, dtype=torch.bool).tril()
    return entmax(scores, 1.5, mask=allowed), mask


def square(size: int) -> dict[str, torch.Tensor]:
    return {
        "identity": torch.eye(size),
        "uniform": torch.full((size, size), 1 / size),
        "stripe": F.one_hot(torch.full((size,), size // 2), size).float(),
        "anti-diagonal": torch.eye(size).flip(1),
    }


def batch_of(weights: torch.Tensor) -> torch.Tensor:
    return weights[None, None]


# closed forms


@pytest.mark.parametrize("size", [1, 2, 3, 10, 101])
def test_diagonality_closed_forms(size):
    maps = square(size)
    assert diagonality(batch_of(maps["identity"])).item() == pytest.approx(1, abs=1e-12)
    uniform = (2 * size - 1) / (3 * size) if size > 1 else 1
    assert diagonality(batch_of(maps["uniform"])).item() == pytest.approx(uniform, abs=1e-6)
    if size > 1:  # Σ|T − 1 − 2i| = floor(T²/2)
        anti = 1 - (size**2 // 2) / (size * (size - 1))
        assert diagonality(batch_of(maps["anti-diagonal"])).item() == pytest.approx(anti, abs=1e-12)
        middle = size // 2
        away = sum(abs(i - middle) for i in range(size)) / (size * (size - 1))
        assert diagonality(batch_of(maps["stripe"])).item() == pytest.approx(1 - away, abs=1e-12)


def test_a_stripe_scores_like_uniform_attention_and_verticality_tells_them_apart():
    stripes = torch.stack([F.one_hot(torch.full((50,), j), 50).float() for j in range(50)])  # one head each
    uniform = torch.full((1, 1, 50, 50), 1 / 50)
    assert diagonality(stripes[None]).mean().item() == pytest.approx(diagonality(uniform).item(), abs=1e-6)
    assert verticality(stripes[None]).tolist()[0] == pytest.approx([1.0] * 50)
    assert verticality(uniform).item() == pytest.approx(0, abs=1e-6)
    assert verticality(batch_of(torch.eye(50))).item() == pytest.approx(0, abs=1e-12)


def test_curve_closed_forms():
    size = 11
    maps = square(size)
    identity, anti = diagonality_curve(torch.stack([maps["identity"], maps["anti-diagonal"]])[None], points=11)[0]
    assert identity.tolist() == [1.0] * 11
    # Of the anti-diagonal the middle row has distance 0, and each pair of rows 2, 4, … 10.
    assert anti.tolist() == pytest.approx(
        [1 / 11, 1 / 11, 3 / 11, 3 / 11, 5 / 11, 5 / 11, 7 / 11, 7 / 11, 9 / 11, 9 / 11, 1]
    )


def test_curve_needs_no_luck_with_rounding():
    """0.29 · 100 is below 29 in floating point; the attention at distance 29 counts at r = 0.29 all the same."""
    weights = torch.zeros(101, 101)
    for i in range(101):
        weights[i, i + 29 if i + 29 < 101 else i - 29] = 1
    curve = diagonality_curve(batch_of(weights))[0, 0]
    assert curve[28].item() == 0
    assert curve[29].item() == 1


def test_entropy_closed_forms():
    maps = square(8)
    assert attention_entropy(batch_of(maps["identity"])).item() == 0
    assert attention_entropy(batch_of(maps["uniform"])).item() == pytest.approx(math.log(8))


def test_one_position_and_none():
    mask = torch.tensor([[1, 0, 0], [0, 0, 0]])
    weights = torch.zeros(2, 1, 3, 3)
    weights[0, :, :, 0] = 1  # padding queries look at the one key
    measures = self_attention_measures(weights, mask)
    assert measures["cad"].flatten().tolist() == pytest.approx([1, math.nan], nan_ok=True)
    assert measures["curve"][0].eq(1).all()
    assert measures["verticality"].isnan().all()  # with one key there is nothing to agree on
    assert measures["uniform_cad"].tolist() == pytest.approx([1, math.nan], nan_ok=True)
    meter = MeanMeter()
    meter.update("a", measures)
    assert meter.mean("a")["cad"].tolist() == [1]
    assert meter.mean("a")["verticality"].isnan().all()


def test_uniform_attention_is_what_the_mask_leaves():
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()
    allowed[2] = False
    expected = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0], [0.25] * 4]
    assert uniform_attention(allowed).tolist() == expected


# against loops


@pytest.mark.parametrize("causal", [False, True])
def test_measures_equal_loops(causal):
    attention, mask = example(causal)
    measures = self_attention_measures(attention, mask, causal, points=8)
    for b, size in enumerate(LENGTHS):
        allowed = torch.ones(size, size).tril() if causal else torch.ones(size, size)
        maps = [attention[b, h, :size, :size].tolist() for h in range(3)]
        idle = (allowed / allowed.sum(1, keepdim=True)).tolist()
        for prefix, weights, value in [
            *(
                (
                    "",
                    maps[h],
                    {name: measures[name][b, h] for name in ("cad", "distance", "curve", "verticality", "entropy")},
                )
                for h in range(3)
            ),
            (
                "uniform_",
                idle,
                {name.removeprefix("uniform_"): m[b] for name, m in measures.items() if name.startswith("uniform_")},
            ),
        ]:
            assert value["distance"].item() == pytest.approx(mean_distance(weights), abs=1e-6), prefix
            assert value["entropy"].item() == pytest.approx(entropy_loop(weights), abs=1e-6), prefix
            assert value["curve"].tolist() == pytest.approx([share_within(weights, k / 7) for k in range(8)], abs=1e-6)
            assert value["cad"].item() == pytest.approx(cad_by_integration(weights, 2520), abs=1e-6), prefix
            if size > 1:
                assert value["verticality"].item() == pytest.approx(verticality_loop(weights, size), abs=1e-6), prefix


def test_cross_measures_equal_loops():
    attention, key_mask = example()
    query_mask = torch.arange(9) < torch.tensor([4, 9, 2, 1])[:, None]
    measures = cross_attention_measures(attention, query_mask, key_mask)
    for b, (queries, keys) in enumerate(zip([4, 9, 2, 1], LENGTHS, strict=True)):
        weights = attention[b, 1, :queries, :keys].tolist()
        assert measures["entropy"][b, 1].item() == pytest.approx(entropy_loop(weights), abs=1e-6)
        assert measures["uniform_entropy"][b].item() == pytest.approx(math.log(keys), abs=1e-6)
        if keys > 1:
            assert measures["verticality"][b, 1].item() == pytest.approx(verticality_loop(weights, keys), abs=1e-6)
            assert measures["uniform_verticality"][b].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_divergence_equals_loops(causal):
    attention, mask = example(causal)
    found = head_divergence(attention, mask, mask, causal)
    for b, size in enumerate(LENGTHS):
        for g in range(3):
            for h in range(3):
                p, q = (attention[b, n, :size, :size].tolist() for n in (g, h))
                assert found[b, g, h].item() == pytest.approx(divergence_loop(p, q), abs=1e-6)


def test_divergence_is_zero_of_equals_and_one_of_strangers():
    heads = torch.stack([torch.eye(6), torch.eye(6), torch.eye(6).roll(1, 0), torch.full((6, 6), 1 / 6)])
    found = head_divergence(heads[None])[0]
    assert found.diagonal().tolist() == [0, 0, 0, 0]
    assert found[0, :3].tolist() == pytest.approx([0, 0, 1])
    assert torch.equal(found, found.T)
    assert 0 < found[0, 3].item() < 1


# batch and padding


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("left", [0, 3])
def test_padding_and_batch_change_nothing(causal, left):
    attention, mask = example(causal)
    padded = F.pad(attention, (left, 2, left, 2))
    padded_mask = F.pad(mask, (left, 2))
    whole = self_attention_measures(padded, padded_mask.long(), causal)
    divergence = head_divergence(padded, padded_mask, padded_mask, causal, max_queries=4)
    for b, size in enumerate(LENGTHS):
        alone = self_attention_measures(attention[b : b + 1, :, :size, :size], None, causal)
        for name, value in alone.items():
            torch.testing.assert_close(whole[name][b], value[0], rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)
        one = head_divergence(attention[b : b + 1, :, :size, :size], causal=causal, max_queries=4)
        torch.testing.assert_close(divergence[b], one[0], rtol=1e-9, atol=1e-12)


def test_meters_do_not_depend_on_the_cut_into_batches():
    attention, mask = example()
    whole, pieces = MeanMeter(), MeanMeter()
    together, apart = AgreementMeter(), AgreementMeter()
    maps = {"a": attention, "b": attention[:, :1].roll(1, -2)}
    whole.update("a", self_attention_measures(attention, mask))
    together.update(maps, key_mask=mask)
    for part in (slice(0, 1), slice(1, 4)):
        pieces.update("a", self_attention_measures(attention[part], mask[part]))
        apart.update({name: weights[part] for name, weights in maps.items()}, key_mask=mask[part])
    for name, value in whole.mean("a").items():
        torch.testing.assert_close(pieces.mean("a")[name], value)
    assert together.heads == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    torch.testing.assert_close(apart.mean(), together.mean())
    assert whole.names() == ["a"]


def test_few_queries_stand_for_all_where_all_are_alike():
    row = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]])
    heads = row[:, None].expand(2, 4, 4)[None]
    torch.testing.assert_close(head_divergence(heads, max_queries=1), head_divergence(heads))
    assert head_divergence(heads)[0, 0, 1].item() == pytest.approx(0.5)


def test_half_precision_is_taken():
    attention, mask = example()
    found = diagonality(attention.bfloat16(), mask)
    torch.testing.assert_close(found, diagonality(attention, mask), rtol=0.02, atol=0.02)
    assert found.dtype == torch.float64


# bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagonality(torch.full((1, 1, 3, 4), 0.25)), r"shape \(1, 1, 3, 4\); distances need a square"),
        (lambda: diagonality(torch.full((1, 1, 3, 3), 0.5)), "misses the sum 1 by 0.5"),
        (lambda: diagonality(torch.tensor([[[[2.0, -1.0], [0.0, 1.0]]]])), "holds -1; weights are never below 0"),
        (lambda: diagonality(torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 8)), r"key_mask has shape \(1, 8\)"),
        (lambda: diagonality_curve(torch.eye(2)[None, None], points=1), "points = 1"),
        (lambda: head_divergence(torch.eye(2)[None, None], max_queries=0), "max_queries = 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_meter_is_for_one_set_of_heads():
    meter = AgreementMeter()
    meter.update({"a": torch.eye(2)[None, None]})
    with pytest.raises(ValueError, match="one set of heads"):
        meter.update({"b": torch.eye(2)[None, None]})

"""PAR: closed forms, loops written out, no influence of padding or batch; the rule for the roles of heads."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_entmax_asr import entmax
from hf_entmax_asr.analysis import (
    PhonemeAttentionMeter,
    head_roles,
    phoneme_attention,
    phoneme_classes,
    relative_diagonality,
    uniform_attention,
)
from reference_analysis import phoneme_sums_loop

CLASSES = ("P", "B", "K", "SIL")
LENGTHS = (12, 7, 1)


def example(causal: bool = False, heads: int = 2):
    """Maps (3, heads, 12, 12), the mask of 12, 7 and 1 positions, and labels in runs, some of them without a class."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    allowed = mask[:, None, None, :].expand(3, heads, 12, 12)
    if causal:
        allowed = allowed & torch.ones(12, 12, dtype=torch.bool).tril()
    attention = entmax(torch.randn(3, heads, 12, 12, generator=generator), 1.5, mask=allowed)
    labels = torch.tensor([[3, 3, 0, 0, 1, -1, -1, 0, 1, 1, 3, 3], [0, 1, 0, 1, 1, 3, 0] + [-1] * 5, [0] + [-1] * 11])
    return attention, mask, labels


@pytest.mark.parametrize("causal", [False, True])
def test_sums_equal_loops(causal):
    attention, mask, labels = example(causal)
    found = phoneme_attention(attention, labels, CLASSES, mask, causal)
    for head in range(2):
        expected = [
            phoneme_sums_loop(attention[b, head].tolist(), labels[b, :size].tolist(), 4, causal)
            for b, size in enumerate(LENGTHS)
        ]
        total = {name: sum(sums[name] for sums in expected) for name in expected[0]}
        torch.testing.assert_close(found.weight[head], total["weight"])
        for name in ("uniform", "pairs", "frames"):
            torch.testing.assert_close(getattr(found, name), total[name])


@pytest.mark.parametrize("causal", [False, True])
def test_uniform_attention_has_lift_one_everywhere(causal):
    _, mask, labels = example(causal)
    allowed = mask[:, None, None, :].expand(3, 1, 12, 12)
    if causal:
        allowed = allowed & torch.ones(12, 12, dtype=torch.bool).tril()
    found = phoneme_attention(uniform_attention(allowed), labels, CLASSES, mask, causal)
    known = found.pairs > 0
    assert known.sum() >= 7
    torch.testing.assert_close(found.lift[0][known], torch.ones(int(known.sum()), dtype=torch.float64))
    assert found.lift[0][~known].isnan().all()
    assert found.same_phoneme_lift().item() == pytest.approx(1)
    assert found.same_place_lift().item() == pytest.approx(1)


def test_absent_classes_are_nan():
    attention, mask, labels = example()
    found = phoneme_attention(attention, labels, CLASSES, mask)
    absent = CLASSES.index("K")
    for matrix in (found.mass, found.mean, found.lift):
        assert matrix[:, absent, :].isnan().all()
    assert found.mean[:, :, absent].isnan().all()
    assert found.lift[:, :, absent].isnan().all()
    assert found.mass[:, 0, absent].tolist() == [0, 0]  # a frame of P puts nothing on a class that is not there


def test_the_own_run_does_not_count():
    """A head that looks at itself and its neighbours of the same phoneme has no preference to show."""
    labels = torch.tensor([[0, 0, 0, 1, 1, 1]])
    block = torch.block_diag(torch.full((3, 3), 1 / 3), torch.full((3, 3), 1 / 3))
    near = phoneme_attention(block[None, None], labels, CLASSES)
    assert near.weight.abs().sum() == 0
    assert near.pairs[:2, :2].tolist() == [[0, 9], [9, 0]]
    again = torch.tensor([[0, 1, 0, 1, 0, 1]])  # equal phonemes in runs of their own: nothing but itself is left out
    found = phoneme_attention(uniform_attention(again[:, None, :, None] == again[:, None, None, :]), again, CLASSES)
    assert found.mass[0, 0, 0].item() == pytest.approx(2 / 3)
    assert found.mean[0, 0, 0].item() == pytest.approx(1 / 3)
    assert found.lift[0, 0].tolist() == pytest.approx([2, 0, math.nan, math.nan], nan_ok=True)
    assert found.same_phoneme_lift().item() == pytest.approx(2)


def test_places_of_articulation_without_equal_phonemes():
    labels = torch.tensor([[0, 2, 1, 2]])  # P K B K
    weights = torch.zeros(1, 2, 4, 4)
    weights[0, 0] = torch.tensor([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # P and B see each other
    weights[0, 1] = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]])  # K sees K
    found = phoneme_attention(weights, labels, CLASSES)
    assert found.same_place_lift().tolist() == [4, 0]
    assert found.same_phoneme_lift().tolist() == [0, 4]


def test_silence_does_not_make_a_head_phonetic():
    labels = torch.tensor([[3, 0, 3, 1]])
    weights = torch.zeros(1, 1, 4, 4)
    weights[0, 0] = torch.tensor([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    found = phoneme_attention(weights, labels, CLASSES)
    assert found.same_phoneme_lift().isnan().all()  # no phoneme comes twice
    assert found.same_phoneme_lift(without=()).item() == 4


@pytest.mark.parametrize("left", [0, 2])
def test_padding_and_batch_change_nothing(left):
    attention, mask, labels = example()
    whole, pieces = PhonemeAttentionMeter(CLASSES), PhonemeAttentionMeter(CLASSES)
    padded = {"a": F.pad(attention, (left, 3, left, 3))}
    whole.update(padded, F.pad(labels, (left, 3), value=-1), F.pad(mask, (left, 3)).long())
    for b, size in enumerate(LENGTHS):
        pieces.update({"a": attention[b : b + 1, :, :size, :size]}, labels[b : b + 1, :size])
    for name in ("frames", "weight", "uniform", "pairs"):
        torch.testing.assert_close(getattr(whole.sums["a"], name), getattr(pieces.sums["a"], name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": torch.zeros(1, 4, dtype=torch.long)},
            r"labels \(1, 4\); a square map needs labels of shape \(1, 3\)",
        ),
        ({"labels": torch.tensor([[0, 4, 0]])}, "from 0 to 4; with 4 classes"),
        ({"labels": torch.tensor([[0, -2, 0]])}, "from -2 to 0"),
        ({"attention": torch.full((1, 1, 3, 2), 0.5)}, "square map"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"attention": torch.full((1, 1, 3, 3), 1 / 3), "labels": torch.zeros(1, 3, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        phoneme_attention(**arguments | change, classes=CLASSES)


def test_sums_over_other_classes_are_not_added():
    attention, mask, labels = example()
    with pytest.raises(ValueError, match="cannot be added"):
        _ = phoneme_attention(attention, labels, CLASSES, mask) + phoneme_attention(
            attention, labels, phoneme_classes(), mask
        )


def test_roles():
    uniform = 0.5  # sums of powers of two, so that the limits are met exactly
    cad = torch.tensor([0.75, 0.6875, 0.5, 0.25, 1.0])
    lift = torch.tensor([9.0, 1.5, 1.49, 3.0, math.nan])
    assert head_roles(cad, uniform, lift) == ["linguistic", "phonetic", "neither", "phonetic", "linguistic"]
    assert head_roles(cad, uniform) == ["linguistic", None, None, None, "linguistic"]
    assert head_roles(cad[1:2], uniform, torch.tensor([math.nan])) == [None]
    assert head_roles(cad, uniform, lift, diagonal_from=1.0, phonetic_from=2.0)[:3] == [
        "phonetic",
        "neither",
        "neither",
    ]
    assert relative_diagonality(cad, uniform).tolist() == pytest.approx([0.5, 0.375, 0, -0.5, 1])

"""SpecAugment: the shape, place and distribution of the masks, against draws counted one by one."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.augmentation import SpecAugment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(mask: torch.Tensor) -> list[int]:
    """Lengths of the unbroken stretches of true values in a vector."""
    lengths, current = [], 0
    for value in [*mask.tolist(), False]:
        if value:
            current += 1
        elif current:
            lengths.append(current)
            current = 0
    return lengths


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 25), st.integers(0, 10**6))
def test_one_time_mask_is_one_stretch_within_the_real_frames(lengths, p, longest, seed):
    features = torch.ones(len(lengths), 40, 3)
    out = SpecAugment(F=0, T=longest, m_T=1, p=p)(features, torch.tensor(lengths), generator(seed))
    for row, length in zip(out, lengths, strict=True):
        masked = row[:, 0] == 0
        assert torch.equal(row == 0, masked[:, None].expand(-1, 3))
        assert len(runs(masked)) <= 1
        assert masked.sum() <= min(longest, int(p * length))
        assert not masked[length:].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(0, 3), st.integers(0, 10**6))
def test_frequency_masks_run_through_all_frames(widest, count, seed):
    features = torch.ones(3, 5, 20)
    out = SpecAugment(F=widest, m_F=count, T=0)(features, torch.tensor([5, 2, 0]), generator(seed))
    for row in out:
        masked = row[0] == 0
        assert torch.equal(row == 0, masked.expand(5, -1))
        assert len(runs(masked)) <= count
        assert masked.sum() <= count * min(widest, 20)


def test_widths_and_places_are_uniform():
    count, bins, widest = 40000, 6, 4
    out = SpecAugment(F=widest, m_F=1, T=0)(
        torch.ones(count, 1, bins), torch.ones(count, dtype=torch.long), generator()
    )
    masked = out[:, 0] == 0
    widths = masked.sum(dim=1).bincount(minlength=widest + 1) / count
    torch.testing.assert_close(widths, torch.full((widest + 1,), 1 / (widest + 1)), rtol=0, atol=0.01)
    for width in range(1, widest + 1):
        starts = masked[masked.sum(dim=1) == width].int().argmax(dim=1).bincount(minlength=bins - width + 1)
        shares = starts / starts.sum()
        torch.testing.assert_close(shares, torch.full((bins - width + 1,), 1 / (bins - width + 1)), rtol=0, atol=0.03)


def test_the_seed_decides_and_utterances_differ():
    features, lengths = torch.ones(8, 300, 80), torch.full((8,), 300)
    augment = SpecAugment()
    first = augment(features, lengths, generator(1))
    assert torch.equal(first, augment(features, lengths, generator(1)))
    assert not torch.equal(first, augment(features, lengths, generator(2)))
    assert not torch.equal(first[0], first[1])
    source = generator(1)
    assert not torch.equal(augment(features, lengths, source), augment(features, lengths, source))
    torch.manual_seed(1)
    without = augment(features, lengths)
    torch.manual_seed(1)
    assert torch.equal(without, augment(features, lengths))


def test_unmasked_values_gradients_and_the_input_stay():
    features = torch.randn(2, 50, 80, generator=generator(), requires_grad=True)
    before = features.detach().clone()
    out = SpecAugment(mask_value=-7.0)(features, torch.tensor([50, 30]), generator())
    masked = out == -7
    assert masked.any()
    assert torch.equal(out[~masked], features[~masked])
    assert torch.equal(features, before)
    out.sum().backward()
    assert torch.equal(features.grad, (~masked).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_and_an_empty_batch(dtype):
    assert SpecAugment()(torch.ones(1, 9, 4, dtype=dtype), torch.tensor([9]), generator()).dtype == dtype
    assert SpecAugment()(torch.ones(0, 9, 4), torch.zeros(0, dtype=torch.long)).shape == (0, 9, 4)


def test_settings_are_plain_and_comparable():
    augment = SpecAugment(F=10, m_F=1, T=20, m_T=3, p=0.5)
    assert pickle.loads(pickle.dumps(augment)) == augment
    assert "F=10, m_F=1, T=20, m_T=3, p=0.5" in repr(augment)


@pytest.mark.parametrize("name", ["F", "m_F", "T", "m_T"])
def test_negative_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        SpecAugment(**{name: -1})


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_and_1_is_refused(p):
    with pytest.raises(ValueError, match=f"p is {p}"):
        SpecAugment(p=p)


@pytest.mark.parametrize(
    ("features", "lengths", "message"),
    [
        (torch.ones(9, 4), torch.tensor([9]), r"got \(9, 4\)"),
        (torch.ones(2, 9, 4), torch.tensor([9]), r"and \(1,\)"),
        (torch.ones(2, 9, 4), torch.tensor([9, 10]), r"lengths \[9, 10\].*T = 9"),
        (torch.ones(1, 9, 4), torch.tensor([-1]), r"lengths \[-1\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(features, lengths, message):
    with pytest.raises(ValueError, match=message):
        SpecAugment()(features, lengths)

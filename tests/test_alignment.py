"""Monotonic alignment, expected and hard, against cell-by-cell twins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr import expected_alignment, expected_soft_attention, hard_alignment
from hf_entmax_asr.model.alignment import last_position, mask_energy, missing_mass, preserve_mass, soft_window
from reference import expected_alignment_loop, expected_soft_attention_loop, hard_stop
from support.hard_cases import energies

CHUNKS = (1, 2, 4, 30, 50, None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def relative_error(value, reference):
    return ((value.double() - reference).norm() / reference.norm().clamp(min=1e-300)).item()


@pytest.mark.parametrize("kind", energies(1, 2))
@pytest.mark.parametrize(("targets", "positions"), [(1, 1), (7, 3), (12, 60), (2, 2000)])
def test_expected_alignment_equals_the_loop(targets, positions, kind):
    energy = energies(targets, positions)[kind].requires_grad_()
    wide = energy.detach().double().requires_grad_()
    upstream = torch.randn_like(energy)
    ours, twin, ours_wide = expected_alignment(energy), expected_alignment_loop(wide), expected_alignment(wide)
    torch.testing.assert_close(ours.double(), twin, rtol=0, atol=1e-7)  # asked: 1e-5
    torch.testing.assert_close(ours_wide, twin, rtol=1e-10, atol=1e-300)
    torch.testing.assert_close(ours.double().sum(-1), torch.ones_like(twin[..., 0]), rtol=0, atol=1e-6)
    (grad,) = torch.autograd.grad(ours, energy, upstream)
    (twin_grad,) = torch.autograd.grad(twin, wide, upstream.double())
    (wide_grad,) = torch.autograd.grad(ours_wide, wide, upstream.double())
    assert grad.isfinite().all()
    assert relative_error(grad, twin_grad) <= 1e-6  # asked: 1e-4
    assert relative_error(wide_grad, twin_grad) <= 1e-10


@pytest.mark.parametrize("kind", energies(1, 2))
def test_long_and_padded_float32_equals_float64(kind):
    energy = torch.cat([energies(60, 2000)[kind]] * 2)
    mask = torch.arange(2000) < torch.tensor([2000, 1234])[:, None]
    energy = preserve_mass(energy, mask)
    upstream = torch.randn_like(energy)
    results = []
    for dtype in (torch.float32, torch.float64):
        e = energy.to(dtype).requires_grad_()
        alignment = expected_alignment(e, mask)
        (grad,) = torch.autograd.grad(alignment, e, upstream.to(dtype))
        results.append((alignment.detach().double(), grad))
    (ours, grad), (wide, wide_grad) = results
    torch.testing.assert_close(ours, wide, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.sum(-1), torch.ones_like(ours[..., 0]), rtol=0, atol=1e-6)
    assert relative_error(grad, wide_grad) <= 1e-6
    assert (ours[1, :, :, 1234:] == 0).all()
    assert (grad[1, :, :, 1234:] == 0).all()


def test_without_a_last_stop_the_missing_mass_ran_off_the_end():
    energy = torch.randn(2, 3, 5, 40) - 2
    alignment = expected_alignment(energy)
    assert (alignment.sum(-1)[:, :, 0] < 1).all()
    assert (alignment.sum(-1).diff(dim=-1) <= 1e-6).all()  # what is gone for one token is gone for the next
    first = 1 - torch.sigmoid(-energy[:, :, 0].double()).prod(-1)
    torch.testing.assert_close(alignment[:, :, 0].double().sum(-1), first, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 2, 3, 5), (2, 1, 1, 4), (1, 1, 5, 1), (1, 1, 6, 3)])
def test_expected_alignment_gradcheck(shape):
    batch, heads, _, positions = shape
    energy = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    previous = torch.rand(batch, heads, positions, dtype=torch.float64).softmax(-1).requires_grad_()
    mask = torch.arange(positions) < max(1, positions - 1)
    for source_mask in (None, mask.expand(batch, -1)):
        assert torch.autograd.gradcheck(lambda e, p, m=source_mask: expected_alignment(e, m, p), (energy, previous))


def test_all_tokens_at_once_equal_one_at_a_time():
    energy = preserve_mass(torch.randn(2, 3, 9, 40, dtype=torch.float64) - 2)
    at_once = expected_alignment(energy)
    previous = None
    for i in range(9):
        row = expected_alignment(energy[:, :, i : i + 1], previous=previous)
        torch.testing.assert_close(row[:, :, 0], at_once[:, :, i], rtol=1e-12, atol=0)
        previous = row[:, :, 0]
    two_blocks = [expected_alignment(energy[:, :, :4]), expected_alignment(energy[:, :, 4:], previous=at_once[:, :, 3])]
    torch.testing.assert_close(torch.cat(two_blocks, 2), at_once, rtol=1e-12, atol=0)


def test_a_source_mask_equals_cutting():
    lengths = [17, 30, 1]
    mask = torch.arange(30) < torch.tensor(lengths)[:, None]
    energy, window = torch.randn(2, 3, 2, 4, 30)
    energy.requires_grad_()
    preserved = preserve_mass(energy, mask)
    alignment = expected_alignment(preserved, mask)
    upstream = torch.randn_like(alignment)
    (grad,) = torch.autograd.grad(alignment, energy, upstream)
    for b, length in enumerate(lengths):
        cut = energy.detach()[b : b + 1, :, :, :length].requires_grad_()
        alone = expected_alignment(preserve_mass(cut))
        torch.testing.assert_close(alignment[b : b + 1, :, :, :length], alone, rtol=0, atol=1e-7)
        torch.testing.assert_close(alone.sum(-1), torch.ones(1, 2, 4))
        assert (alignment[b, :, :, length:] == 0).all()
        (cut_grad,) = torch.autograd.grad(alone, cut, upstream[b : b + 1, :, :, :length])
        torch.testing.assert_close(grad[b : b + 1, :, :, :length], cut_grad, rtol=1e-5, atol=1e-7)
        assert (grad[b, :, :, length:] == 0).all()
        for chunk in CHUNKS:
            soft = expected_soft_attention(alignment, window, chunk, mask)[b : b + 1]
            soft_alone = expected_soft_attention(alone, window[b : b + 1, :, :, :length], chunk)
            torch.testing.assert_close(soft[..., :length], soft_alone, rtol=0, atol=1e-6)
            assert (soft[..., length:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_wide(dtype):
    energy = (torch.randn(1, 2, 5, 300) - 2).to(dtype).requires_grad_()
    window = torch.randn(1, 2, 5, 300).to(dtype)
    wide = energy.detach().float().requires_grad_()
    alignment = expected_alignment(energy)
    expected = expected_alignment(wide)
    assert torch.equal(alignment, expected.to(dtype))
    (grad,) = torch.autograd.grad(alignment.float().square().sum(), energy)
    assert grad.dtype == dtype
    for chunk in (3, None):
        soft = expected_soft_attention(alignment, window, chunk)
        assert soft.dtype == dtype
        reference = expected_soft_attention(alignment.float(), window.float(), chunk).to(dtype)
        torch.testing.assert_close(soft, reference, rtol=0, atol=0)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_soft_attention_equals_the_double_loop_with_both_gradients(chunk):
    for kind, energy in energies(4, 50).items():
        alignment = expected_alignment(energy)
        for spread in (1.0, 100.0):
            window = (torch.rand_like(energy) * 2 - 1) * spread
            upstream = torch.randn_like(energy)
            outcome = {}
            for name, function, dtype in (
                ("ours", expected_soft_attention, torch.float32),
                ("wide", expected_soft_attention, torch.float64),
                ("twin", expected_soft_attention_loop, torch.float64),
            ):
                inputs = [x.detach().to(dtype).requires_grad_() for x in (alignment, window)]
                beta = function(*inputs, chunk)
                grads = torch.autograd.grad(beta, inputs, upstream.to(dtype), allow_unused=chunk == 1)
                outcome[name] = [beta.detach(), *(g for g in grads if g is not None)]
            mass = alignment.double().sum(-1)
            torch.testing.assert_close(outcome["ours"][0].double().sum(-1), mass, rtol=0, atol=1e-6)
            size = upstream.double().norm()  # the gradients of a window on one spot are 0 but for rounding
            for ours, wide, twin in zip(*outcome.values(), strict=False):
                context = f"{kind}, spread {spread}"
                assert (ours.double() - twin).norm() <= 1e-6 * (twin.norm() + 0.1 * size), context
                assert (wide - twin).norm() <= 1e-12 * (twin.norm() + size), context


@pytest.mark.parametrize("chunk", CHUNKS)
def test_soft_attention_gradcheck_where_the_alignment_is_zero(chunk):
    alignment = torch.zeros(1, 2, 3, 7, dtype=torch.float64)
    alignment[..., 2] = 0.25
    alignment[:, 0, :, 5] = 0.5
    energy = torch.randn(1, 2, 3, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 6 + [False]])
    for source_mask in (None, mask):
        inputs = (alignment.clone().requires_grad_(), energy)
        assert torch.autograd.gradcheck(lambda a, e, m=source_mask: expected_soft_attention(a, e, chunk, m), inputs)


@pytest.mark.parametrize("chunk", [4, 2000, None])
def test_soft_attention_over_2000_positions(chunk):
    energy = energies(2, 2000)["never quite"]
    alignment = expected_alignment(energy)
    for window in (torch.full_like(energy, 100.0), torch.randn_like(energy) * 50, torch.linspace(100, -100, 2000)):
        window = window.expand_as(energy)
        ours = expected_soft_attention(alignment, window, chunk)
        wide = expected_soft_attention(alignment.double(), window.double(), chunk)
        torch.testing.assert_close(ours.double(), wide, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.double().sum(-1), alignment.double().sum(-1), rtol=0, atol=1e-6)
    if chunk == 2000:
        torch.testing.assert_close(ours, expected_soft_attention(alignment, window, None), rtol=0, atol=1e-6)


energy_lists = st.lists(st.sampled_from([-math.inf, -50, -2.5, -1, -0.25, 0, 0.25, 1, 4, 50, math.inf]), min_size=1)
not_on_the_border = st.floats(-20, 20, width=32).filter(lambda energy: abs(energy) > 1e-4)
one_row = st.one_of(energy_lists, st.lists(not_on_the_border, min_size=1, max_size=30))


@settings(max_examples=200, deadline=None)
@given(one_row, st.sampled_from(["threshold", "cumulative"]), st.sampled_from([0.1, 0.5, 0.83]), st.data())
def test_hard_alignment_equals_the_loop(row, rule, probability, data):
    start = data.draw(st.integers(0, len(row) - 1))
    real = data.draw(st.integers(start + 1, len(row)))
    energy = torch.tensor(row, dtype=torch.float32)[None, None]
    arguments = energy, torch.tensor([[start]]), torch.arange(len(row))[None] < real, rule
    expected = hard_stop(row[:real], start, rule, probability)
    offline, streaming = (hard_alignment(*arguments, s, probability).item() for s in (False, True))
    assert offline == (real - 1 if expected is None else expected)
    assert streaming == (len(row) if expected is None else expected)
    assert offline >= start
    if rule == "cumulative":  # never later than the threshold
        assert offline <= hard_alignment(*arguments[:3], probability=probability).item()
    assert offline <= hard_alignment(*arguments, probability=0.9).item()


@pytest.mark.parametrize("rule", ["threshold", "cumulative"])
def test_saturated_energies_make_expected_and_hard_equal(rule):
    energy = torch.where(torch.rand(2, 3, 12, 50) < 0.1, 50.0, -50.0)
    mask = torch.arange(50) < torch.tensor([50, 31])[:, None]
    alignment = expected_alignment(preserve_mass(energy, mask), mask)
    window_energy = torch.randn_like(energy)
    boundary, rows = torch.zeros(2, 3, dtype=torch.long), []
    for row in energy.unbind(2):
        rows.append(hard_alignment(row, boundary, mask, rule))
        assert (rows[-1] >= boundary).all()
        boundary = rows[-1]
    boundaries = torch.stack(rows, 2)
    torch.testing.assert_close(alignment, torch.nn.functional.one_hot(boundaries, 50).float())
    for chunk in CHUNKS:
        expected = expected_soft_attention(alignment, window_energy, chunk, mask)
        torch.testing.assert_close(soft_window(window_energy, boundaries, chunk, mask), expected, rtol=0, atol=1e-6)


def test_where_no_head_fires():
    energy = torch.full((2, 1, 6), -5.0)
    energy[0, 0, 1] = 5.0  # behind the start
    start = torch.tensor([[3], [0]])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    assert hard_alignment(energy, start).tolist() == [[5], [5]]
    assert hard_alignment(energy, start, mask).tolist() == [[5], [3]]
    assert hard_alignment(energy, start, mask, streaming=True).tolist() == [[6], [6]]
    # Twelve positions of σ = 0.06 reach one half together; the threshold never does.
    spread = torch.full((1, 1, 40), -2.75)
    assert hard_alignment(spread, torch.tensor([[5]]), rule="cumulative").item() == 5 + 11
    assert hard_alignment(spread, torch.tensor([[5]])).item() == 39


def test_last_position_and_preserved_mass():
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    assert last_position(mask).tolist() == [1, 2, 0]
    energy = torch.zeros(3, 1, 2, 3)
    preserved = preserve_mass(energy, mask) == torch.inf
    assert preserved[:, 0, 0].nonzero().tolist() == preserved[:, 0, 1].nonzero().tolist() == [[0, 1], [1, 2], [2, 0]]
    assert (preserve_mass(energy)[..., -1] == torch.inf).all()
    assert (energy == 0).all()
    assert (mask_energy(energy, mask) == -torch.inf).sum() == 2 * (1 + 0 + 3)
    assert expected_alignment(preserve_mass(energy, mask), mask)[2].sum() == 0  # no audio, no reading


def test_bad_input_is_named():
    energy = torch.zeros(2, 3, 4, 5)
    with pytest.raises(
        ValueError, match=r"energy has shape \(3, 4, 5\); it must be \(batch, heads, targets, positions\)"
    ):
        expected_alignment(energy[0])
    with pytest.raises(ValueError, match=r"previous has shape \(2, 3, 4\); it must be \(2, 3, 5\)"):
        expected_alignment(energy, previous=torch.zeros(2, 3, 4))
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5)):
        with pytest.raises(ValueError, match=r"it must be boolean of shape \(2, 5\), true where real"):
            expected_alignment(energy, mask)
    with pytest.raises(ValueError, match="chunk_size = 0 must be at least 1, or None"):
        expected_soft_attention(energy, energy, 0)
    with pytest.raises(ValueError, match=r"alignment \(2, 3, 4, 5\) and energy \(2, 3, 4, 4\) differ in shape"):
        expected_soft_attention(energy, energy[..., :4])
    with pytest.raises(ValueError, match=r"rule = 'first' is not known. Use 'threshold' or 'cumulative'"):
        hard_alignment(energy[:, :, 0], torch.zeros(2, 3), rule="first")
    with pytest.raises(ValueError, match="probability = 1 must lie between 0 and 1"):
        hard_alignment(energy[:, :, 0], torch.zeros(2, 3), probability=1)
    with pytest.raises(ValueError, match=r"energy_row has shape \(2, 3, 5\) and start \(2,\)"):
        hard_alignment(energy[:, :, 0], torch.zeros(2))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch.compile's own making
def test_compiled_equals_eager():
    energy = preserve_mass(torch.randn(1, 2, 4, 12)).requires_grad_()
    start = torch.zeros(1, 2, dtype=torch.long)

    def read(energy):
        alignment = expected_alignment(energy)
        soft = [expected_soft_attention(alignment, energy.clamp(max=5), chunk) for chunk in (3, None)]
        return torch.stack(soft), hard_alignment(energy[:, :, 0], start, None, "cumulative")

    outcomes = [function(energy) for function in (read, torch.compile(read, backend="aot_eager"))]
    torch.testing.assert_close(*(soft for soft, _ in outcomes))
    assert torch.equal(*(stops for _, stops in outcomes))
    grads = [torch.autograd.grad(soft.square().sum(), energy)[0] for soft, _ in outcomes]
    torch.testing.assert_close(*grads)


def test_missing_mass_is_what_an_unpreserved_alignment_lacks():
    torch.manual_seed(0)
    energy = torch.randn(2, 3, 6, 9, dtype=torch.float64) - 1
    mask = torch.arange(9) < torch.tensor([[9], [7]])
    preserved = expected_alignment(preserve_mass(energy, mask), mask)
    lacking = 1 - expected_alignment(energy, mask).sum(-1)
    torch.testing.assert_close(missing_mass(energy, preserved, mask), lacking)
    assert lacking.max() > 0.5

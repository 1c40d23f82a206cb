"""The native expected alignment and soft attention against the eager form and float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_entmax_asr import kernels
from hf_entmax_asr.kernels import backend
from hf_entmax_asr.model.alignment import expected_alignment, expected_soft_attention, preserve_mass

pytestmark = pytest.mark.skipif(not backend.cpu_available(), reason="no native kernels on this machine")

WIDTHS = (1, 2, 3, 8, 260, None)


def soft(energy: Tensor, scores: Tensor, previous: Tensor | None, mask: Tensor | None, width: int | None) -> Tensor:
    alignment = expected_alignment(energy, mask, previous)
    return expected_soft_attention(alignment, scores, width, mask)


def with_gradients(
    arguments: list[Tensor | None], grad: Tensor, mask: Tensor | None, width: int | None
) -> list[Tensor]:
    leaves = [None if t is None else t.detach().to(grad.dtype).requires_grad_() for t in arguments]
    weights = soft(*leaves, mask, width)
    needed = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(weights, needed, grad, allow_unused=True)
    return [weights, *[torch.zeros_like(t) if g is None else g for t, g in zip(needed, grads, strict=True)]]


def agree(arguments: list[Tensor | None], grad: Tensor, mask: Tensor | None, width: int | None) -> None:
    """The native form against float64: within 1e-5, or twice the error of the eager form in float32."""
    native = with_gradients(arguments, grad, mask, width)
    exact = with_gradients(arguments, grad.double(), mask, width)
    with kernels.use("eager"):
        eager = with_gradients(arguments, grad, mask, width)
    assert "_ExpectedAlignment" not in str(native[0].grad_fn)
    for got, right, other in zip(native, exact, eager, strict=True):
        assert got.shape == right.shape
        bound = max(1e-5 * max(1.0, right.abs().max().item()), 2 * (other - right).abs().max().item())
        assert (got - right).abs().max().item() <= bound


def batch(
    shape: tuple[int, int, int, int], scale: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """energy, scores, previous, mask of (B, S) with right padding, grad."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, shape[3] + 1, (shape[0],))
    lengths[0] = shape[3]
    mask = torch.arange(shape[3]) < lengths[:, None]
    previous = torch.softmax(torch.randn(shape[0], shape[1], shape[3]), -1)
    return torch.randn(shape) * scale - 1, torch.randn(shape) * scale, previous, mask, torch.randn(shape)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 20), (2, 2, 5, 3), (1, 2, 9, 100), (3, 1, 4, 257)])
@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
def test_values_and_gradients(shape, scale, width):
    energy, scores, previous, mask, grad = batch(shape, scale)
    agree([preserve_mass(energy, mask), scores, previous], grad, mask, width)
    agree([preserve_mass(energy), scores, None], grad, None, width)
    agree([energy, scores, None], grad, mask, width)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 11), st.integers(1, 70)),
    scale=st.sampled_from([0.1, 2.0, 15.0]),
    width=st.one_of(st.none(), st.integers(1, 12)),
    padded=st.booleans(),
    continued=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_random_shapes(shape, scale, width, padded, continued, seed):
    energy, scores, previous, mask, grad = batch(shape, scale, seed)
    agree([energy, scores, previous if continued else None], grad, mask if padded else None, width)


def test_mass_is_kept_where_the_end_stops_everything():
    energy, scores, _, mask, _ = batch((3, 2, 8, 50), 4.0)
    alignment = expected_alignment(preserve_mass(energy, mask), mask)
    torch.testing.assert_close(alignment.sum(-1), torch.ones(3, 2, 8))
    for width in WIDTHS:
        weights = expected_soft_attention(alignment, scores, width, mask)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 8))
        assert (weights.masked_select(~mask[:, None, None, :].expand_as(weights)) == 0).all()


def test_padding_changes_nothing():
    energy, scores, _, _, grad = batch((1, 2, 6, 30), 3.0)
    mask = torch.arange(41) < 30
    wide = [torch.nn.functional.pad(t, (0, 11), value=5.0) for t in (energy, scores, grad)]
    for width in WIDTHS:
        short = with_gradients([energy, scores, None], grad, None, width)
        long = with_gradients([wide[0], wide[1], None], wide[2], mask[None], width)
        for a, b in zip(short, long, strict=True):
            torch.testing.assert_close(b[..., :30], a, atol=1e-6, rtol=1e-5)
            assert not b[..., 30:].any()


def test_infinite_energies_are_hard_decisions():
    energy = torch.full((1, 1, 3, 6), -torch.inf)
    for token, stop in enumerate((1, 1, 4)):
        energy[..., token, stop] = torch.inf
    alignment = expected_alignment(energy.requires_grad_())
    assert alignment.detach().argmax(-1).flatten().tolist() == [1, 1, 4]
    assert alignment.sum().item() == 3
    assert not torch.autograd.grad(alignment[..., 4].sum(), energy)[0].isnan().any()


def test_two_halves_are_one_whole():
    energy, _, _, mask, _ = batch((2, 2, 10, 40), 3.0)
    whole = expected_alignment(energy, mask)
    first = expected_alignment(energy[:, :, :3], mask)
    second = expected_alignment(energy[:, :, 3:], mask, first[:, :, -1])
    torch.testing.assert_close(torch.cat([first, second], 2), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 3, None])
def test_half_precision_is_rounded_once(dtype, width):
    energy, scores, _, mask, grad = batch((2, 2, 5, 33), 2.0)
    energy, scores = energy.to(dtype).requires_grad_(), scores.to(dtype).requires_grad_()
    weights = soft(energy, scores, None, mask, width)
    assert weights.dtype == dtype
    expected = expected_alignment(energy.float(), mask).to(dtype)
    if width != 1:
        expected = expected_soft_attention(expected.float(), scores.float(), width, mask).to(dtype)
    assert torch.equal(weights, expected)
    grads = torch.autograd.grad(weights, (energy, scores), grad.to(dtype), allow_unused=width == 1)
    assert all(g is None or g.dtype == dtype for g in grads)


def test_views():
    energy, scores, previous, mask, grad = batch((2, 3, 8, 24), 2.0)
    agree([energy.transpose(1, 2)[:, :3], scores[..., ::2].repeat(1, 1, 1, 2)[:, :, :3].expand(2, 3, 3, 24), None],
          grad[:, :, :3], mask, 3)  # fmt: skip
    wide = torch.randn(2, 3, 8, 48)
    agree([wide[..., ::2], wide[..., 1::2], previous.flip(-1)], grad, mask, None)
    agree([energy[:1].expand(2, -1, -1, -1), scores, None], grad, mask, 4)


def test_nan_stays_in_its_row():
    energy, scores, _, _, _ = batch((1, 9, 6, 20), 2.0)
    clean = soft(energy, scores, None, None, 3)
    energy[0, 4, 2, 7] = torch.nan
    weights = soft(energy, scores, None, None, 3)
    assert weights[0, 4, 2].isnan().any()
    others = [h for h in range(9) if h != 4]
    assert torch.equal(weights[:, others], clean[:, others])
    energy.requires_grad_()
    (d_energy,) = torch.autograd.grad(expected_alignment(energy).sum(), energy)
    assert not d_energy[:, others].isnan().any()


def test_no_targets():
    assert expected_alignment(torch.randn(2, 3, 0, 5)).shape == (2, 3, 0, 5)


@pytest.mark.parametrize("threads", [2, 4])
def test_results_do_not_depend_on_the_number_of_threads(threads):
    energy, scores, _, mask, grad = batch((3, 3, 9, 50), 2.0)
    expected = with_gradients([energy, scores, None], grad, mask, 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for a, b in zip(with_gradients([energy, scores, None], grad, mask, 5), expected, strict=True):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # Inductor's own
def test_compiles_whole():
    energy, scores, _, mask, grad = batch((2, 2, 5, 33), 2.0)
    compiled = torch.compile(soft, fullgraph=True)
    for width in (3, None):
        leaves = [energy.clone().requires_grad_(), scores.clone().requires_grad_()]
        got = torch.autograd.grad(compiled(*leaves, None, mask, width), leaves, grad)
        expected = torch.autograd.grad(soft(*leaves, None, mask, width), leaves, grad)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_gradient_checkpointing():
    energy, scores, _, mask, grad = batch((2, 2, 5, 33), 2.0)
    leaves = [energy.requires_grad_(), scores.requires_grad_()]
    expected = torch.autograd.grad(soft(*leaves, None, mask, None), leaves, grad)
    again = torch.utils.checkpoint.checkpoint(soft, *leaves, None, mask, None, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(again, leaves, grad), expected, strict=True):
        assert torch.equal(a, b)


def test_operator_registrations():
    from hf_entmax_asr.kernels.alignment_cpu import align, spread

    energy, scores, previous, mask, _ = batch((2, 2, 4, 9), 2.0)
    leaves = [t.requires_grad_() for t in (energy, scores, previous)]
    torch.library.opcheck(align, (leaves[0], mask, leaves[2], True))
    torch.library.opcheck(spread, (leaves[0].detach().sigmoid().requires_grad_(), leaves[1], mask, 3))

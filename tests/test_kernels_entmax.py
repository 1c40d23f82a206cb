"""The native α-entmax against the eager form and float64: values, gradients, masks, shapes, strides, dtypes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_entmax_asr import kernels
from hf_entmax_asr.kernels import backend
from hf_entmax_asr.model.entmax import entmax, entmax15, sparsemax

pytestmark = pytest.mark.skipif(not backend.cpu_available(), reason="no native kernels on this machine")

ALPHAS = (1.0, 1.0001, 1.01, 1.05, 1.2, 1.333, 1.5, 1.7, 1.95, 2.0)


def is_native(weights: Tensor) -> bool:
    """Whether the operator stands among the last few steps that made `weights`."""
    step = weights.grad_fn
    while step is not None and "hf_entmax_asr" not in type(step).__name__ and "_Entmax" not in type(step).__name__:
        step = step.next_functions[0][0] if step.next_functions else None
    return step is not None and "hf_entmax_asr" in type(step).__name__


def with_gradients(scores: Tensor, alpha: Tensor, grad: Tensor, **arguments) -> tuple[Tensor, Tensor, Tensor]:
    """p, dz and dα by whichever form the mode and the dtype choose."""
    scores, alpha = scores.detach().requires_grad_(), alpha.detach().requires_grad_()
    weights = entmax(scores, alpha, **arguments)
    return (weights, *torch.autograd.grad(weights, (scores, alpha), grad.to(weights.dtype)))


def agree(scores: Tensor, alpha: Tensor, grad: Tensor, **arguments) -> None:
    """The native form against float64, within the bounds of the eager form."""
    weights, d_scores, d_alpha = with_gradients(scores, alpha, grad, **arguments)
    exact, exact_d_scores, exact_d_alpha = with_gradients(scores.double(), alpha.double(), grad.double(), **arguments)
    assert is_native(weights)
    assert not is_native(exact)
    assert weights.shape == exact.shape
    assert d_scores.shape == scores.shape
    assert d_alpha.shape == alpha.shape
    torch.testing.assert_close(weights.double(), exact, atol=3e-7, rtol=0)
    spread = grad.abs().max().clamp(min=1e-20).item()
    # A weight on the edge of the support may fall on either side of it; its gradient then differs by a bounded amount
    # that shrinks with p^(2−α), which is why α = 2 is compared on its support alone.
    torch.testing.assert_close(d_alpha.double(), exact_d_alpha, atol=2e-5 * spread, rtol=2e-5)
    on_edge = ((weights.detach() > 0) != (exact.detach() > 0)).any(arguments.get("dim", -1), keepdim=True)
    tolerance = torch.where(on_edge, 1.0, 2e-5) * spread * max(1, weights.numel() // scores.numel())
    assert ((d_scores.double() - exact_d_scores).abs() <= tolerance.expand(weights.shape).amax()).all()
    if not on_edge.any():
        torch.testing.assert_close(d_scores.double(), exact_d_scores, atol=2e-5 * spread, rtol=2e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("width", [1, 2, 3, 15, 16, 17, 33, 64, 100, 257, 512, 1100])
@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0])
def test_values_and_gradients(alpha, width, scale):
    torch.manual_seed(width)
    scores, grad = torch.randn(5, width) * scale, torch.randn(5, width)
    agree(scores, torch.tensor([[alpha]]), grad)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_float64_stays_eager_and_agrees(alpha):
    scores = torch.randn(3, 40, dtype=torch.float64, requires_grad=True)
    assert not is_native(entmax(scores, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("width", [5, 130])
def test_a_masked_row_is_a_shorter_row(alpha, width):
    torch.manual_seed(0)
    scores, grad = torch.randn(2, 3, 4, width), torch.randn(2, 3, 4, width)
    mask = torch.rand(2, 1, 4, width) < 0.6
    agree(scores, torch.full((3, 1, 1), alpha), grad, mask=mask)
    weights = entmax(scores, alpha, mask=mask)
    assert (weights[~mask.expand_as(weights)] == 0).all()
    for row, kept, got in zip(scores[0, 1], mask[0, 0], weights[0, 1], strict=True):
        torch.testing.assert_close(got[kept], entmax(row[kept], alpha), atol=3e-7, rtol=0)


@pytest.mark.parametrize("shape", [(2, 1, 1, 70), (1, 3, 5, 70), (2, 3, 5, 70), (70,), (5, 1), (2, 1, 5, 1)])
def test_masks_broadcast(shape):
    torch.manual_seed(1)
    agree(torch.randn(2, 3, 5, 70), torch.tensor(1.4), torch.randn(2, 3, 5, 70), mask=torch.rand(shape) < 0.7)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (2, 1, 1, 1), (2, 3, 1, 1), (2, 3, 5, 1), (5, 1)])
def test_alphas_broadcast(shape):
    torch.manual_seed(2)
    agree(torch.randn(2, 3, 5, 40), 1.05 + 0.9 * torch.rand(shape), torch.randn(2, 3, 5, 40))


def test_alpha_and_mask_may_broadcast_the_scores():
    scores, mask = torch.randn(7), torch.tensor([[True] * 7, [True, False] * 3 + [True]])
    agree(scores, torch.tensor([[1.2], [1.8]]), torch.randn(2, 7), mask=mask)


def test_more_dimensions_than_the_kernel_walks():
    scores, mask = torch.randn(2, 1, 2, 1, 2, 1, 2, 9), torch.rand(2, 1, 2, 1, 2, 1, 2, 9) < 0.8
    agree(scores, 1.1 + 0.8 * torch.rand(2, 1, 2, 1, 1, 1, 1, 1), torch.randn_like(scores), mask=mask)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_any_dimension(dim):
    scores = torch.randn(6, 7, 8)
    shape = [6, 7, 8]
    shape[dim] = 1
    agree(scores, 1.1 + 0.8 * torch.rand(shape), torch.randn(6, 7, 8), dim=dim, mask=torch.rand(6, 7, 8) < 0.8)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[:, ::2],
        lambda x: x[..., 1:],
        lambda x: x[..., ::3],
        lambda x: x.transpose(1, 2),
        lambda x: x[1:2].expand(4, -1, -1),
    ],
)
def test_views(view):
    scores, grad = view(torch.randn(6, 20, 40)), view(torch.randn(6, 20, 40))
    agree(scores, torch.tensor(1.3), grad, mask=view(torch.rand(6, 20, 40) < 0.7))


def test_empty_rows_and_one_key():
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[False, False, False], [False, True, False]])
    alpha = torch.tensor(1.6, requires_grad=True)
    weights = entmax(scores, alpha, mask=mask)
    assert weights.tolist() == [[0, 0, 0], [0, 1, 0]]
    d_scores, d_alpha = torch.autograd.grad(weights, (scores, alpha), torch.randn(2, 3))
    assert not d_scores.any()
    assert not d_alpha.any()
    assert entmax(torch.full((2, 30), -torch.inf), 1.2).eq(0).all()
    assert entmax(torch.randn(3, 1, requires_grad=True), 1.3).eq(1).all()


def test_no_rows_and_no_columns():
    assert entmax(torch.empty(0, 5), 1.5).shape == (0, 5)
    scores = torch.empty(3, 0, requires_grad=True)
    with kernels.use("cpu"):
        weights = entmax(scores, 1.5) if scores.numel() else scores
    assert weights.shape == (3, 0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_nan_is_not_hidden(alpha):
    for width in (3, 200):
        scores = torch.randn(3, width)
        scores[1, width // 2] = torch.nan
        weights = entmax(scores, alpha)
        assert weights[1].isnan().any()
        assert not weights[[0, 2]].isnan().any()
        assert entmax(torch.full((1, width), torch.nan), alpha).isnan().all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_and_far_scores(alpha):
    for width in (2, 16, 400):
        torch.testing.assert_close(entmax(torch.full((width,), 1e4), alpha), torch.full((width,), 1 / width))
    one_hot = entmax(torch.tensor([300.0, 0.0, -300.0, -torch.inf]), alpha)
    torch.testing.assert_close(one_hot, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    shifted = torch.randn(7, 90)
    torch.testing.assert_close(entmax(shifted + 64.0, alpha), entmax(shifted, alpha), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 1.8, 2.0])
def test_half_precision_is_rounded_once(dtype, alpha):
    scores = torch.randn(4, 3, 60, dtype=dtype)
    alphas = torch.full((3, 1), alpha)
    expected = entmax(scores.float(), alphas)
    got, d_scores, d_alpha = with_gradients(scores, alphas, torch.ones(4, 3, 60).cumsum(-1))
    assert got.dtype == d_scores.dtype == dtype
    assert d_alpha.dtype == torch.float32
    assert torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_closed_forms_are_the_named_transforms(alpha):
    scores = torch.randn(9, 50)
    named = {1.5: entmax15, 2.0: sparsemax}[alpha](scores)
    assert torch.equal(named, entmax(scores, torch.tensor(alpha)))


@pytest.mark.parametrize("width", [33, 700])
def test_support_shrinks_with_alpha_and_order_is_kept(width):
    scores = torch.randn(20, width)
    before = width
    for alpha in (1.05, 1.2, 1.5, 1.8, 2.0):
        weights = entmax(scores, alpha)
        support = (weights > 0).sum(-1)
        assert (support <= before).all()
        before = support
        ordered = weights.gather(-1, scores.argsort(-1, descending=True))
        assert (ordered.diff(dim=-1) <= 1e-7).all()  # equal scores apart, to rounding


def test_gradient_of_alpha_by_differences():
    scores, grad = torch.randn(30, 80, dtype=torch.float64), torch.randn(30, 80, dtype=torch.float64)
    for alpha in (1.05, 1.3, 1.45):
        step = 1e-6
        difference = ((entmax(scores, alpha + step) - entmax(scores, alpha - step)) * grad).sum() / (2 * step)
        _, _, native = with_gradients(scores.float(), torch.tensor(alpha), grad.float())
        torch.testing.assert_close(native.double(), difference, rtol=1e-4, atol=1e-3)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=0, max_size=3),
    width=st.one_of(st.integers(1, 40), st.integers(41, 700)),
    alpha=st.one_of(st.sampled_from(ALPHAS), st.floats(1.0, 2.0)),
    scale=st.sampled_from([0.01, 0.5, 2.0, 20.0]),
    kept=st.sampled_from([None, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 2**16),
)
def test_random_shapes(shape, width, alpha, scale, kept, seed):
    torch.manual_seed(seed)
    scores, grad = torch.randn(*shape, width) * scale, torch.randn(*shape, width)
    mask = None if kept is None else torch.rand(*shape, width) < kept
    weights, d_scores, d_alpha = with_gradients(scores, torch.tensor(alpha), grad, mask=mask)
    exact, _, exact_d_alpha = with_gradients(scores.double(), torch.tensor(alpha).double(), grad.double(), mask=mask)
    torch.testing.assert_close(weights.double(), exact, atol=4e-7, rtol=0)
    assert (d_scores.double().sum(-1).abs() <= 1e-4 * grad.abs().sum(-1)).all()  # shifting scores changes nothing
    torch.testing.assert_close(d_alpha.double(), exact_d_alpha, atol=1e-4 * max(1, exact.numel() / width), rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # Inductor's own
def test_compiles_whole():
    @torch.compile(fullgraph=True)
    def loss(scores, alpha, mask):
        return (entmax(scores, alpha, mask=mask) * scores).sum()

    scores, alpha = torch.randn(2, 3, 4, 50, requires_grad=True), torch.tensor([[[1.2]], [[1.5]], [[1.9]]])
    alpha.requires_grad_()
    mask = torch.rand(2, 1, 1, 50) < 0.8
    got = torch.autograd.grad(loss(scores, alpha, mask), (scores, alpha))
    expected = torch.autograd.grad((entmax(scores, alpha, mask=mask) * scores).sum(), (scores, alpha))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_exports_to_standard_operators():
    class Weigh(torch.nn.Module):
        def forward(self, scores):
            return entmax(scores, 1.5)

    scores = torch.randn(3, 20)
    program = torch.export.export(Weigh(), (scores,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("hf_entmax_asr" in name for name in names)
    torch.testing.assert_close(program.module()(scores), entmax(scores, 1.5), atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing():
    scores, alpha = torch.randn(6, 30, requires_grad=True), torch.tensor(1.4, requires_grad=True)
    expected = torch.autograd.grad(entmax(scores, alpha).square().sum(), (scores, alpha))
    again = torch.utils.checkpoint.checkpoint(entmax, scores, alpha, use_reentrant=False).square().sum()
    for a, b in zip(torch.autograd.grad(again, (scores, alpha)), expected, strict=True):
        assert torch.equal(a, b)


def test_operator_registrations():
    from hf_entmax_asr.kernels.entmax_cpu import entmax_rows

    scores = torch.randn(2, 3, 9, requires_grad=True)
    alpha = torch.full((1, 3, 1), 1.4, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(entmax_rows, (scores, alpha, torch.rand(2, 3, 9) < 0.9))

"""α-entmax against its definition: values, both gradients, masks, dtypes, properties."""

import math

import entmax as published  # the PyPI package of the authors
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_entmax_asr.model.entmax as entmax_module
from hf_entmax_asr import entmax, entmax15, kernels, softmax, sparsemax, topk_softmax
from reference import entmax_alpha_derivative, entmax_by_bisection, sparsemax_by_sorting
from support.hard_cases import backward_terms, hard_rows

ALPHAS = (1.0, 1 + 1e-7, 1 + 1e-5, 1 + 1e-4, 1.001, 1.01, 1.1, 1.3, 1.5, 1.7, 1.9, 1.99, 1.999, 2.0)
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("length", [1, 2, 33, 1000])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_float32_values_are_within_3e_7_of_the_definition(alpha, length):
    rows = hard_rows(length)
    weights = entmax(rows, alpha)
    torch.testing.assert_close(weights.double(), entmax_by_bisection(rows, alpha), rtol=0, atol=3e-7)
    torch.testing.assert_close(weights.double().sum(-1), torch.ones(len(rows)).double(), rtol=0, atol=3e-7)


@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a == 1 or a > 1.0001])  # nearer to 1 the twin is the worse one
def test_float64_values_equal_the_definition(alpha):
    rows = hard_rows(33).double()
    torch.testing.assert_close(entmax(rows, alpha), entmax_by_bisection(rows, alpha), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    scores = torch.randn(2, 4, 5, 60).to(dtype).requires_grad_()
    alpha = torch.tensor([1.0, 1.2, 1.6, 2.0]).view(4, 1, 1).requires_grad_()
    upstream = torch.randn(2, 4, 5, 60).to(dtype)
    weights = entmax(scores, alpha)
    wide = scores.detach().float().requires_grad_()
    expected = entmax(wide, alpha)
    assert weights.dtype == dtype
    assert torch.equal(weights, expected.to(dtype))
    grads = torch.autograd.grad(weights, (scores, alpha), upstream)
    wide_grads = torch.autograd.grad(expected, (wide, alpha), upstream.float())
    assert torch.equal(grads[0], wide_grads[0].to(dtype))
    assert torch.equal(grads[1], wide_grads[1])
    assert softmax(scores, 2.0).dtype == topk_softmax(scores, 3).dtype == dtype


@pytest.mark.parametrize(("length", "alphas"), [(4096, (1.0, 1.1, 1.5, 1.9, 1.95, 2.0)), (100, ALPHAS)])
def test_newton_stops_by_itself_well_before_its_limits(length, alphas, monkeypatch):
    rows = hard_rows(length, count=4)
    for alpha in alphas:
        free = entmax(rows, alpha)
        monkeypatch.setattr(entmax_module, "MAX_NEWTON_STEPS", 11)
        assert torch.equal(entmax(rows, alpha), free)
        monkeypatch.undo()


def test_compiled_newton_steps_are_enough_for_long_rows(monkeypatch):
    rows = hard_rows(4096, count=4)
    rows = torch.cat([rows, -0.9 * (torch.arange(4096) / 4096)[None] ** 0.05])  # the slowest known: 10 steps
    monkeypatch.setattr(entmax_module, "MAX_NEWTON_STEPS", entmax_module.COMPILED_NEWTON_STEPS)
    for alpha in (1 + 1e-5, 1.5, 1.9, 2.0):
        torch.testing.assert_close(
            entmax(rows, alpha).double(), entmax_by_bisection(rows, alpha), rtol=0, atol=3e-7, msg=f"alpha = {alpha}"
        )


def test_alpha_1_is_softmax_and_its_neighbourhood_is_continuous():
    scores = torch.randn(20, 50, dtype=torch.float64) * 4
    expected = torch.softmax(scores, -1)
    torch.testing.assert_close(entmax(scores, 1.0), expected, rtol=1e-13, atol=1e-16)
    for distance in (1e-12, 1e-9, 1e-6):
        change = (entmax(scores, 1 + distance) - expected).abs().max()
        assert change < 30 * distance + 1e-15
    alpha = torch.ones(20, 1, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(scores)
    (gradient,) = torch.autograd.grad(entmax(scores, alpha), alpha, upstream)
    log_square = expected.log().square()
    limit = -0.5 * expected * (log_square - (expected * log_square).sum(-1, keepdim=True))
    torch.testing.assert_close(gradient, (upstream * limit).sum(-1, keepdim=True), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparsemax_equals_the_sorting_algorithm(dtype):
    rows = torch.cat([torch.randn(10, 40), torch.randint(0, 3, (10, 40)) * 0.25, torch.randn(10, 40) * 100]).to(dtype)
    expected = torch.stack([sparsemax_by_sorting(row) for row in rows])
    torch.testing.assert_close(
        sparsemax(rows).double(), expected, rtol=0, atol=2e-7 if dtype == torch.float32 else 1e-14
    )
    assert torch.equal(entmax15(rows), entmax(rows, 1.5))


def gradients(rows, alpha, upstream):
    """dz, and dα of every row."""
    rows = rows.detach().requires_grad_()
    alpha = torch.full((len(rows), 1), alpha, dtype=torch.float64, requires_grad=True)
    dz, dalpha = torch.autograd.grad(entmax(rows, alpha), (rows, alpha), upstream.to(rows.dtype))
    return dz.double(), dalpha.squeeze(-1)


# The error of dα = −Σ w (g − ḡ) is measured against Σ w |g − ḡ|, the size of its terms: relative to |dα| no bound can
# hold where the terms cancel. In a uniform row they cancel altogether (∂p/∂α = 0), in a one-hot row they are all 0.
@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a != 1 + 1e-7])
def test_alpha_gradient_matches_a_finite_difference_in_decimals(alpha):
    rows = [torch.randn(n) * s for n, s in ((2, 1.0), (3, 1e-3), (5, 3.0), (12, 1.0), (12, 10.0), (24, 0.3), (24, 2.0))]
    rows += [torch.tensor([0.0, 0.0, -0.3, -0.3, -0.7]), torch.tensor([2.0, 2.0, 2.0]), torch.tensor([5e3, 0, -5e3])]
    for row in rows:
        derivative = torch.tensor(entmax_alpha_derivative(row.tolist(), alpha), dtype=torch.float64)
        upstream = torch.randn(50, len(row))
        _, terms = backward_terms(entmax(row.double(), alpha), alpha, upstream)
        for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
            _, gradient = gradients(row.expand(50, -1).to(dtype), alpha, upstream)
            error = (gradient - upstream.double() @ derivative).abs()
            assert (error <= bound * terms.abs().sum(-1)).all(), f"{dtype}, {row}: {error.max():.1e}"


@pytest.mark.parametrize("alpha", ALPHAS)
def test_float32_backward_is_as_exact_as_the_weights(alpha):
    rows = hard_rows(1000)
    upstream = torch.randn(rows.shape)
    dz_terms, dalpha_terms = backward_terms(entmax(rows, alpha), alpha, upstream)
    dz, dalpha = gradients(rows, alpha, upstream)
    scale = (entmax(rows, alpha).double() ** (2 - alpha)).where(rows > -torch.inf, 0.0) * upstream.abs().amax()
    assert ((dz - dz_terms).abs() <= 1e-5 * scale + 1e-12).all()
    assert ((dalpha + dalpha_terms.sum(-1)).abs() <= 1e-5 * dalpha_terms.abs().sum(-1)).all()


@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-5, 1.001, 1.2, 1.5, 2.0])
def test_float32_gradients_equal_float64(alpha):
    rows = torch.randn(200, 300) * torch.logspace(-2, 2, 200)[:, None]
    # Rows with an entry so near the border of the support that it counts in one precision only have no one gradient.
    clear = ((entmax(rows.double(), alpha) > 0) == (entmax(rows, alpha) > 0)).all(-1)
    assert clear.sum() > 100
    rows, upstream = rows[clear], torch.randn(int(clear.sum()), 300)
    narrow, wide = (gradients(r, alpha, upstream) for r in (rows, rows.double()))
    assert (narrow[0] - wide[0]).norm() <= 1e-4 * wide[0].norm()
    assert (narrow[1] - wide[1]).norm() <= 1e-5 * wide[1].norm()


@pytest.mark.parametrize(
    ("scores_shape", "alpha_shape", "dim", "mask_shape"),
    [
        ((2, 3, 4, 6), (3, 1, 1), -1, (2, 1, 1, 6)),
        ((2, 3, 4, 6), (3, 1, 1), -1, None),
        ((2, 5, 3), (3,), 1, (5, 1)),
        ((4, 6), (), 0, None),
        ((6,), (3, 1), -1, (2, 1, 6)),  # alpha and mask add dimensions in front
        ((4, 6), (4, 1), -1, (4, 6)),
    ],
)
@pytest.mark.parametrize("low", [1.0, 1.3, 1.6])
def test_gradcheck_of_scores_and_alpha(scores_shape, alpha_shape, dim, mask_shape, low):
    scores = torch.randn(scores_shape, dtype=torch.float64, requires_grad=True)
    alpha = (low + 0.05 + 0.3 * torch.rand(alpha_shape, dtype=torch.float64)).requires_grad_()
    mask = None if mask_shape is None else torch.rand(mask_shape) < 0.7
    assert torch.autograd.gradcheck(lambda s, a: entmax(s, a, dim, mask), (scores, alpha))


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_parity_with_the_published_package(scale):
    scores = (torch.randn(3, 7, 41, dtype=torch.float64) * scale).requires_grad_()
    upstream = torch.randn(3, 7, 41, dtype=torch.float64)

    def assert_parity(ours, theirs, inputs, rtol=1e-9):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        for a, b in zip(
            torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())

    for dim in (-1, 1):
        assert_parity(entmax15(scores, dim), published.entmax15(scores, dim=dim), (scores,))
        assert_parity(sparsemax(scores, dim), published.sparsemax(scores, dim=dim), (scores,))
    for value in (1.2, 1.5, 1.8):  # nearer to 1 its α gradient loses digits
        alpha = torch.full((7, 1), value, dtype=torch.float64, requires_grad=True)
        theirs = published.entmax_bisect(scores, alpha.expand(3, 7, 1), dim=-1, n_iter=60)
        assert_parity(entmax(scores, alpha), theirs, (scores, alpha), rtol=1e-6)


rows_of_scores = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(torch.tensor)
any_alpha = st.one_of(st.floats(1, 2), st.sampled_from(ALPHAS))


@settings(max_examples=100, deadline=None)
@given(rows_of_scores, any_alpha, st.randoms(use_true_random=False), st.integers(-1000, 1000))
def test_properties_of_any_row(row, alpha, random, shift):
    p = entmax(row, alpha)
    assert (p >= 0).all()
    assert abs(p.double().sum() - 1) <= 3e-7
    order = torch.tensor(random.sample(range(len(row)), len(row)))
    torch.testing.assert_close(entmax(row[order], alpha), p[order], rtol=0, atol=3e-7)
    torch.testing.assert_close(entmax(row.double() + shift, alpha), entmax(row.double(), alpha), rtol=0, atol=1e-11)
    ranks = row.argsort()
    assert (p[ranks].diff() >= 0).all()  # a larger score never weighs less
    assert torch.equal(p[row == row.max()], p.max().expand(int((row == row.max()).sum())))  # ties share


@settings(max_examples=100, deadline=None)
@given(rows_of_scores, any_alpha, st.data())
def test_masking_equals_removing(row, alpha, data):
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))))
    p = entmax(row, alpha, mask=mask)
    assert (p[~mask] == 0).all()
    if mask.any():
        torch.testing.assert_close(p[mask], entmax(row[mask], alpha), rtol=0, atol=3e-7)
        assert torch.equal(p, entmax(torch.where(mask, row, -torch.inf), alpha))


@settings(max_examples=100, deadline=None)
@given(rows_of_scores, st.floats(1.01, 2), st.floats(1.01, 2))
def test_the_support_shrinks_as_alpha_grows(row, first, second):
    # Float64 and a margin, because an entry at the very border may fall on either side of it.
    wide, narrow = (entmax(row.double(), alpha) for alpha in sorted((first, second)))
    assert not ((wide == 0) & (narrow > 1e-9)).any()


def test_empty_rows_are_zero_with_zero_gradients():
    scores = torch.randn(2, 3, 5, requires_grad=True)
    alpha = torch.tensor([[1.0], [1.5], [2.0]], requires_grad=True)
    mask = torch.tensor([True, False])[:, None, None]
    for function in (
        lambda: entmax(scores, alpha, mask=mask),
        lambda: softmax(scores, mask=mask),
        lambda: topk_softmax(scores, 2, mask=mask),
    ):
        weights = function()
        assert (weights[1] == 0).all()
        torch.testing.assert_close(weights[0].sum(-1), torch.ones(3))
        (grad,) = torch.autograd.grad(weights, scores, torch.randn(2, 3, 5))
        assert (grad[1] == 0).all()
        assert grad.isfinite().all()
        assert (grad[0] != 0).any()
    (grad,) = torch.autograd.grad(entmax(scores, alpha, mask=mask & False), alpha, torch.randn(2, 3, 5))
    assert torch.equal(grad, torch.zeros(3, 1))
    nothing = torch.full((2, 5), -torch.inf, requires_grad=True)
    for function in (sparsemax, entmax15, softmax, lambda s: entmax(s, 1.0), lambda s: topk_softmax(s, 2)):
        weights = function(nothing)
        (grad,) = torch.autograd.grad(weights, nothing, torch.randn(2, 5))
        assert torch.equal(weights, torch.zeros(2, 5))
        assert torch.equal(grad, torch.zeros(2, 5))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_one_key_takes_everything(alpha):
    score = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    alpha = torch.tensor(alpha, requires_grad=True)
    weights = entmax(score, alpha)
    assert torch.equal(weights, torch.ones(3, 1))
    for grad in torch.autograd.grad(weights, (score, alpha), torch.ones(3, 1)):
        assert (grad == 0).all()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gradients_of_hard_rows_are_finite_and_zero_where_nothing_is_allowed(alpha, dtype):
    scores = hard_rows(50).to(dtype).requires_grad_()
    alpha = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(scores.shape) < 0.6
    weights = entmax(scores, alpha, mask=mask)
    grads = torch.autograd.grad(weights, (scores, alpha), torch.randn(scores.shape).to(dtype))
    assert weights.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][~mask] == 0).all()
    assert grads[0].dtype == dtype


def test_layout_and_dimension_do_not_matter():
    scores = torch.randn(4, 5, 6)
    alpha = torch.tensor([1.2, 1.4, 1.6, 1.8]).view(4, 1, 1)
    expected = entmax(scores, alpha)
    strided = torch.randn(4, 5, 12)[..., ::2].copy_(scores)
    assert torch.equal(entmax(strided, alpha), expected)
    torch.testing.assert_close(
        entmax(scores.transpose(1, 2), alpha, dim=1).transpose(1, 2), expected, rtol=0, atol=1e-7
    )
    torch.testing.assert_close(
        entmax(scores.transpose(0, 2), alpha.transpose(0, 2), dim=0).transpose(0, 2), expected, rtol=0, atol=1e-7
    )
    for head, value in enumerate(alpha.flatten().tolist()):  # a tensor α and a number give the same
        torch.testing.assert_close(entmax(scores[head], value), expected[head], rtol=0, atol=1e-7)
    assert entmax(torch.randn(0, 5), 1.5).shape == (0, 5)


def test_bad_input_is_named():
    scores = torch.randn(2, 3, 5)
    for alpha in (0.99, 2.01, math.nan):
        with pytest.raises(ValueError, match=rf"alpha = {alpha} must lie in \[1, 2\]"):
            entmax(scores, alpha)
    with pytest.raises(ValueError, match=r"alpha lies in \[1.5, 2.5\]; it must lie in \[1, 2\]"):
        entmax(scores, torch.tensor([1.5, 2.5, 2.0])[:, None])
    with pytest.raises(ValueError, match=r"alpha has shape \(3,\).*size along dim -1 must be 1"):
        entmax(torch.randn(2, 5, 3), torch.tensor([1.5, 1.6, 1.7]))
    with pytest.raises(ValueError, match=r"mask has dtype torch.float32; it must be boolean"):
        entmax(scores, 1.5, mask=torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match=r"scores have dtype torch.int64; they must be floating point"):
        entmax(torch.tensor([1, 2]), 1.5)
    with pytest.raises(ValueError, match="temperature = 0 must be above 0"):
        softmax(scores, 0)
    with pytest.raises(ValueError, match="k = 0 must be at least 1"):
        topk_softmax(scores, 0)


def test_softmax_divides_by_its_temperature():
    scores = torch.randn(3, 9, requires_grad=True)
    for temperature in (0.1, 1.0, 7.0):
        weights = softmax(scores, temperature)
        expected = torch.softmax(scores / temperature, -1)
        torch.testing.assert_close(weights, expected)
        upstream = torch.randn(3, 9)
        ours, theirs = (torch.autograd.grad(w, scores, upstream)[0] for w in (weights, expected))
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(softmax(scores, dim=0), torch.softmax(scores, 0))


def test_topk_keeps_the_k_largest():
    scores = torch.tensor([3.0, 1.0, 2.0, 0.0])
    expected = torch.softmax(torch.tensor([3.0, 2.0]), -1)
    weights = topk_softmax(scores, 2)
    torch.testing.assert_close(weights, torch.tensor([expected[0], 0, expected[1], 0]))
    for k in (4, 5, 100):
        torch.testing.assert_close(topk_softmax(scores, k), torch.softmax(scores, -1))
    ties = topk_softmax(torch.zeros(3, 10), 4)
    assert torch.equal((ties > 0).sum(-1), torch.full((3,), 4))
    torch.testing.assert_close(ties.sum(-1), torch.ones(3))
    mask = torch.tensor([False, True, True, True])
    torch.testing.assert_close(topk_softmax(scores, 1, mask=mask), torch.tensor([0.0, 0.0, 1.0, 0.0]))
    two_allowed = topk_softmax(scores, 3, mask=torch.tensor([False, True, False, True]))  # fewer than k are allowed
    torch.testing.assert_close(two_allowed[[1, 3]], torch.softmax(torch.tensor([1.0, 0.0]), -1))
    assert (two_allowed[[0, 2]] == 0).all()
    columns = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal((topk_softmax(columns, 2, dim=0) > 0).sum(0), torch.full((3,), 2))
    assert torch.autograd.gradcheck(lambda s: topk_softmax(s, 2, dim=0), columns)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch.compile's own making
def test_compiled_equals_eager():
    scores = torch.randn(2, 3, 4, 30, requires_grad=True)
    alpha = torch.tensor([1.1, 1.5, 2.0]).view(3, 1, 1).requires_grad_()
    mask = torch.rand(2, 1, 4, 30) < 0.8
    upstream = torch.randn(2, 3, 4, 30)
    compiled = torch.compile(entmax, fullgraph=True, backend="aot_eager")
    results = [function(scores, alpha, mask=mask) for function in (entmax, compiled)]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=3e-7)
    eager, graph = (torch.autograd.grad(result, (scores, alpha), upstream) for result in results)
    for a, b in zip(graph, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["eager", "auto"])
def test_numbers_and_rows_of_nothing(mode):
    with kernels.use(mode):
        assert entmax(torch.tensor(3.0), 1.5) == 1
        assert entmax(torch.tensor(3.0), 1.5, mask=torch.tensor(False)) == 0
        for shape in ((3, 0), (0, 3)):
            scores, alpha = torch.zeros(shape, requires_grad=True), torch.full((), 1.5, requires_grad=True)
            weights = entmax(scores, alpha)
            assert weights.shape == shape
            assert [tuple(g.shape) for g in torch.autograd.grad(weights.sum(), [scores, alpha])] == [shape, ()]
        for dim in (2, -3):
            with pytest.raises(IndexError, match=f"dim = {dim}"):
                entmax(torch.zeros(2, 2), 1.5, dim=dim)

"""α-entmax of rows in Triton against the eager function and float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the package triton is not installed")


import hf_entmax_asr.kernels.triton_entmax as entmax_kernels
from reference import entmax_by_bisection
from support.hard_cases import backward_terms, hard_rows
from support.triton_forms import (
    ALPHAS,
    DEVICE,
    assert_near,
    assert_rounded,
    eager_entmax,
    gradients,
    triton_entmax,
)

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("length", [1, 2, 33, 600])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_rows_are_within_3e_7_of_the_definition(alpha, length):
    rows = hard_rows(length, count=4)
    weights = triton_entmax(rows.to(DEVICE), alpha).cpu()
    torch.testing.assert_close(weights.double(), entmax_by_bisection(rows, alpha), rtol=0, atol=3e-7)
    torch.testing.assert_close(weights.double().sum(-1), torch.ones(len(rows)).double(), rtol=0, atol=3e-7)


@pytest.mark.parametrize("alpha", [1.05, 1.5, 2.0])
def test_rows_of_several_thousand_are_taken_in_blocks(alpha):
    rows = hard_rows(2100, count=4)
    weights = triton_entmax(rows.to(DEVICE), alpha).cpu()
    torch.testing.assert_close(weights.double(), entmax_by_bisection(rows, alpha), rtol=0, atol=3e-7)


@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a != 1 + 1e-7])  # where the float64 twin cancels
@pytest.mark.parametrize("length", [33, 600])
def test_row_gradients_are_as_exact_as_the_weights(alpha, length):
    rows, alphas = hard_rows(length, count=4), torch.tensor(alpha, dtype=torch.float64)
    upstream = torch.randn(rows.shape)
    weights = entmax_kernels.entmax_forward(rows.to(DEVICE), alphas.to(DEVICE), None, torch.float32)
    dz, dalpha = entmax_kernels.entmax_backward(upstream.to(DEVICE), weights, alphas.view(1, 1).to(DEVICE), True)
    dz_terms, dalpha_terms = backward_terms(weights.cpu(), alpha, upstream)
    scale = (weights.cpu().double() ** (2 - alpha)).where(weights.cpu() > 0, 0.0) * upstream.abs().amax()
    assert ((dz.cpu() - dz_terms).abs() <= 1e-5 * scale + 1e-12).all()
    assert abs(dalpha.item() + dalpha_terms.sum()) <= 1e-5 * dalpha_terms.abs().sum()


@pytest.mark.parametrize(
    ("scores_shape", "alpha_shape", "dim", "mask_shape"),
    [
        ((2, 3, 4, 6), (3, 1, 1), -1, (2, 1, 1, 6)),
        ((2, 3, 5, 70), (3, 1, 1), -1, (5, 70)),
        ((2, 3, 5, 70), (2, 3, 5, 1), -1, None),  # one α per row
        ((2, 5, 3), (3,), 1, (5, 1)),
        ((4, 6), (), 0, None),
        ((6,), (3, 1), -1, (2, 1, 6)),  # alpha and mask add dimensions in front
        ((2, 1, 3, 2, 7), (2, 1), -1, (3, 1, 7)),
        ((7,), (), -1, (7,)),
        ((0, 6), (), -1, None),
    ],
)
def test_rows_broadcast_as_the_eager_form_does(scores_shape, alpha_shape, dim, mask_shape):
    scores = torch.randn(scores_shape)
    alpha = 1 + torch.rand(alpha_shape)
    mask = None if mask_shape is None else (torch.rand(mask_shape) < 0.7).to(DEVICE)
    expected_shape = torch.broadcast_shapes(scores_shape, alpha_shape, mask_shape or ())
    upstream = torch.randn(expected_shape)

    def run(function, dtype, device):
        on_device = None if mask is None else mask.to(device)
        return gradients(
            lambda z, a: function(z, a, dim, on_device),
            scores.to(device),
            alpha.to(device),
            dtype=dtype,
            upstream=upstream,
        )

    ours, eager = run(triton_entmax, torch.float32, DEVICE), run(eager_entmax, torch.float64, "cpu")
    for name, actual, expected in zip(("weights", "dz", "dalpha"), ours, eager, strict=True):
        assert actual.shape == expected.shape
        assert_near(actual, expected, 1e-5, name)


def test_rows_of_views_equal_rows_of_copies():
    scores = torch.randn(3, 40, 2, 4, device=DEVICE).permute(2, 0, 3, 1)[:, :, 1:, ::2]
    mask = (
        torch.rand(2, 4, device=DEVICE).gt(0.3).T.reshape(4, 2, 1, 1).permute(1, 2, 0, 3)[:, :, :3].expand(2, 3, 3, 20)
    )
    alpha = torch.tensor([1.0, 1.3, 2.0], device=DEVICE).view(3, 1, 1)
    upstream = torch.randn(2, 3, 20, 3, device=DEVICE).transpose(2, 3)
    weights = entmax_kernels.entmax_forward(scores, alpha, mask, torch.float32)
    copies = (scores.contiguous(), alpha, mask.contiguous())
    assert torch.equal(weights, entmax_kernels.entmax_forward(*copies, torch.float32))
    for ours, copied in zip(
        entmax_kernels.entmax_backward(upstream, weights, alpha, True),
        entmax_kernels.entmax_backward(upstream.contiguous(), weights, alpha, True),
        strict=True,
    ):
        assert torch.equal(ours, copied)


def test_rows_without_an_allowed_entry_are_zero_and_pass_no_gradient():
    scores = torch.randn(2, 5, 9, device=DEVICE)
    scores[0, 1] = -torch.inf
    scores[1, 2, 3:] = -torch.inf
    mask = torch.ones(2, 5, 9, dtype=torch.bool, device=DEVICE)
    mask[1, 4] = False
    for alpha in (1.0, 1.3, 1.5, 2.0):
        weights, dz, dalpha = gradients(
            lambda z, a: triton_entmax(z, a, mask=mask),
            scores,
            torch.full((2, 5, 1), alpha, device=DEVICE),
            dtype=torch.float32,
            upstream=torch.randn(2, 5, 9),
        )
        assert torch.equal(weights, eager_entmax(scores, alpha, mask=mask).where(weights == 0, weights))
        for row in ((0, 1), (1, 4)):
            assert not weights[row].any()
            assert not dz[row].any()
            assert not dalpha[row].any()
        assert not weights[1, 2, 3:].any()
        assert not dz[1, 2, 3:].any()
        assert dz.isfinite().all()
        assert dalpha.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_computed_in_float32(dtype):
    scores = torch.randn(2, 4, 5, 60).to(DEVICE, dtype)
    alpha = torch.tensor([1.0, 1.2, 1.6, 2.0], device=DEVICE).view(4, 1, 1)
    upstream = torch.randn(2, 4, 5, 60).to(DEVICE, dtype)
    results = []
    for narrow in (dtype, torch.float32):
        z, a = scores.to(narrow).requires_grad_(), alpha.clone().requires_grad_()
        weights = triton_entmax(z, a)
        assert weights.dtype == narrow
        results.append((weights.detach(), *torch.autograd.grad(weights, (z, a), upstream.to(narrow))))
    for actual, expected in zip(*results, strict=True):
        assert_rounded(actual, expected)
    with torch.no_grad():
        assert_rounded(triton_entmax(scores, alpha), results[0][0])


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 150)),
    spread=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_random_rows_equal_float64(shape, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator) * spread
    alpha = 1 + torch.rand(shape[1], 1, 1, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.8
    weights = triton_entmax(scores.to(DEVICE), alpha.to(DEVICE), mask=mask.to(DEVICE)).cpu()
    expected = eager_entmax(scores.double(), alpha.double(), mask=mask)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=3e-7)

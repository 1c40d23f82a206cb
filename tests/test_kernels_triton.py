"""Triton kernels against the eager functions and float64: on a GPU where there is one, else in Triton's interpreter
(conftest.py chooses it).

The interpreter shows that the arithmetic is right, `test_kernels_compile` that the compiler takes the kernels.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="the package triton is not installed")

# ruff: noqa: E402 (what follows imports triton)
import hf_entmax_asr.kernels.triton_alignment as alignment_kernels
import hf_entmax_asr.kernels.triton_attention as attention_kernels
import hf_entmax_asr.kernels.triton_entmax as entmax_kernels
import hf_entmax_asr.kernels.triton_operators as operators
import hf_entmax_asr.kernels.triton_soft_attention as soft_attention_kernels
from hf_entmax_asr import kernels
from hf_entmax_asr.kernels import backend
from hf_entmax_asr.model import alignment
from hf_entmax_asr.model.entmax import entmax
from hf_entmax_asr.model.entmax_attention import entmax_attention
from reference import entmax_by_bisection, expected_alignment_loop, expected_soft_attention_loop
from small_models import features, small_model, targets
from test_alignment import energies
from test_entmax import backward_terms, hard_rows

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"


def running(mode: str, function):
    """`function` in a mode of the kernels."""

    def run(*args, **kwargs):
        with kernels.use(mode):
            return function(*args, **kwargs)

    return run


triton_entmax, eager_entmax = running("triton", entmax), running("eager", entmax)
triton_attention = running("triton", entmax_attention)
triton_alignment, eager_alignment = (running(mode, alignment.expected_alignment) for mode in ("triton", "eager"))
triton_soft, eager_soft = (running(mode, alignment.expected_soft_attention) for mode in ("triton", "eager"))
ALPHAS = (1.0, 1 + 1e-7, 1.001, 1.2, 1.5, 1.7, 1.999, 2.0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def gradients(function, *tensors: torch.Tensor, dtype: torch.dtype, upstream: torch.Tensor):
    """Result of `function` on copies in `dtype`, and the gradients of all tensors."""
    copies = [x.detach().to(dtype).clone().requires_grad_() for x in tensors]
    result = function(*copies)
    return result.detach(), *torch.autograd.grad(result, copies, upstream.to(result.device, result.dtype))


def assert_near(actual, expected, bound, what=""):
    """The largest error, relative to the largest entry, or to 0.2 where all are smaller (terms near 1 that cancel)."""
    if expected.numel():
        error = (actual.double().cpu() - expected.double().cpu()).abs().max().item()
        assert error <= bound * max(0.2, expected.abs().max().item()), f"{what}: {error:.1e}"


def assert_rounded(actual, expected):
    """Equal but for the last digit of half precision (the interpreter cuts digits off where a GPU rounds)."""
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=torch.finfo(actual.dtype).eps, atol=1e-7)


# ---------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("length", [1, 2, 33, 600])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_rows_are_within_3e_7_of_the_definition(alpha, length):
    rows = hard_rows(length, count=4)
    weights = triton_entmax(rows.to(DEVICE), alpha).cpu()
    torch.testing.assert_close(weights.double(), entmax_by_bisection(rows, alpha), rtol=0, atol=3e-7)
    torch.testing.assert_close(weights.double().sum(-1), torch.ones(len(rows)).double(), rtol=0, atol=3e-7)


@pytest.mark.parametrize("alpha", [1.0, 1.05, 1.5, 1.9, 2.0])
def test_rows_of_several_thousand_are_taken_in_blocks(alpha):
    rows = hard_rows(2500, count=4)
    weights = triton_entmax(rows.to(DEVICE), alpha).cpu()
    torch.testing.assert_close(weights.double(), entmax_by_bisection(rows, alpha), rtol=0, atol=3e-7)


@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a != 1 + 1e-7])  # where the float64 twin cancels
@pytest.mark.parametrize("length", [33, 600])
def test_row_gradients_are_as_exact_as_the_weights(alpha, length):
    rows, alphas = hard_rows(length, count=4), torch.tensor(alpha, dtype=torch.float64)
    upstream = torch.randn(rows.shape)
    weights = entmax_kernels.entmax_forward(rows.to(DEVICE), alphas.to(DEVICE))
    dz, dalpha = entmax_kernels.entmax_backward(upstream.to(DEVICE), weights, alphas.view(1, 1).to(DEVICE))
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
    weights = entmax_kernels.entmax_forward(scores, alpha, mask)
    assert torch.equal(weights, entmax_kernels.entmax_forward(scores.contiguous(), alpha, mask.contiguous()))
    for ours, copied in zip(
        entmax_kernels.entmax_backward(upstream, weights, alpha),
        entmax_kernels.entmax_backward(upstream.contiguous(), weights, alpha),
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
@settings(max_examples=15, deadline=None, derandomize=True)
def test_random_rows_equal_float64(shape, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator) * spread
    alpha = 1 + torch.rand(shape[1], 1, 1, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.8
    weights = triton_entmax(scores.to(DEVICE), alpha.to(DEVICE), mask=mask.to(DEVICE)).cpu()
    expected = eager_entmax(scores.double(), alpha.double(), mask=mask)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=3e-7)


def test_what_would_lose_digits_is_refused():
    wide = torch.randn(1, 1, 2, 4, dtype=torch.float64, device=DEVICE)
    alpha = torch.tensor(1.5, device=DEVICE)
    for function in (
        lambda: entmax_kernels.entmax_forward(wide, alpha),
        lambda: attention_kernels.attention_forward(wide, wide, wide, alpha, None, None, None, False, 1.0, 0.0),
        lambda: alignment_kernels.expected_alignment_forward(wide),
        lambda: soft_attention_kernels.soft_attention_forward(wide, wide),
    ):
        with pytest.raises(ValueError, match="float64"):
            function()


# ----------------------------------------------------------------------------------------------------- attention


SMALL_TILES = ((256, (16, 16, 4)),)


@pytest.fixture
def small_tiles(monkeypatch):
    """Small tiles take small inputs through several of them."""
    monkeypatch.setattr(attention_kernels, "FLOAT_TILES", SMALL_TILES)
    monkeypatch.setattr(attention_kernels, "HALF_TILES", SMALL_TILES)


@pytest.fixture(params=["its tiles", "tiles of 16"])
def tiles(request):
    if request.param == "tiles of 16":
        request.getfixturevalue("small_tiles")


def eager_attention(query, key, value, alpha, mask=None, bias=None, is_causal=False, kept=None):
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        mask = causal if mask is None else mask & causal
    alpha = alpha.view(-1, 1, 1) if alpha.dim() == 1 else alpha[..., None, None] if alpha.dim() == 2 else alpha
    weights = eager_entmax(scores, alpha, mask=mask)
    return (weights if kept is None else weights * kept) @ value


def heads(batch, count, length, width):
    """(B, H, T, D) as a model makes it: a view of (B, T, C)."""
    return torch.randn(batch, length, count * width).unflatten(-1, (count, width)).transpose(1, 2)


def compare_attention(query, key, value, alpha, mask=None, bias=None, is_causal=False, bound=1e-5):
    inputs = [query, key, value, alpha] + ([] if bias is None else [bias])
    upstream = torch.randn(*query.shape[:3], value.shape[3])

    def ours(q, k, v, a, b=None):
        allowed = None if mask is None else mask.to(DEVICE)
        return triton_attention(q, k, v, a, allowed if b is None else b, is_causal)

    def eager(q, k, v, a, b=None):
        return eager_attention(q, k, v, a, mask, b, is_causal)

    actual = gradients(ours, *(x.to(DEVICE) for x in inputs), dtype=torch.float32, upstream=upstream)
    expected = gradients(eager, *inputs, dtype=torch.float64, upstream=upstream)
    for name, x, y in zip(("out", "dq", "dk", "dv", "dalpha", "dbias"), actual, expected, strict=False):
        assert x.shape == y.shape
        assert_near(x, y, bound, name)
    return actual


# (B, H, T, S, D, Dv); the heads' α are spread over [1, 2].
SHAPES = [(1, 3, 33, 50, 16, 16), (2, 2, 17, 33, 8, 5), (1, 3, 1, 40, 4, 4), (2, 1, 7, 1, 4, 4), (1, 3, 1, 1, 3, 3)]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_and_all_its_gradients_equal_float64(shape):
    batch, count, queries, keys, width, value_width = shape
    alpha = torch.linspace(1, 2, count)
    for sharpness in (1.0, 6.0):
        query, key = heads(batch, count, queries, width) * sharpness, heads(batch, count, keys, width)
        compare_attention(query, key, heads(batch, count, keys, value_width), alpha)


MASKS = {
    "keys": lambda b, h, t, s: torch.rand(b, 1, 1, s) < 0.7,
    "any": lambda b, h, t, s: torch.rand(b, h, t, s) < 0.3,
    "shared": lambda b, h, t, s: torch.rand(t, s) < 0.5,
    "padding": lambda b, h, t, s: (torch.arange(s) < torch.randint(1, s + 1, (b, 1)))[:, None, None],
    "rows": lambda b, h, t, s: (torch.rand(b, 1, t, 1) < 0.5).expand(b, 1, t, s),  # the others are empty
    "none": lambda b, h, t, s: torch.zeros(b, 1, 1, s, dtype=torch.bool),
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", MASKS)
def test_attention_with_masks(kind, is_causal):
    mask = MASKS[kind](2, 3, 20, 37)
    alpha = torch.tensor([1.0, 1.4, 2.0])
    query, key, value = heads(2, 3, 20, 8) * 2, heads(2, 3, 37, 8), heads(2, 3, 37, 8)
    actual = compare_attention(query, key, value, alpha, mask, is_causal=is_causal)
    if kind in ("rows", "none"):
        empty = ~mask.any(-1).expand(2, 3, 20)
        assert not actual[0].cpu()[empty].any()
        assert not actual[1].cpu()[empty].any()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("queries", "keys"), [(40, 40), (17, 50), (50, 17)])
def test_causal_attention(queries, keys):
    query, key, value = heads(1, 3, queries, 4) * 3, heads(1, 3, keys, 4), heads(1, 3, keys, 4)
    compare_attention(query, key, value, torch.tensor([1.05, 1.5, 1.8]), is_causal=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", [(2, 3, 20, 37), (3, 20, 37), (2, 1, 1, 37), (37,), (1, 3, 20, 1), (20, 1)], ids=str)
def test_attention_with_a_bias_and_its_gradient(shape):
    bias = torch.randn(shape) * 2
    if bias.shape[-1] > 1:
        bias[..., 3] = -torch.inf
    query, key, value = heads(2, 3, 20, 8), heads(2, 3, 37, 8), heads(2, 3, 37, 8)
    compare_attention(query, key, value, torch.tensor([1.0, 1.4, 2.0]), bias=bias)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1), (1, 3, 1, 1), (2, 1, 1, 1)], ids=str)
def test_attention_takes_alpha_in_every_shape(shape):
    alpha = 1 + torch.rand(shape)
    query, key, value = heads(2, 3, 5, 4), heads(2, 3, 9, 4), heads(2, 3, 9, 4)
    compare_attention(query, key, value, alpha)
    if shape == ():
        out = triton_attention(query, key, value, alpha.item())
        assert torch.equal(out, triton_attention(query, key, value, alpha))


@pytest.mark.usefixtures("small_tiles")
def test_attention_weights_sum_to_1_for_every_kind_of_row():
    rows = hard_rows(100, count=4)
    # One query per row and a bias that is the row: the scores are those of the tests of entmax.
    query, key, bias = torch.zeros(1, 1, len(rows), 4), torch.zeros(1, 1, 100, 4), rows[None, None]
    for alpha in ALPHAS:
        out = triton_attention(
            query.to(DEVICE), key.to(DEVICE), torch.eye(100, device=DEVICE)[None, None], alpha, bias.to(DEVICE)
        )
        expected = entmax_by_bisection(rows, alpha)
        torch.testing.assert_close(out[0, 0].cpu().double(), expected, rtol=0, atol=6e-7, msg=f"alpha = {alpha}")


def sharp_inputs():
    """Queries i that see keys near i alone, α = 1.5: most tiles of 16 are zero."""
    position = torch.arange(96.0)
    angles = position[:, None] / 20
    query = torch.cat([angles.cos(), angles.sin()], -1)[None, None] * 60
    return query, query / 60, torch.randn(1, 1, 96, 4), torch.tensor([1.5])


@pytest.mark.usefixtures("small_tiles")
def test_tiles_of_zeros_are_flagged_exactly():
    query, key, value, alpha = (x.to(DEVICE) for x in sharp_inputs())
    _, _, flags = attention_kernels.attention_forward(query, key, value, alpha, None, None, None, False, 0.7, 0.0)
    weights = eager_entmax(query @ key.transpose(-1, -2) * 0.7, 1.5)
    expected = weights.unflatten(2, (6, 16)).unflatten(4, (6, 16)).amax((3, 5)) > 0
    assert torch.equal(flags.bool(), expected)
    assert 6 <= flags.sum() < 24


@pytest.mark.usefixtures("small_tiles")
def test_tiles_of_zeros_are_not_visited():
    query, key, value, alpha = (x.to(DEVICE) for x in sharp_inputs())
    query, value = query[:, :, :16].contiguous(), value.clone()
    expected = triton_attention(query, key, value, alpha)
    value[:, :, 80:] = torch.nan  # NaN times a weight of 0 would be NaN
    value.requires_grad_()
    out = triton_attention(query, key, value, alpha)
    assert torch.equal(out, expected)
    (grad,) = torch.autograd.grad(out.sum(), value)
    assert not grad[:, :, 80:].any()
    assert grad[:, :, :16].any()


class _Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result


@pytest.mark.usefixtures("small_tiles")
def test_scores_are_never_stored():
    inputs = [torch.randn(1, 1, 128, 4) for _ in range(3)] + [torch.tensor([1.2])]
    inputs = [x.to(DEVICE).requires_grad_() for x in inputs]
    with _Largest() as largest:
        triton_attention(*inputs).sum().backward()
    assert 128 * 4 <= largest.numel <= 128 * 4 * 4  # the interpreter also makes bytes of float32


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_attention_is_as_good_as_its_inputs(dtype):
    query, key, value = heads(1, 4, 35, 16) * 2, heads(1, 4, 40, 16), heads(1, 4, 40, 16)
    alpha = torch.tensor([1.0, 1.2, 1.5, 2.0])
    upstream = torch.randn(1, 4, 35, 16).to(dtype)
    narrow = [x.to(DEVICE, dtype).requires_grad_() for x in (query, key, value)] + [alpha.to(DEVICE).requires_grad_()]
    out = triton_attention(*narrow)
    assert out.dtype == dtype
    actual = (out, *torch.autograd.grad(out, narrow, upstream.to(DEVICE)))
    wide = [x.detach().double().cpu().requires_grad_() for x in narrow]
    wide_out = eager_attention(*wide)
    expected = (wide_out, *torch.autograd.grad(wide_out, wide, upstream.double()))
    rounding = torch.finfo(dtype).eps
    for name, x, y in zip(("out", "dq", "dk", "dv", "dalpha"), actual, expected, strict=True):
        assert_near(x.detach(), y.detach(), 2 * rounding, name)


@pytest.mark.usefixtures("small_tiles")
def test_dropout_drops_weights_alike_in_forward_and_backward():
    query, key, alpha = heads(2, 2, 33, 4), heads(2, 2, 40, 4), torch.tensor([1.0, 1.2])
    values = torch.eye(40).expand(2, 2, 40, 40)
    seed = torch.tensor([123456789012345], device=DEVICE)

    def run(q, k, v, seed=seed):
        arguments = [x.to(DEVICE).contiguous() for x in (q, k, v, alpha)]
        return arguments, attention_kernels.attention_forward(*arguments, None, None, seed, False, 0.5, 0.3)

    weights, dropped = run(query, key, values, None)[1][0].cpu(), run(query, key, values)[1][0].cpu()
    kept = torch.where(dropped > 0, 1 / 0.7, 0.0)
    torch.testing.assert_close(dropped, weights * kept)
    rates = (kept[:, 0] == 0)[weights[:, 0] > 0].float()
    assert abs(rates.mean() - 0.3) < 0.03
    assert not torch.equal(kept[0, 0], kept[0, 1])
    assert not torch.equal(kept[0, 0], kept[1, 0])
    assert not torch.equal(dropped, run(query, key, values, seed + 1)[1][0].cpu())

    value, upstream = torch.randn(2, 2, 40, 8), torch.randn(2, 2, 33, 8)
    arguments, (out, *saved) = run(query, key, value)
    actual = attention_kernels.attention_backward(
        upstream.to(DEVICE), *arguments, None, None, seed, *saved, False, 0.5, 0.3
    )
    expected = gradients(
        lambda *x: eager_attention(*x, kept=kept.double()),
        query, key, value, alpha, dtype=torch.float64, upstream=upstream,
    )  # fmt: skip
    for x, y in zip((out, *actual), expected, strict=False):
        assert_near(x, y, 1e-5)


def test_dropout_follows_the_seed_of_torch():
    query, key, value = (heads(1, 2, 20, 4).to(DEVICE) for _ in range(3))
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(triton_attention(query, key, value, 1.3, dropout_p=0.5))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_the_public_functions_reach_the_kernels():
    x = torch.randn(1, 2, 3, 4, device=DEVICE, requires_grad=True)
    for out, name in (
        (triton_entmax(x, 1.5), "triton_entmax"),
        (triton_attention(x, x, x, 1.5), "triton_attend"),
        (triton_alignment(x), "triton_align"),
        (triton_soft(x, x), "triton_spread"),
    ):
        assert name in out.grad_fn.name()
    assert "Triton" in running("triton", kernels.status)()
    assert "triton" not in triton_entmax(x.double(), 1.5).grad_fn.name()


def test_a_gpu_that_triton_cannot_serve_gets_the_eager_form_and_one_warning(monkeypatch):
    def fail():
        raise RuntimeError("no C compiler\nand a long story")

    monkeypatch.setattr(backend, "_try_triton", fail)
    monkeypatch.setattr(backend, "_interprets", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend.triton_problem.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"not in use: no C compiler\. The eager form"):
            assert backend.triton_problem() == "no C compiler"
        assert backend.triton_problem() == "no C compiler"
    finally:
        backend.triton_problem.cache_clear()


def test_operators_are_registered_as_torch_wants_them():
    x = torch.randn(1, 2, 3, 4, device=DEVICE, requires_grad=True)
    alpha = torch.full((1, 2, 1, 1), 1.4, device=DEVICE, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1, 1, 3, 3, device=DEVICE, requires_grad=True)
    mask = torch.ones(1, 4, dtype=torch.bool, device=DEVICE)
    seed = torch.zeros(1, dtype=torch.long, device=DEVICE)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operators.rows_forward, (x, alpha, mask, torch.float32), test_utils=utils)
    torch.library.opcheck(operators.attend, (x, x, x, alpha, None, bias, seed, False, 0.5, 0.3), test_utils=utils)
    torch.library.opcheck(operators.align, (x, mask, x[:, :, 0], True), test_utils=utils)
    for chunk_size in (2, None):
        torch.library.opcheck(operators.spread, (x.softmax(-1), x, mask, chunk_size), test_utils=utils)


def test_a_model_trains_the_same_by_the_kernels():
    model = small_model().to(DEVICE).train()
    inputs, mask = features(batch=2, frames=40)
    batch = {"input_features": inputs.to(DEVICE), "attention_mask": mask.to(DEVICE), "labels": targets(2).to(DEVICE)}
    results = []
    for mode in ("triton", "eager"):
        torch.manual_seed(0)
        with kernels.use(mode):
            loss = model(**batch).loss
            results.append([loss, *torch.autograd.grad(loss, model.parameters(), allow_unused=True)])
    for ours, theirs in zip(*results, strict=True):
        if theirs is not None:
            assert_near(ours, theirs, 1e-4)


def test_attention_without_queries_or_keys():
    alpha = torch.tensor([1.5, 1.2], device=DEVICE, requires_grad=True)
    for queries, keys in ((0, 5), (5, 0)):
        query, key = torch.randn(1, 2, queries, 4, device=DEVICE), torch.randn(1, 2, keys, 4, device=DEVICE)
        key.requires_grad_()
        out = triton_attention(query, key, key, alpha)
        assert out.shape == (1, 2, queries, 4)
        assert not out.any()
        for grad in torch.autograd.grad(out.sum(), (key, alpha)):
            assert not grad.any()


def test_attention_that_the_kernels_do_not_take_is_eager():
    wide = [torch.randn(1, 1, 4, 300, device=DEVICE) for _ in range(3)]
    assert not attention_kernels.attention_takes(*wide, None)
    torch.testing.assert_close(triton_attention(*wide, 1.5), running("eager", entmax_attention)(*wide, 1.5))
    with pytest.raises(ValueError, match="width up to 256"):
        attention_kernels.attention_forward(*wide, torch.tensor(1.5), None, None, None, False, 1.0, 0.0)
    query, key = torch.randn(1, 2, 3, 4, device=DEVICE), torch.randn(1, 2, 5, 4, device=DEVICE)
    assert not attention_kernels.attention_takes(query, key.bfloat16(), key, None)


@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9)),
    is_causal=st.booleans(),
    sharpness=st.sampled_from([0.1, 2.0, 20.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_random_attention_equals_float64(sizes, is_causal, sharpness, seed):
    torch.manual_seed(seed)
    batch, count, queries, keys, width = sizes
    query, key, value = (heads(batch, count, length, width) for length in (queries, keys, keys))
    mask = torch.rand(batch, 1, queries, keys) < 0.8
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(attention_kernels, "FLOAT_TILES", SMALL_TILES)
        # α up to 1.8: nearer to 2 an entry on the border of the support has no one gradient in float32.
        compare_attention(
            query * sharpness, key, value, 1 + 0.8 * torch.rand(count), mask, is_causal=is_causal, bound=1e-4
        )


# ----------------------------------------------------------------------------------------------------- alignment


@pytest.fixture(params=[1024, 16], ids=["one block", "blocks of 16"])
def positions_at_once(request, monkeypatch):
    monkeypatch.setattr(alignment_kernels, "MOST_POSITIONS", request.param)
    monkeypatch.setattr(soft_attention_kernels, "MOST_POSITIONS", request.param)


def relative_error(value, reference):
    return ((value.double().cpu() - reference).norm() / reference.norm().clamp(min=1e-300)).item()


@pytest.mark.usefixtures("positions_at_once")
@pytest.mark.parametrize("kind", energies(1, 2))
@pytest.mark.parametrize(("targets", "positions"), [(1, 1), (4, 3), (3, 37)])
def test_alignment_and_its_gradients_equal_the_loop(targets, positions, kind):
    energy = energies(targets, positions)[kind]
    previous = torch.softmax(torch.randn(1, 2, positions), -1)
    upstream = torch.randn_like(energy)
    actual = gradients(
        lambda e, p: triton_alignment(e, previous=p),
        energy.to(DEVICE), previous.to(DEVICE), dtype=torch.float32, upstream=upstream,
    )  # fmt: skip
    expected = gradients(expected_alignment_loop, energy, previous, dtype=torch.float64, upstream=upstream)
    torch.testing.assert_close(actual[0].cpu().double(), expected[0], rtol=0, atol=1e-7)  # asked: 1e-5
    for x, y in zip(actual[1:], expected[1:], strict=True):
        assert x.isfinite().all()
        assert relative_error(x, y) <= 1e-6


@pytest.mark.usefixtures("positions_at_once")
def test_alignment_of_padded_batches_equals_the_eager_form():
    energy = torch.randn(2, 3, 4, 40) - 1
    mask = torch.arange(40) < torch.tensor([40, 23])[:, None]
    energy = alignment.preserve_mass(energy, mask)
    upstream = torch.randn_like(energy)
    ours = gradients(
        lambda e: triton_alignment(e, mask.to(DEVICE)),
        energy.to(DEVICE), dtype=torch.float32, upstream=upstream,
    )  # fmt: skip
    eager = gradients(lambda e: eager_alignment(e, mask), energy, dtype=torch.float64, upstream=upstream)
    torch.testing.assert_close(ours[0].cpu().double(), eager[0], rtol=0, atol=1e-7)
    assert relative_error(ours[1], eager[1]) <= 1e-6
    assert not ours[0][1, :, :, 23:].any()
    assert not ours[1][1, :, :, 23:].any()


def test_alignment_keeps_its_mass_over_long_audio(monkeypatch):
    monkeypatch.setattr(alignment_kernels, "MOST_POSITIONS", 256)
    energy = torch.full((1, 1, 2, 700), -7.0)  # 1 − σ is rounded the same way at every position
    energy[..., -1] = torch.inf
    with torch.no_grad():
        aligned = triton_alignment(energy.to(DEVICE)).cpu()
    torch.testing.assert_close(aligned.double().sum(-1), torch.ones(1, 1, 2).double(), rtol=0, atol=1e-6)
    expected = eager_alignment(energy.double())
    torch.testing.assert_close(aligned.double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_alignment_is_rounded_once(dtype):
    energy = torch.randn(1, 2, 3, 20).to(DEVICE, dtype)
    upstream = torch.randn(1, 2, 3, 20).to(DEVICE, dtype)
    alignment = torch.softmax(energy, -1)

    def run(narrow, function, *tensors):
        return gradients(function, *tensors, dtype=narrow, upstream=upstream)

    for function, *tensors in (
        (triton_alignment, energy),
        (lambda a, u: triton_soft(a, u, 3), alignment, energy),
        (triton_soft, alignment, energy),
    ):
        narrow, wide = run(dtype, function, *tensors), run(torch.float32, function, *tensors)
        for x, y in zip(narrow, wide, strict=True):
            assert x.dtype == dtype
            assert_rounded(x, y)


@pytest.mark.usefixtures("positions_at_once")
@pytest.mark.parametrize("chunk_size", [1, 2, 5, 30, 50, None])
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_soft_attention_and_its_gradients_equal_the_loop(chunk_size, spread):
    alignment = torch.softmax(torch.randn(1, 2, 2, 37) * 2, -1)
    energy = torch.randn(1, 2, 2, 37) * spread
    upstream = torch.randn_like(energy)

    def ours(a, u):
        return triton_soft(a, u, chunk_size) + 0 * u

    def loop(a, u):
        return expected_soft_attention_loop(a, u, chunk_size)

    on_device = [x.to(DEVICE) for x in (alignment, energy)]
    actual = gradients(ours, *on_device, dtype=torch.float32, upstream=upstream)
    expected = gradients(loop, alignment, energy, dtype=torch.float64, upstream=upstream)
    for name, x, y in zip(("beta", "dalignment", "denergy"), actual, expected, strict=True):
        torch.testing.assert_close(x.cpu().double(), y, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.usefixtures("positions_at_once")
@pytest.mark.parametrize("chunk_size", [4, None])
def test_soft_attention_of_padded_batches_equals_the_eager_form(chunk_size):
    mask = torch.arange(37) < torch.tensor([37, 18])[:, None]
    energy = torch.randn(2, 2, 2, 37)
    aligned = eager_alignment(alignment.preserve_mass(torch.randn(2, 2, 2, 37), mask), mask)
    upstream = torch.randn_like(energy)
    actual = gradients(
        lambda a, u: triton_soft(a, u, chunk_size, mask.to(DEVICE)),
        aligned.to(DEVICE), energy.to(DEVICE), dtype=torch.float32, upstream=upstream,
    )  # fmt: skip
    expected = gradients(
        lambda a, u: eager_soft(a, u, chunk_size, mask),
        aligned, energy, dtype=torch.float64, upstream=upstream,
    )  # fmt: skip
    for name, x, y in zip(("beta", "dalignment", "denergy"), actual, expected, strict=True):
        torch.testing.assert_close(x.cpu().double(), y, rtol=1e-5, atol=1e-6, msg=name)
    assert not actual[2][1, :, :, 18:].any()


def test_alignment_refuses_what_does_not_fit():
    energy = torch.randn(2, 3, 4, 5, device=DEVICE)
    with pytest.raises(ValueError, match=r"must be \(batch, heads"):
        triton_alignment(energy[0])
    with pytest.raises(ValueError, match=r"source_mask is torch\.int64"):
        triton_alignment(energy, torch.ones(2, 5, dtype=torch.long, device=DEVICE))
    with pytest.raises(ValueError, match="previous has shape"):
        triton_alignment(energy, previous=energy[:, :, 0, :4])
    with pytest.raises(ValueError, match="chunk_size = 0"):
        triton_soft(energy, energy, 0)
    with pytest.raises(ValueError, match="differ in shape"):
        triton_soft(energy[:, :, :3], energy)
    with pytest.raises(ValueError, match="alignment has shape"):
        soft_attention_kernels.soft_attention_forward(energy[:, :, :3], energy)


# ------------------------------------------------------------------------------------------------------ compiler


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90])  # 80 was compiled by hand: a minute of two cores each
def test_kernels_compile(capability, tmp_path):
    """Without a GPU, up to machine code: the interpreter knows neither types that must not change nor shared memory."""
    program = Path(__file__).with_name("compile_triton_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(program), str(capability)], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in compiled} == {
        "triton_entmax._forward", "triton_entmax._backward", "triton_attention_kernels.forward",
        "triton_attention_kernels.backward_queries", "triton_attention_kernels.backward_keys",
        "triton_alignment._forward", "triton_alignment._backward", "triton_soft_attention._window_sums",
        "triton_soft_attention._collect", "triton_soft_attention._lookback",
    }  # fmt: skip
    assert max(int(shared_memory) for _, shared_memory in compiled) <= 99 * 1024

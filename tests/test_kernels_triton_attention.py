"""α-entmax attention in Triton against the eager function and float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="the package triton is not installed")


import hf_entmax_asr.kernels.triton_attention as attention_kernels
from hf_entmax_asr.kernels.attention_inputs import AttentionInputs
from hf_entmax_asr.model.chunks import NO_CHUNKS, Chunks, chunk_mask
from hf_entmax_asr.model.entmax_attention import entmax_attention
from reference import entmax_by_bisection
from support.hard_cases import hard_rows
from support.triton_forms import (
    ALPHAS,
    DEVICE,
    assert_near,
    eager_entmax,
    gradients,
    running,
    triton_attention,
)

pytestmark = pytest.mark.usefixtures("seeded")

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


def eager_attention(query, key, value, alpha, mask=None, bias=None, is_causal=False, kept=None, chunks=NO_CHUNKS):
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        mask = causal if mask is None else mask & causal
    mask = chunk_mask(chunks, scores, mask)
    alpha = alpha.view(-1, 1, 1) if alpha.dim() == 1 else alpha[..., None, None] if alpha.dim() == 2 else alpha
    weights = eager_entmax(scores, alpha, mask=mask)
    return (weights if kept is None else weights * kept) @ value


def record(query, key, value, alpha, *, mask=None, bias=None, seed=None, scale=1.0, dropout_p=0.0):
    """The record of the kernels, for α (H,)."""
    return AttentionInputs(query, key, value, alpha.view(1, -1, 1, 1), mask, bias, seed, False, scale, dropout_p)


def heads(batch, count, length, width):
    """(B, H, T, D) as a model makes it: a view of (B, T, C)."""
    return torch.randn(batch, length, count * width).unflatten(-1, (count, width)).transpose(1, 2)


def compare_attention(query, key, value, alpha, mask=None, bias=None, is_causal=False, bound=1e-5, chunks=NO_CHUNKS):
    inputs = [query, key, value, alpha] + ([] if bias is None else [bias])
    upstream = torch.randn(*query.shape[:3], value.shape[3])

    def ours(q, k, v, a, b=None):
        allowed = None if mask is None else mask.to(DEVICE)
        return triton_attention(q, k, v, a, allowed, b, is_causal=is_causal, chunks=chunks)

    def eager(q, k, v, a, b=None):
        return eager_attention(q, k, v, a, mask, b, is_causal, chunks=chunks)

    actual = gradients(ours, *(x.to(DEVICE) for x in inputs), dtype=torch.float32, upstream=upstream)
    expected = gradients(eager, *inputs, dtype=torch.float64, upstream=upstream)
    for name, x, y in zip(("out", "dq", "dk", "dv", "dalpha", "dbias"), actual, expected, strict=False):
        assert x.shape == y.shape
        assert_near(x, y, bound, name)
    return actual


# (B, H, T, S, D, Dv); the heads' α are spread over [1, 2].
SHAPES = [(1, 3, 17, 33, 16, 16), (2, 2, 17, 20, 8, 5), (1, 3, 1, 40, 4, 4), (2, 1, 7, 1, 4, 4), (1, 3, 1, 1, 3, 3)]


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
    batch = 2 if kind in ("keys", "padding") and not is_causal else 1
    mask = MASKS[kind](batch, 2, 18, 20)
    alpha = torch.tensor([1.0, 1.4])
    query, key, value = heads(batch, 2, 18, 4) * 2, heads(batch, 2, 20, 4), heads(batch, 2, 20, 4)
    actual = compare_attention(query, key, value, alpha, mask, is_causal=is_causal)
    if kind in ("rows", "none"):
        empty = ~mask.any(-1).expand(batch, 2, 18)
        assert not actual[0].cpu()[empty].any()
        assert not actual[1].cpu()[empty].any()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("queries", "keys"), [(17, 40), (40, 17)])
def test_causal_attention(queries, keys):
    query, key, value = heads(1, 3, queries, 4) * 3, heads(1, 3, keys, 4), heads(1, 3, keys, 4)
    compare_attention(query, key, value, torch.tensor([1.05, 1.5, 1.8]), is_causal=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("chunks", [Chunks(1), Chunks(5, 0), Chunks(7, 2), Chunks(90, 1)])
def test_attention_in_chunks(chunks):
    query, key, value = (heads(2, 2, 33, 4) for _ in range(3))
    mask = MASKS["padding"](2, 2, 33, 33)
    compare_attention(query * 3, key, value, torch.tensor([1.05, 1.8]), mask, chunks=chunks)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", [(2, 2, 17, 20), (2, 17, 20), (2, 1, 1, 20), (20,), (1, 2, 17, 1), (17, 1)], ids=str)
def test_attention_with_a_bias_and_its_gradient(shape):
    bias = torch.randn(shape) * 2
    if bias.shape[-1] > 1:
        bias[..., 3] = -torch.inf
    query, key, value = heads(2, 2, 17, 4), heads(2, 2, 20, 4), heads(2, 2, 20, 4)
    compare_attention(query, key, value, torch.tensor([1.4, 2.0]), bias=bias)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("kind", "shape", "is_causal"),
    [
        ("any", (2, 2, 17, 20), False),
        ("padding", (2, 17, 20), True),
        ("shared", (2, 1, 1, 20), False),
        ("rows", (20,), True),
        ("none", (17, 1), False),
    ],
)
def test_attention_with_a_mask_and_a_bias(kind, shape, is_causal):
    mask, bias = MASKS[kind](2, 2, 17, 20), torch.randn(shape) * 2
    query, key, value = heads(2, 2, 17, 4), heads(2, 2, 20, 4), heads(2, 2, 20, 4)
    alpha = torch.tensor([1.0, 1.4])
    out, dq, *_ = compare_attention(query, key, value, alpha, mask, bias, is_causal)
    empty = ~mask.any(-1).expand(2, 2, 17)
    assert not out.cpu()[empty].any()
    assert not dq.cpu()[empty].any()


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
    rows = hard_rows(40, count=4)
    # One query per row and a bias that is the row: the scores are those of the tests of entmax.
    query, key, bias = torch.zeros(1, 1, len(rows), 4), torch.zeros(1, 1, 40, 4), rows[None, None]
    for alpha in ALPHAS:
        out = triton_attention(
            query.to(DEVICE), key.to(DEVICE), torch.eye(40, device=DEVICE)[None, None], alpha, bias=bias.to(DEVICE)
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
    _, _, flags = attention_kernels.attention_forward(record(query, key, value, alpha, scale=0.7))
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
    inputs = [torch.randn(1, 1, 64, 4) for _ in range(3)] + [torch.tensor([1.2])]
    inputs = [x.to(DEVICE).requires_grad_() for x in inputs]
    with _Largest() as largest:
        triton_attention(*inputs).sum().backward()
    assert 64 * 4 <= largest.numel <= 64 * 4 * 4  # the interpreter also makes bytes of float32


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_attention_is_as_good_as_its_inputs(dtype):
    query, key, value = heads(1, 4, 18, 16) * 2, heads(1, 4, 33, 16), heads(1, 4, 33, 16)
    alpha = torch.tensor([1.0, 1.2, 1.5, 2.0])
    upstream = torch.randn(1, 4, 18, 16).to(dtype)
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
    query, key, alpha = heads(2, 2, 25, 4), heads(2, 2, 40, 4), torch.tensor([1.0, 1.2])
    values = torch.eye(40).expand(2, 2, 40, 40)
    seed = torch.tensor([123456789012345], device=DEVICE)

    def run(q, k, v, seed=seed):
        inputs = record(*(x.to(DEVICE).contiguous() for x in (q, k, v, alpha)), seed=seed, scale=0.5, dropout_p=0.3)
        return inputs, attention_kernels.attention_forward(inputs)

    weights, dropped = run(query, key, values, None)[1][0].cpu(), run(query, key, values)[1][0].cpu()
    kept = torch.where(dropped > 0, 1 / 0.7, 0.0)
    torch.testing.assert_close(dropped, weights * kept)
    rates = (kept[:, 0] == 0)[weights[:, 0] > 0].float()
    assert abs(rates.mean() - 0.3) < 0.03
    assert not torch.equal(kept[0, 0], kept[0, 1])
    assert not torch.equal(kept[0, 0], kept[1, 0])
    assert not torch.equal(dropped, run(query, key, values, seed + 1)[1][0].cpu())

    value, upstream = torch.randn(2, 2, 40, 8), torch.randn(2, 2, 25, 8)
    inputs, (out, *saved) = run(query, key, value)
    *actual, d_alpha, _ = attention_kernels.attention_backward(upstream.to(DEVICE), inputs, *saved)
    actual.append(d_alpha.flatten())
    expected = gradients(
        lambda *x: eager_attention(*x, kept=kept.double()),
        query, key, value, alpha, dtype=torch.float64, upstream=upstream,
    )  # fmt: skip
    for x, y in zip((out, *actual), expected, strict=True):
        assert_near(x, y, 1e-5)


def test_dropout_follows_the_seed_of_torch():
    query, key, value = (heads(1, 2, 20, 4).to(DEVICE) for _ in range(3))
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(triton_attention(query, key, value, 1.3, dropout_p=0.5))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


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
    assert not attention_kernels.attention_takes(record(*wide, torch.tensor([1.5])))
    torch.testing.assert_close(triton_attention(*wide, 1.5), running("eager", entmax_attention)(*wide, 1.5))
    with pytest.raises(ValueError, match="width up to 256"):
        attention_kernels.attention_forward(record(*wide, torch.tensor([1.5])))
    query, key = torch.randn(1, 2, 3, 4, device=DEVICE), torch.randn(1, 2, 5, 4, device=DEVICE)
    assert not attention_kernels.attention_takes(record(query, key.bfloat16(), key, torch.tensor([1.5])))


@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 20), st.integers(1, 35), st.integers(1, 9)),
    is_causal=st.booleans(),
    sharpness=st.sampled_from([0.1, 2.0, 20.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=5, deadline=None, derandomize=True)
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

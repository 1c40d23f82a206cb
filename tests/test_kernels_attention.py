"""The native α-entmax attention against the eager form and float64: masks, shapes, dropout, memory, plumbing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_entmax_asr import kernels
from hf_entmax_asr.kernels import attention_cpu, backend
from hf_entmax_asr.kernels.attention_inputs import AttentionInputs
from hf_entmax_asr.model.entmax import entmax
from hf_entmax_asr.model.entmax_attention import entmax_attention

pytestmark = pytest.mark.skipif(not backend.cpu_available(), reason="no native kernels on this machine")

NAMES = ("output", "query", "key", "value", "alpha", "bias")


def with_gradients(mode: str, inputs: list[Tensor], grad: Tensor, **options) -> list[Tensor]:
    """Output and the gradients of query, key, value, α and, if there is one, the bias; in the dtype of `grad`."""
    with kernels.use(mode):
        leaves = [t.detach().to(grad.dtype).requires_grad_() for t in inputs]
        if "bias" in options:
            leaves.append(options["bias"].detach().to(grad.dtype).requires_grad_())
            options["bias"] = leaves[-1]
        out = entmax_attention(*leaves[:4], **options)
        return [out, *torch.autograd.grad(out, leaves, grad)]


def agree(inputs: list[Tensor], grad: Tensor, **options) -> None:
    """The native form against float64: within 2e-5 of the size, or a few times the error of the eager form in float32.

    (A weight at the edge of the support may fall on either side; for α near 2 its gradient does not vanish there.)
    """
    native = with_gradients("auto", inputs, grad, **options)
    exact = with_gradients("eager", inputs, grad.double(), **options)
    eager = with_gradients("eager", inputs, grad, **options)
    for name, got, right, other in zip(NAMES, native, exact, eager, strict=False):
        assert got.shape == right.shape, name
        bound = max(2e-5 * max(1.0, right.abs().max().item()), 5 * (other - right).abs().max().item())
        if name in ("query", "key", "alpha", "bias"):
            at_edge = 1e-3 if inputs[3].max() > 1.5 else 1e-4
            bound = max(bound, at_edge * max(1.0, right.abs().max().item()))
        assert (got - right).abs().max().item() <= bound, name


def problem(
    batch: int, heads: int, queries: int, keys: int, width: int, value_width: int, alpha: float | None, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    """query, key, value, α (H,) with scores of about unit variance, and a gradient. α None: from 1.02 to 1.98."""
    torch.manual_seed(seed)
    inputs = [torch.randn(batch, heads, queries, width), torch.randn(batch, heads, keys, width)]
    inputs += [torch.randn(batch, heads, keys, value_width)]
    inputs += [torch.linspace(1.02, 1.98, heads) if alpha is None else torch.full((heads,), alpha)]
    return inputs, torch.randn(batch, heads, queries, value_width)


def over_scores(kind: str, batch: int, heads: int, queries: int, keys: int) -> dict[str, Tensor]:
    """A mask, a bias or, joined by " + ", both."""
    sizes, made = (batch, heads, queries, keys), {}
    for name in kind.split(" + "):
        if name in BIASES:
            made["bias"] = BIASES[name](*sizes)
        elif name != "none":
            made["mask"] = masks(name, *sizes)
    return made


def masks(kind: str, batch: int, heads: int, queries: int, keys: int) -> Tensor:
    if kind == "padding":
        return (torch.arange(keys) < torch.randint(0, keys + 1, (batch, 1)))[:, None, None]
    if kind == "causal and padding":
        lengths = torch.randint(1, keys + 1, (batch, 1, 1, 1))
        return (torch.arange(keys) <= torch.arange(queries)[:, None]) & (torch.arange(keys) < lengths)
    if kind == "random":
        return torch.rand(batch, 1, queries, keys) < 0.6
    if kind == "random by head":
        return torch.rand(1, heads, 1, keys) < 0.5
    return torch.rand(batch, 1, queries, 1) < 0.7  # rows: the others may read nothing


BIASES = {
    "bias": torch.randn,
    "bias by head": lambda b, h, t, s: torch.randn(h, t, s),
    "bias by batch": lambda b, h, t, s: torch.randn(b, 1, t, s),
    "one bias": lambda b, h, t, s: torch.randn(t, s),
    "bias of keys": lambda b, h, t, s: torch.randn(b, 1, 1, s),
    "bias of rows": lambda b, h, t, s: torch.randn(h, t, 1),
}
KINDS = ("none", "padding", "causal and padding", "random", "random by head", "rows", *BIASES)
BOTH = ("padding + bias", "random + bias by head", "rows + one bias", "random by head + bias of keys",
        "causal and padding + bias by batch", "random + bias of rows")  # fmt: skip
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 7, 4, 4),
    (1, 2, 40, 33, 16, 16),
    (2, 2, 70, 130, 64, 64),
    (1, 2, 3, 200, 80, 16),
    (1, 2, 65, 64, 20, 136),
    (2, 3, 1, 50, 32, 32),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [1.0, 1.05, 1.3, 1.5, 2.0, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, alpha, kind):
    inputs, grad = problem(*shape, alpha)
    agree(inputs, grad, **over_scores(kind, *shape[:4]))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("alpha", [1.0, 1.5, None])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 4, 4), (2, 2, 70, 130, 32, 32), (1, 2, 65, 64, 20, 36)])
def test_a_mask_and_a_bias_together(shape, alpha, kind, is_causal):
    inputs, grad = problem(*shape, alpha)
    agree(inputs, grad, **over_scores(kind, *shape[:4]), is_causal=is_causal)


@pytest.mark.parametrize("alpha", [1.0, 1.1, 1.5, None])
@pytest.mark.parametrize("shape", [(2, 2, 37, 37, 16, 16), (1, 2, 20, 90, 32, 32), (1, 2, 90, 20, 32, 32)])
def test_causal(shape, alpha):
    inputs, grad = problem(*shape, alpha)
    agree(inputs, grad, is_causal=True)
    agree(inputs, grad, **over_scores("padding", *shape[:4]), is_causal=True)
    agree(inputs, grad, **over_scores("bias by head", *shape[:4]), is_causal=True)
    before = entmax_attention(*inputs, is_causal=True)
    inputs[1][:, :, 10:] += 5  # no query before 10 may see that
    torch.testing.assert_close(entmax_attention(*inputs, is_causal=True)[:, :, :10], before[:, :, :10])


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (2, 3, 80, 90, 40, 40))),
    alpha=st.one_of(st.none(), st.sampled_from([1.0, 1.5, 2.0]), st.floats(1.0, 2.0)),
    kind=st.sampled_from(KINDS + BOTH),
    causal=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_random_shapes(shape, alpha, kind, causal, seed):
    inputs, grad = problem(*shape, alpha, seed)
    agree(inputs, grad, **over_scores(kind, *shape[:4]), is_causal=causal)


@pytest.mark.parametrize("queries", [300, 40])
@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_dense_and_sparse_blocks_side_by_side(queries, spread):
    inputs, grad = problem(1, 3, queries, 300, 32, 32, None)
    inputs[0] = inputs[0] * torch.linspace(0.1, 2 * spread, queries)[:, None]  # from flat to peaked rows
    agree(inputs, grad)
    agree(inputs, grad, **over_scores("padding", 1, 3, queries, 300))
    agree(inputs, grad, **over_scores("padding + bias by head", 1, 3, queries, 300))


def test_weights_that_are_not_kept_are_made_again(monkeypatch):
    inputs, grad = problem(2, 3, 100, 120, 16, 16, None)
    over = over_scores("random + bias by head", 2, 3, 100, 120)
    kept = with_gradients("auto", inputs, grad, **over)
    for room in (0, 1000, 20000):  # none, a few blocks, most
        monkeypatch.setattr(attention_cpu, "kept_entries", lambda *_, room=room: room)
        for a, b in zip(kept, with_gradients("auto", inputs, grad, **over), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_rows_without_keys_give_zeros_and_zero_gradients():
    inputs, grad = problem(2, 2, 6, 9, 8, 8, 1.4)
    mask = torch.ones(2, 1, 6, 9, dtype=torch.bool)
    mask[0] = False
    mask[1, 0, 3] = False
    bias = torch.randn(2, 2, 6, 9)
    out, d_query, d_key, d_value, _, d_bias = with_gradients("auto", inputs, grad, mask=mask, bias=bias)
    assert not out[0].any()
    assert not out[1, :, 3].any()
    assert not d_query[0].any()
    assert not d_key[0].any()
    assert not d_value[0].any()
    assert not d_bias[~mask.expand_as(d_bias)].any()
    assert d_bias[1, :, 0].any()
    torch.testing.assert_close(entmax_attention(*inputs, bias=bias.masked_fill(~mask, -torch.inf)), out)


@pytest.mark.parametrize("width", [16, 20])
def test_views(width):
    def split(x):  # as a model makes its heads: (B, T, C) -> (B, H, T, D)
        return x.unflatten(-1, (3, width)).transpose(1, 2)

    torch.manual_seed(0)
    wide = torch.randn(2, 30, 9 * width)
    query, key, value = (split(part) for part in wide.chunk(3, -1))
    alpha = torch.tensor([1.2, 1.5, 1.9])
    mask = (torch.rand(30, 30) < 0.8).T
    agree([query, key, value, alpha], split(torch.randn(2, 30, 3 * width)), mask=mask)
    agree([query[:, :, ::2], key.flip(2), value[..., ::2], alpha], torch.randn(2, 3, 15, width // 2), mask=mask[::2])
    agree([query[:1].expand(2, -1, -1, -1), key, value, alpha], torch.randn(2, 3, 30, width))
    grad = torch.randn(2, 3, width, 30).transpose(2, 3)
    agree([query, key, value, alpha], grad, mask=mask, bias=torch.randn(30, 60)[:, ::2])


def test_the_output_is_laid_out_for_merging_heads():
    inputs, _ = problem(2, 3, 20, 20, 16, 16, 1.5)
    assert entmax_attention(*inputs).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1), (1, 3, 1, 1), (2, 1, 1, 1), (2, 3, 1, 1)])
def test_shapes_of_alpha(shape):
    inputs, grad = problem(2, 3, 11, 13, 8, 8, None)
    inputs[3] = 1.05 + 0.9 * torch.rand(shape)
    agree(inputs, grad)


def test_alpha_as_a_number_and_the_scale():
    inputs, _ = problem(1, 2, 8, 9, 16, 16, 1.5)
    expected = entmax(inputs[0] @ inputs[1].transpose(-1, -2) * 0.7, 1.5) @ inputs[2]
    torch.testing.assert_close(entmax_attention(*inputs[:3], 1.5, scale=0.7), expected)
    torch.testing.assert_close(
        entmax_attention(*inputs[:3], 1.0),
        torch.nn.functional.scaled_dot_product_attention(*inputs[:3]),
    )


def test_weights_on_request():
    inputs, grad = problem(1, 2, 8, 9, 16, 16, None)
    leaves = [t.requires_grad_() for t in inputs]
    out, weights = entmax_attention(*leaves, return_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 8))
    torch.testing.assert_close(out, weights @ inputs[2])
    torch.testing.assert_close(out, entmax_attention(*leaves))
    for a, b in zip(
        torch.autograd.grad((out * grad).sum() + weights.square().sum(), leaves, retain_graph=True),
        torch.autograd.grad((entmax_attention(*leaves) * grad).sum() + weights.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("alpha", [1.02, 1.5, None])
def test_dropout(alpha):
    (query, key, value, alphas), _ = problem(2, 2, 60, 70, 16, 16, alpha)
    identity = torch.eye(70).expand(2, 2, -1, -1)  # as values: the output is the weights
    weights = entmax_attention(query, key, identity, alphas)
    torch.manual_seed(3)
    dropped = entmax_attention(query, key, identity, alphas, dropout_p=0.3)
    assert torch.equal((dropped != 0) & (weights == 0), torch.zeros_like(weights, dtype=torch.bool))
    kept = dropped[weights > 0] != 0
    torch.testing.assert_close(dropped[dropped != 0], (weights / 0.7)[dropped != 0])
    assert abs(kept.float().mean().item() - 0.7) < 5 * (0.21 / len(kept)) ** 0.5
    again = entmax_attention(query, key, identity, alphas, dropout_p=0.3)
    assert not torch.equal(dropped, again)
    torch.manual_seed(3)
    assert torch.equal(dropped, entmax_attention(query, key, identity, alphas, dropout_p=0.3))
    assert not entmax_attention(query, key, value, alphas, dropout_p=1.0).any()


@pytest.mark.parametrize("alpha", [1.02, 1.4, None])
@pytest.mark.parametrize("room", [0, None])
def test_gradients_with_dropout(alpha, room, monkeypatch):
    """The weights that survived, read off with the identity as values, tell what the gradients must be."""
    if room is not None:
        monkeypatch.setattr(attention_cpu, "kept_entries", lambda *_: room)
    inputs, grad = problem(1, 2, 40, 48, 16, 16, alpha)
    torch.manual_seed(5)
    identity = torch.eye(48).expand(1, 2, -1, -1)
    with torch.no_grad():
        weights = entmax_attention(inputs[0], inputs[1], identity, inputs[3])
        torch.manual_seed(5)
        dropped = entmax_attention(inputs[0], inputs[1], identity, inputs[3], dropout_p=0.4)
    factor = torch.where(weights > 0, (dropped != 0) / 0.6, 0.0)
    leaves = [t.detach().requires_grad_() for t in inputs]
    torch.manual_seed(5)
    got = torch.autograd.grad(entmax_attention(*leaves, dropout_p=0.4), leaves, grad)
    scores = leaves[0] @ leaves[1].transpose(-1, -2) / 4
    expected = (entmax(scores, leaves[3].view(-1, 1, 1)) * factor) @ leaves[2]
    for a, b in zip(got, torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    inputs, grad = problem(2, 2, 20, 30, 16, 16, None)
    halves = [t.to(dtype).requires_grad_() for t in inputs[:3]]
    out = entmax_attention(*halves, inputs[3])
    assert out.dtype == dtype
    assert torch.equal(out, entmax_attention(*(t.float() for t in halves), inputs[3]).to(dtype))
    assert all(g.dtype == dtype for g in torch.autograd.grad(out, halves, grad.to(dtype)))


def test_autocast():
    inputs, grad = problem(2, 2, 20, 30, 16, 16, None)
    halves = [t.bfloat16().requires_grad_() for t in inputs[:3]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = entmax_attention(*halves, inputs[3])
    assert torch.equal(out, entmax_attention(*halves, inputs[3]))
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(out, halves, grad.bfloat16()))


def test_empty_inputs():
    (query, key, value, alpha), _ = problem(2, 2, 5, 6, 8, 4, 1.5)
    assert entmax_attention(query[:, :, :0], key, value, alpha).shape == (2, 2, 0, 4)
    assert entmax_attention(query[:0], key[:0], value[:0], alpha).shape == (0, 2, 5, 4)
    leaves = [query.requires_grad_(), key[:, :, :0].requires_grad_(), value[:, :, :0].requires_grad_()]
    out = entmax_attention(*leaves, alpha)
    assert out.shape == (2, 2, 5, 4)
    assert not out.any()
    assert not torch.autograd.grad(out.sum(), leaves)[0].any()


def test_nan_is_not_hidden():
    (query, key, value, alpha), _ = problem(1, 2, 20, 40, 16, 16, 1.5)
    query[0, 1, 7, 3] = torch.nan
    out = entmax_attention(query, key, value, alpha)
    assert out[0, 1, 7].isnan().any()
    out[0, 1, 7] = 0
    assert not out.isnan().any()


@pytest.mark.parametrize("threads", [2, 5, 16])
def test_threads(threads):
    shapes = [(1, 1, 700, 80, 16, 16), (3, 4, 50, 60, 16, 16), (1, 2, 300, 40, 16, 16)]
    before = torch.get_num_threads()
    for shape in shapes:
        inputs, grad = problem(*shape, 1.3)
        for kind in ("none", "one bias", "random + bias of keys"):
            over = over_scores(kind, *shape[:4])
            expected = with_gradients("auto", inputs, grad, **over)
            try:
                torch.set_num_threads(threads)
                got = with_gradients("auto", inputs, grad, **over)
            finally:
                torch.set_num_threads(before)
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # Inductor's own
@pytest.mark.parametrize("kind", ["none", "padding", "bias by head", "padding + bias"])
def test_compiles_whole(kind):
    inputs, grad = problem(2, 2, 20, 30, 16, 16, None)
    over = over_scores(kind, 2, 2, 20, 30)
    compiled = torch.compile(entmax_attention, fullgraph=True)
    leaves = [t.requires_grad_() for t in (*inputs, *(over[name] for name in over if name == "bias"))]
    got = torch.autograd.grad(compiled(*inputs, **over), leaves, grad)
    expected = torch.autograd.grad(entmax_attention(*inputs, **over), leaves, grad)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_exports_to_standard_operators():
    class Attend(torch.nn.Module):
        def forward(self, query, key, value, alpha):
            return entmax_attention(query, key, value, alpha)

    inputs, _ = problem(2, 2, 20, 30, 16, 16, None)
    program = torch.export.export(Attend(), tuple(inputs))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("hf_entmax_asr" in name for name in names)
    torch.testing.assert_close(program.module()(*inputs), entmax_attention(*inputs), atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_repeats_the_dropout():
    inputs, grad = problem(2, 2, 20, 30, 16, 16, None)
    leaves = [t.requires_grad_() for t in inputs]
    torch.manual_seed(1)
    expected = torch.autograd.grad(entmax_attention(*leaves, dropout_p=0.4), leaves, grad)
    torch.manual_seed(1)
    again = torch.utils.checkpoint.checkpoint(entmax_attention, *leaves, dropout_p=0.4, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(again, leaves, grad), expected, strict=True):
        assert torch.equal(a, b)


def test_operator_registrations():
    inputs, _ = problem(2, 2, 6, 9, 8, 8, None)
    leaves = [t.requires_grad_() for t in inputs[:3]]
    alpha = inputs[3].double().view(1, 2, 1, 1).requires_grad_()
    bias = torch.randn(1, 2, 6, 9, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    mask = torch.rand(2, 1, 1, 9) < 0.7
    for over in ((None, bias), (mask, None), (mask, bias)):
        given = AttentionInputs(*leaves, alpha, *over, seed=None, is_causal=False, scale=0.3, dropout_p=0.0)
        torch.library.opcheck(attention_cpu.attend, (*given, True), test_utils=tests)


def test_one_device_for_all():
    """α read inside the forward by a hook may lie elsewhere (accelerate's offloading): nothing native may see it."""
    inputs, _ = problem(1, 2, 3, 4, 8, 8, 1.5)
    for moved in range(4):
        elsewhere = [t.to("meta") if i == moved else t for i, t in enumerate(inputs)]
        elsewhere[3] = elsewhere[3].view(1, 2, 1, 1)
        assert kernels.entmax_attention(*elsewhere, None, None, False, 1.0, 0.0, (0, -1)) is None
    alpha = inputs[3].view(1, 2, 1, 1)
    for over in ((torch.ones(4, dtype=torch.bool, device="meta"), None), (None, torch.ones(4, device="meta"))):
        assert kernels.entmax_attention(*inputs[:3], alpha, *over, False, 1.0, 0.0, (0, -1)) is None

"""Every function with a native form refuses wrong arguments in both forms, and native code sees none of them."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr import kernels
from hf_entmax_asr.kernels import libraries
from hf_entmax_asr.model.alignment import expected_alignment, expected_soft_attention
from hf_entmax_asr.model.chunks import Chunks
from hf_entmax_asr.model.entmax import LARGEST_SIZE, entmax
from hf_entmax_asr.model.entmax_attention import entmax_attention

SIZES = st.tuples(*[st.integers(2, high) for high in (3, 3, 4, 9, 5)])


def endless(*shape: int) -> torch.Tensor:
    """Of no memory."""
    return torch.zeros(1).expand(shape)


def good(function, batch, heads, targets, positions, width):
    scores = torch.randn(batch, heads, targets, positions)
    mask = torch.ones(batch, positions, dtype=torch.bool)
    if function is entmax:
        return {"scores": scores, "alpha": torch.full((heads, 1, 1), 1.5), "dim": -1, "mask": mask[:, None, None]}
    if function is expected_alignment:
        return {"energy": scores, "source_mask": mask, "previous": torch.rand(batch, heads, positions)}
    if function is expected_soft_attention:
        return {"alignment": scores.softmax(-1), "energy": scores, "chunk_size": 3, "source_mask": mask}
    query, key = torch.randn(batch, heads, targets, width), torch.randn(batch, heads, positions, width)
    alpha = torch.full((heads,), 1.5)
    return {"query": query, "key": key, "value": key, "alpha": alpha, "mask": mask[:, None, None], "bias": scores}


WRONG = [
    (entmax, lambda g: {"scores": g["scores"].long()}, ValueError, "scores have dtype torch.int64"),
    (entmax, lambda g: {"scores": endless(LARGEST_SIZE + 1), "mask": None, "alpha": 1.5}, ValueError, "longer than"),
    (entmax, lambda g: {"alpha": torch.tensor(2.5)}, ValueError, "alpha"),
    (entmax, lambda g: {"alpha": torch.full((9,), 1.5)[: g["scores"].shape[-1]]}, ValueError, "alpha"),
    (entmax, lambda g: {"mask": g["mask"].long()}, ValueError, "mask has dtype torch.int64"),
    (entmax, lambda g: {"mask": g["mask"][..., 1:].repeat(1, 1, 1, 9)}, RuntimeError, "expand|match|broadcast"),
    (entmax, lambda g: {"dim": 4}, IndexError, "dim = 4 is no dimension"),
    (entmax_attention, lambda g: {"query": g["query"][0]}, ValueError, "4 dimensions"),
    (entmax_attention, lambda g: {"key": g["key"][:, :, 1:]}, ValueError, "do not fit"),
    (entmax_attention, lambda g: {"key": g["key"][..., 1:]}, ValueError, "do not fit"),
    (entmax_attention, lambda g: {"value": g["value"][1:]}, ValueError, "do not fit"),
    (entmax_attention, lambda g: {"value": g["value"].long()}, ValueError, "value has dtype torch.int64"),
    (entmax_attention, lambda g: {"alpha": torch.full((7,), 1.5)}, ValueError, "alpha has shape"),
    (entmax_attention, lambda g: {"alpha": 0.5}, ValueError, "alpha"),
    (entmax_attention, lambda g: {"mask": g["mask"].float()}, ValueError, "mask is torch.float32"),
    (entmax_attention, lambda g: {"mask": g["mask"][..., 1:].repeat(1, 1, 1, 9)}, ValueError, "mask has shape"),
    (entmax_attention, lambda g: {"bias": g["bias"].long()}, ValueError, "bias is torch.int64"),
    (entmax_attention, lambda g: {"bias": g["bias"].mT.repeat(1, 1, 9, 1)}, ValueError, "bias has shape"),
    (entmax_attention, lambda g: {"dropout_p": -0.1}, ValueError, "dropout_p"),
    (entmax_attention, lambda g: {"chunks": Chunks(-1)}, ValueError, "chunks"),
    (entmax_attention, lambda g: {"chunks": Chunks(2, -2)}, ValueError, "chunks"),
    (entmax_attention, lambda g: {"key": endless(1, 1, 2**32 + 1, 1)}, ValueError, "longer than"),
    (expected_alignment, lambda g: {"energy": g["energy"][0]}, ValueError, "energy has shape"),
    (expected_alignment, lambda g: {"energy": g["energy"].long()}, ValueError, "energy has dtype"),
    (expected_alignment, lambda g: {"energy": endless(1, 1, 1, 2**32)}, ValueError, "longer than"),
    (expected_alignment, lambda g: {"source_mask": g["source_mask"][:, 1:]}, ValueError, "source_mask is"),
    (expected_alignment, lambda g: {"source_mask": g["source_mask"].long()}, ValueError, "source_mask is"),
    (expected_alignment, lambda g: {"previous": g["previous"][:, 1:]}, ValueError, "previous has shape"),
    (expected_alignment, lambda g: {"previous": g["previous"].long()}, ValueError, "previous has dtype"),
    (expected_soft_attention, lambda g: {"energy": g["energy"][:, 1:]}, ValueError, "differ in shape"),
    (expected_soft_attention, lambda g: {"chunk_size": 0}, ValueError, "chunk_size = 0"),
    (expected_soft_attention, lambda g: {"alignment": g["alignment"].long()}, ValueError, "alignment has dtype"),
    (expected_soft_attention, lambda g: {"source_mask": g["source_mask"][1:]}, ValueError, "source_mask is"),
    (
        expected_soft_attention,
        lambda g: {"alignment": g["alignment"][0], "energy": g["energy"][0]},
        ValueError,
        "alignment has shape",
    ),
]


@pytest.mark.parametrize(("function", "change", "error", "message"), WRONG)
@settings(max_examples=5, deadline=None)
@given(sizes=SIZES)
def test_wrong_arguments_are_refused_by_both_forms(function, change, error, message, sizes):
    arguments = good(function, *sizes)
    arguments |= change(arguments)
    for mode in ("auto", "eager"):
        with kernels.use(mode), mock.patch.object(libraries, "call") as call, pytest.raises(error, match=message):
            function(**arguments)
        assert not call.called


@settings(max_examples=5, deadline=None)
@given(sizes=SIZES)
def test_the_native_forms_alone_take_no_shapes_that_do_not_fit(sizes):
    given = good(entmax_attention, *sizes)
    alpha = given["alpha"].view(1, -1, 1, 1)
    heads = (given["query"], given["key"], given["value"])
    rest = (None, None, False, 1.0, 0.0, (0, -1))
    for wrong in (
        (given["query"][:, 1:], *heads[1:], alpha),
        (heads[0], given["key"][:, :, 1:], heads[2], alpha),
        (*heads, alpha[0]),
        (*heads, torch.cat([alpha] * 4, 1)),
    ):
        assert kernels.entmax_attention(*wrong, *rest) is None
    energy = given["bias"]
    mask = torch.ones(energy.shape[0], energy.shape[3] + 1, dtype=torch.bool)
    assert kernels.expected_alignment(energy, mask, None) is None
    assert kernels.expected_alignment(energy, None, energy[:, :, 0, 1:]) is None
    assert kernels.expected_soft_attention(energy[:, 1:], energy, 2, None) is None
    assert kernels.expected_soft_attention(energy, energy, 2, mask) is None


@pytest.mark.parametrize("below", [1.5, 2.0, 2.3])
def test_entmax_of_many_equal_scores_near_the_edge_of_the_support(below):
    """Where the step towards the threshold is longest, and must not pass all scores."""
    for length in (31, 70):
        scores = torch.full((length - 1, length), -below).tril(-1)  # length, length − 1 … 2 largest ones
        for alpha in torch.linspace(1.02, 1.5, 25).tolist():
            with kernels.use("eager"):
                expected = entmax(scores.double(), alpha)
            torch.testing.assert_close(entmax(scores, alpha).double(), expected, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("mode", ["auto", "eager"])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_soft_attention_where_nothing_is_real_at_first_or_at_all(mode, chunk_size):
    """A window of padding is read evenly; and so is one of scores so large that adding log n does not change them."""
    torch.manual_seed(0)
    alignment, energy = torch.rand(4, 1, 2, 9), torch.randn(4, 1, 2, 9)
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[0] = False
    mask[1, :5] = False
    energy[2] = -1e25
    energy[3, ..., :4] = -torch.inf
    weights = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in (alignment, energy)]
        with kernels.use(mode):
            out = expected_soft_attention(*leaves, chunk_size, mask)
        weights.append([out, *torch.autograd.grad((out * torch.arange(9)).sum(), leaves)])
    for single, double in zip(*weights, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
    width = chunk_size or 9
    for row, real in ((0, 0), (2, 9)):
        assert mask[row].sum() == real
        expected = torch.zeros(2, 9)
        for k in range(9):
            inside = slice(max(0, k - width + 1), k + 1)
            expected[:, inside] += alignment[row, 0, :, k : k + 1] / (inside.stop - inside.start)
        torch.testing.assert_close(weights[0][0][row, 0], expected)


@pytest.mark.parametrize("mode", ["auto", "eager"])
def test_sizes_of_0_are_taken_by_both_forms(mode):
    with kernels.use(mode):
        for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)):
            x = torch.randn(shape, requires_grad=True)
            for function in (
                lambda x: entmax(x, 1.5),
                expected_alignment,
                lambda x: expected_soft_attention(x, x, None),
                lambda x: expected_soft_attention(x, x, 2),
            ):
                out = function(x)
                assert out.shape == x.shape
                assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape
        query, key = torch.randn(1, 2, 3, 0), torch.randn(1, 2, 4, 0)  # scores of no width are alike
        value = torch.randn(1, 2, 4, 5, requires_grad=True)
        out = entmax_attention(query, key, value, 1.5, scale=1.0)
        torch.testing.assert_close(out, value.mean(2, keepdim=True).expand(1, 2, 3, 5))
        (gradient,) = torch.autograd.grad(out.sum(), value)
        torch.testing.assert_close(gradient, torch.full_like(value, 0.75))


@pytest.mark.parametrize("alpha", [1.05, 1.1, 1.25, 1.4, 1.5, 1.7, 2.0])
@pytest.mark.parametrize("keys", [2, 40, 300])
@pytest.mark.parametrize("far", [-3e38, -1e20, -1e10, 3e6])
def test_a_bias_far_from_zero_over_a_whole_row_changes_nothing(alpha, keys, far):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randint(-3, 4, (1, 2, n, 8), generator=generator).float() for n in (20, keys))
    value = torch.randn(1, 2, keys, 8, generator=generator)
    bias = torch.full((1, 1, 20, 1), far)
    with kernels.use("eager"):
        expected = entmax_attention(query, key, value, alpha, bias=bias, scale=0.25)
    torch.testing.assert_close(entmax_attention(query, key, value, alpha, bias=bias, scale=0.25), expected)

"""α-entmax attention as the specification has it: what mask and bias mean, its gradients, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_entmax_asr import kernels
from hf_entmax_asr.model.entmax import entmax
from hf_entmax_asr.model.entmax_attention import entmax_attention

pytestmark = pytest.mark.usefixtures("seeded", "eager")

B, H, T, S, D, E = 2, 2, 5, 6, 8, 4


@pytest.fixture
def eager():
    with kernels.use("eager"):
        yield


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """query, key, value, α."""
    shapes = ((B, H, T, D), (B, H, S, D), (B, H, S, E))
    return [*(torch.randn(shape, dtype=dtype) for shape in shapes), torch.tensor([1.3, 1.7], dtype=dtype)]


@pytest.mark.parametrize("bias_shape", [(B, H, T, S), (H, T, S), (B, 1, 1, S), (T, S), (H, T, 1), ()], ids=str)
def test_bias_is_added_to_the_scaled_scores_and_mask_forbids(bias_shape):
    query, key, value, alpha = inputs()
    bias, mask = torch.randn(bias_shape), torch.rand(B, 1, T, S) < 0.7
    mask[0, 0, 2] = False  # a query that may read nothing
    expected = entmax(0.3 * query @ key.mT + bias, alpha.view(-1, 1, 1), mask=mask) @ value
    out = entmax_attention(query, key, value, alpha, mask, bias, scale=0.3)
    torch.testing.assert_close(out, expected)
    assert not out[0, :, 2].any()
    causal = entmax_attention(query, key, value, alpha, mask, bias, is_causal=True, scale=0.3)
    torch.testing.assert_close(
        causal, entmax_attention(query, key, value, alpha, mask & torch.ones(T, S).tril().bool(), bias, scale=0.3)
    )
    _, weights = entmax_attention(query, key, value, alpha, mask, bias, return_weights=True)
    assert not weights[~mask.expand_as(weights)].any()


def test_alpha_1_is_softmax_attention_with_the_bias_as_its_mask():
    query, key, value, _ = inputs()
    bias, mask = torch.randn(H, T, S), torch.rand(B, 1, T, S) < 0.7
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.masked_fill(~mask, -torch.inf))
    torch.testing.assert_close(entmax_attention(query, key, value, 1.0, mask, bias), expected)


@pytest.mark.parametrize("bias_shape", [(B, H, T, S), (H, 1, S), (T, 1)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_of_everything(bias_shape, is_causal):
    mask = torch.rand(B, 1, 1, S) < 0.8
    leaves = [t.requires_grad_() for t in (*inputs(torch.float64), torch.randn(bias_shape, dtype=torch.float64))]

    def attention(query, key, value, alpha, bias):
        return entmax_attention(query, key, value, alpha, mask, bias, is_causal=is_causal)

    assert torch.autograd.gradcheck(attention, leaves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.randn(H, T, D)}, "4 dimensions"),
        ({"query": torch.randn(1, H, T, D)}, "do not fit"),
        ({"key": torch.randn(B, H, S - 1, D)}, "do not fit"),
        ({"query": torch.randn(B, H, T, D - 1)}, "do not fit"),
        ({"alpha": torch.full((3,), 1.5)}, "alpha has shape"),
        ({"alpha": torch.full((2,), 0.5)}, r"\[1, 2\]"),
        ({"mask": torch.ones(3, S, dtype=torch.bool)}, r"mask has shape \(3, 6\); it must broadcast to \(2, 2, 5, 6\)"),
        ({"mask": torch.ones(S, dtype=torch.long)}, r"mask is torch.int64; it must be boolean.*argument bias"),
        ({"mask": torch.ones(S)}, r"mask is torch.float32; it must be boolean.*argument bias"),
        ({"bias": torch.ones(3, S)}, r"bias has shape \(3, 6\); it must broadcast to \(2, 2, 5, 6\)"),
        ({"bias": torch.ones(1, B, H, T, S)}, "bias has shape"),
        ({"bias": torch.ones(S, dtype=torch.bool)}, r"bias is torch.bool; it must be floating.*argument mask"),
        ({"bias": torch.ones(S, dtype=torch.long)}, r"bias is torch.int64; it must be floating.*argument mask"),
        ({"dropout_p": 1.5}, "dropout_p = 1.5"),
        ({"key": torch.randn(B, H, S, D, device="meta")}, "key is on meta and query on cpu"),
        ({"alpha": torch.ones(H, device="meta")}, "alpha is on meta and query on cpu"),
        ({"mask": torch.ones(S, dtype=torch.bool, device="meta")}, "mask is on meta and query on cpu"),
        ({"bias": torch.ones(S, device="meta")}, "bias is on meta and query on cpu"),
    ],
)
@pytest.mark.parametrize("mode", ["eager", "auto"])
def test_wrong_input_is_refused(change, message, mode):
    arguments = dict(zip(("query", "key", "value", "alpha"), inputs(), strict=True))
    with kernels.use(mode), pytest.raises(ValueError, match=message):
        entmax_attention(**(arguments | change))

"""Dropout's own masks have the statistics, the gradient and the seeds of torch's."""

import pytest
import torch
import torch.nn.functional as F

from hf_entmax_asr.model.dropout import dropout


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_rate_scale_and_independence_of_neighbours(rate):
    torch.manual_seed(0)
    count = 1_000_003
    kept = dropout(torch.ones(count), rate, training=True)
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    dropped = (kept == 0).double()
    deviation = (rate * (1 - rate) / count) ** 0.5
    assert abs(dropped.mean() - rate) < 5 * deviation
    for lag in (1, 2, 3, 4):  # four entries share a draw
        both = (dropped[:-lag] * dropped[lag:]).mean()
        assert abs(both - rate**2) < 5 * (rate**2 * (1 - rate**2) / count) ** 0.5


def test_gradient_is_the_mask():
    x = torch.randn(3, 5, 7).transpose(1, 2).requires_grad_()
    torch.manual_seed(0)
    (grad,) = torch.autograd.grad(dropout(x, 0.3, training=True).sum(), x)
    torch.manual_seed(0)
    torch.testing.assert_close(grad, dropout(torch.ones(x.shape), 0.3, training=True))


def test_it_follows_the_seed():
    x = torch.ones(100)
    torch.manual_seed(1)
    first = dropout(x, 0.5, training=True)
    assert not torch.equal(dropout(x, 0.5, training=True), first)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5, training=True), first)


def test_nothing_and_everything():
    x = torch.randn(10, dtype=torch.bfloat16)
    assert torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)
    assert not dropout(x, 1.0, training=True).any()
    assert dropout(x, 0.5, training=True).dtype == torch.bfloat16
    assert dropout(x[:0], 0.5, training=True).shape == (0,)
    with pytest.raises(ValueError, match="between 0 and 1"):
        F.dropout(x, 1.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        dropout(x, 1.5, training=True)

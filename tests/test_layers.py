"""A vocabulary's projection of few rows, in parts."""

import pytest
import torch
from torch import nn

from hf_entmax_asr.model import layers
from hf_entmax_asr.model.layers import project


def layer(bias=False, tokens=2**17 + 3):
    torch.manual_seed(0)
    return nn.Linear(32, tokens, bias=bias)


@pytest.fixture
def calls(monkeypatch):
    """How many products of parts there were."""
    made, bmm = [], torch.bmm
    monkeypatch.setattr(layers.torch, "bmm", lambda *arguments: made.append(1) or bmm(*arguments))
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(), (1, 1), (5, 1), (2, 4), (3, 3), (0, 1)])
@torch.no_grad()
def test_as_the_layer_has_it(shape, bias, calls):
    large = layer(bias)
    x = torch.randn(*shape, 32)
    torch.testing.assert_close(project(large, x), large(x))
    assert len(calls) == (0 < x.shape[:-1].numel() <= layers.FEW_ROWS)


def hooked():
    large = layer()
    large.register_forward_hook(lambda module, arguments, output: output + 1)
    return large


def replaced():
    large = layer()
    large.forward = lambda x: x * 2
    return large


@pytest.mark.parametrize(
    "of", [hooked, replaced, lambda: layer(tokens=50), lambda: nn.Sequential(layer()), lambda: layer().bfloat16()]
)
@torch.no_grad()
def test_what_is_more_than_a_plain_large_layer_is_left_to_itself(of, calls):
    other = of()
    x = torch.randn(2, 32, dtype=next(other.parameters()).dtype)
    assert torch.equal(project(other, x), other(x))
    assert not calls


def test_training_is_left_to_the_layer(calls):
    large, x = layer(), torch.randn(2, 32)
    project(large, x).sum().backward()
    assert large.weight.grad is not None
    assert not calls

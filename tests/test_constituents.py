"""Constituent attention against loops, and its limits."""

import math

import pytest
import torch

from hf_entmax_asr.model.constituents import ConstituentAttention, constituent_prior, neighbour_links
from support.small_models import small_config


def test_links_and_priors_are_their_equations():
    torch.manual_seed(0)
    query, key = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    links = neighbour_links(query, key, mask)
    prior = constituent_prior(links)
    for row, length in enumerate(mask.sum(1).tolist()):

        def toward(i: int, j: int, row=row, length=length) -> float:
            """p(i → j), a softmax over the neighbours of i."""
            score = {n: float(query[row, i] @ key[row, n]) / 2 for n in (i - 1, i + 1) if 0 <= n < length}
            return math.exp(score[j]) / sum(map(math.exp, score.values()))

        for i in range(length - 1):
            assert links[row, i].item() == pytest.approx(math.sqrt(toward(i, i + 1) * toward(i + 1, i)), rel=1e-5)
        for i in range(length):
            for j in range(length):
                product = math.prod(links[row, min(i, j) : max(i, j)].tolist())
                assert prior[row, i, j].item() == pytest.approx(product, rel=1e-4)
    assert torch.equal(prior, prior.transpose(1, 2))


def test_links_grow_from_layer_to_layer_and_full_ones_are_plain_attention():
    torch.manual_seed(0)
    config = small_config(encoder_transform="softmax")
    layer = ConstituentAttention(config, 0).eval()
    x = torch.randn(2, 7, 16)
    below = torch.rand(2, 6)
    _, links = layer(x, below, None)
    assert ((links > below) & (links < 1)).all()
    output, _ = layer(x, torch.ones(2, 6), None)
    query, key, value = (layer.heads_of(p, x) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(output, layer.out_proj(plain.transpose(1, 2).flatten(2)), atol=1e-6, rtol=1e-5)

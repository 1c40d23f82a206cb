"""The transforms as modules: one for each name, none for others, and the fused form beside the plain one."""

import pytest
import torch

from hf_entmax_asr.model.attention import CrossAttention, CrossHeadAttention, SelfAttention
from hf_entmax_asr.model.configuration_entmax_asr import TRANSFORMS
from hf_entmax_asr.model.transforms import TRANSFORM_CLASSES, make_transform
from support.small_models import small_config


def test_every_name_of_the_configuration_has_a_class():
    assert tuple(TRANSFORM_CLASSES) == TRANSFORMS


@pytest.mark.parametrize(
    ("knob", "build"),
    [
        ("encoder_transform", lambda config: SelfAttention(config, "encoder", 0)),
        ("decoder_transform", lambda config: SelfAttention(config, "decoder", 0)),
        ("cross_transform", lambda config: CrossAttention(config, 0)),
        ("cross_head_transform", lambda config: CrossHeadAttention(config, 4)),
    ],
)
def test_an_unknown_transform_is_refused(knob, build):
    config = small_config()
    setattr(config, knob, "sigmoid")  # behind the back of the configuration, which looks at the start
    with pytest.raises(ValueError, match=r"'sigmoid' is no transform\. Use one of: softmax, sparsemax"):
        build(config)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_attending_is_the_transform_of_the_scores(name, biased):
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(2, 4, size, 8, generator=generator) for size in (5, 7, 7))
    bias = 2 * torch.randn(1, 4, 5, 7, generator=generator) if biased else None
    mask = torch.rand(2, 1, 1, 7, generator=generator) > 0.3
    transform = make_transform(name, small_config(softmax_temperature=1.3, attention_topk=3), 4)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(torch.tensor([-1.0, 0.0, 0.5, 2.0]))
        scores = query @ key.mT / 3 + (0 if bias is None else bias)
        expected = transform(scores, mask)
        inputs = (query, key, value, mask, bias)
        context, weights = transform.attend(*inputs, scale=1 / 3, need_weights=True)
        fused, unneeded = transform.attend(*inputs, scale=1 / 3)
    assert (unneeded is None) == (transform.as_entmax() is not None)  # the fused form holds no weights
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(context, expected @ value)
    torch.testing.assert_close(fused, context)
    assert not (name != "softmax" and (weights[mask.expand_as(weights)] > 0).all())  # sparse, where it can be


def test_self_attention_adds_a_bias_to_its_scores():
    torch.manual_seed(0)
    attention = SelfAttention(small_config(encoder_transform="softmax"), "encoder", 0).eval()
    bias = torch.full((1, 2, 6, 6), -1e9)
    bias[..., 2] = 0.0
    x = torch.randn(3, 6, 16)
    output, weights = attention(x, bias=bias, need_weights=True)
    assert (weights[..., 2] == 1).all()  # every position reads position 2 alone
    torch.testing.assert_close(output, attention.out_proj(attention.v_proj(x))[:, 2:3].expand(3, 6, 16))
    torch.testing.assert_close(attention(x, bias=bias)[0], output)


@pytest.mark.parametrize("need_weights", [False, True])
def test_parameters_that_a_hook_brings_are_there_when_they_are_read(need_weights):
    accelerate = pytest.importorskip("accelerate")
    config = small_config(entmax_logit_scale=True)
    transform = make_transform("entmax", config, 2)
    transform.reset_parameters()
    query, key, value = (torch.randn(1, 2, 3, 4) for _ in range(3))
    expected = transform.attend(query, key, value, scale=0.5, need_weights=need_weights)[0]
    accelerate.cpu_offload(transform, execution_device="cpu")
    assert transform.alpha_logit.is_meta
    torch.testing.assert_close(transform.attend(query, key, value, scale=0.5, need_weights=need_weights)[0], expected)

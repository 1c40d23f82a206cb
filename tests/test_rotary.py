"""Rotary positions: scores depend on distances alone, in every form of the attention, and however long a stream is."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_entmax_asr import EntmaxAsrConfig, EntmaxAsrFeatureExtractor, EntmaxAsrForConditionalGeneration, kernels
from hf_entmax_asr.model.chunks import Chunks
from hf_entmax_asr.model.layers import rotate, rotation_of
from hf_entmax_asr.model.streaming import IncrementalEncoder, encode
from support.small_models import features, small_model, targets
from test_streaming import speech


def test_a_rotation_is_one_of_complex_numbers_and_scores_know_distances_alone():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    positions = torch.tensor([0, 1, 2, 7, 1000])
    angles = positions[:, None] * 10000.0 ** -(torch.arange(4) / 4)
    turned = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotate(x, rotation_of(positions, 8)), torch.cat([turned.real, turned.imag], -1).double())
    x = x.float()
    near, far = (rotate(x, rotation_of(positions + first, 8)) for first in (0, 10_000_000))  # two days on
    torch.testing.assert_close(near @ near.mT, far @ far.mT, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(near @ near.mT, x @ x.mT, atol=0.1)


@pytest.mark.parametrize("transform", ["entmax", "softmax", "topk"])
def test_all_forms_agree_and_learn(transform, tmp_path):
    model = small_model(encoder_positions="rotary", encoder_transform=transform, attention_topk=4)
    assert not any("embed_positions" in name for name in model.state_dict() if "encoder" in name)
    input_features, mask = features(2)
    states = model.get_encoder()(input_features, attention_mask=mask, encoder_chunk_size=4)[0]
    with kernels.use("eager"):
        eager = model.get_encoder()(input_features, attention_mask=mask, encoder_chunk_size=4)[0]
    torch.testing.assert_close(states, eager, atol=1e-5, rtol=1e-4)
    model.train()
    model(input_features, attention_mask=mask, labels=targets(2)).loss.backward()
    assert all(layer.self_attn.k_proj.weight.grad.any() for layer in model.get_encoder().layers)
    model.eval().save_pretrained(tmp_path)
    again = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(
        again.get_encoder()(input_features, attention_mask=mask, encoder_chunk_size=4)[0], states, atol=0, rtol=0
    )


def test_a_stream_goes_on_without_end():
    """With a bounded left context, what was heard hours ago changes nothing: a chunk there is as one at the start."""
    model = small_model(encoder_positions="rotary")
    extractor = EntmaxAsrFeatureExtractor(feature_size=12, cmvn="none")
    samples = torch.from_numpy(speech(16000))
    found = []
    for first in (0, 4_000_000):
        encoder = IncrementalEncoder(model.get_encoder(), extractor, Chunks(4, 2))
        found.append(torch.cat([encode_at(chunk, first) for chunk in encoder.take(samples)], 1))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def encode_at(chunk, first: int) -> torch.Tensor:
    """As if so many positions stood before it."""
    return encode([chunk._replace(first=chunk.first + first)])[0]


def test_heads_of_odd_width_are_refused():
    with pytest.raises(StrictDataclassError, match="encoder_attention_heads = 3 is odd"):
        EntmaxAsrConfig(encoder_positions="rotary", d_model=12, encoder_attention_heads=4, decoder_attention_heads=2)
    with pytest.raises(StrictDataclassError, match="decoder_positions = 'rotary' is not known"):
        EntmaxAsrConfig(decoder_positions="rotary")

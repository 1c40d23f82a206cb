"""The front end: how many positions come of so many frames, and in which dtype it computes."""

import math

import pytest
import torch

from support.small_models import features, small_model


@pytest.mark.parametrize("layers", [1, 2])
def test_lengths_after_subsampling(layers):
    model = small_model(subsampling_layers=layers)
    for frames in (1, 2, 5, 8, 61):
        states = model.get_encoder()(torch.zeros(1, frames, 12)).last_hidden_state
        expected = math.ceil(math.ceil(frames / 2) / (2 if layers == 2 else 1))
        assert states.shape == (1, expected, 16)
        assert model._get_feat_extract_output_lengths(torch.tensor(frames)) == expected
        mask = (torch.arange(61) < frames).long().unsqueeze(0)
        assert model.position_mask(mask).sum() == expected


def test_the_front_end_tells_what_it_computes_in():
    front_end = small_model().get_encoder().subsampling
    assert front_end.dtype == torch.float32
    for layer in front_end.convolutions:
        layer.to(torch.bfloat16)
    assert front_end.dtype == torch.bfloat16
    front_end.convolutions = torch.nn.ModuleList()
    front_end.projection = torch.nn.Module()  # as a quantised one: integers, and no `weight`
    front_end.projection.packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    assert front_end.dtype == torch.float32


def test_whispers_convolutions_pad_nothing_into_an_utterance():
    model = small_model(front_end="whisper", subsampling_layers=1)
    input_features, mask = features(frames=31)
    together = model.get_encoder().subsampling(input_features, mask)[0]
    for index, length in enumerate(mask.sum(1).tolist()):
        alone, _ = model.get_encoder().subsampling(input_features[index : index + 1, :length])
        torch.testing.assert_close(together[index, : alone.shape[1]], alone[0])
        assert alone.shape[1] == model.config.positions_of(length)

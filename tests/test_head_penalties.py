"""Where monotonic heads may stop at no cost, and what they pay elsewhere."""

import math

import pytest
import torch

from hf_entmax_asr.model.head_penalties import (
    delay_behind_pace,
    distance_from_window,
    head_penalty,
    reference_positions,
)
from support.small_models import features, small_config, small_model, targets


def one_hot(stops: list[list[float]], positions: int) -> torch.Tensor:
    """(1, H, U, S) alignment of heads that stop there for sure."""
    return torch.nn.functional.one_hot(torch.tensor(stops), positions).float()[None]


def test_a_stop_inside_the_window_costs_nothing_outside_its_distance():
    stop = torch.tensor([[[0.0, 5.0, 12.0, 20.0]]])
    reference = torch.tensor([[10.0, 10.0, 10.0, math.nan]])
    assert distance_from_window(stop, reference, (4, 1)).tolist()[0][0][:3] == [6.0, 1.0, 1.0]
    assert distance_from_window(stop, reference, (None, 1)).tolist()[0][0][:3] == [0.0, 0.0, 1.0]
    assert distance_from_window(stop, reference, (4, None)).tolist()[0][0][:3] == [6.0, 1.0, 0.0]


def test_the_penalty_by_reference_is_a_mean_over_known_tokens_summed_over_heads():
    config = small_config(head_regularizer="reference", head_regularizer_layers=[0], reference_window=[0, 0])
    alignment = one_hot([[1, 4, 7], [3, 4, 7]], 8)
    reference = torch.tensor([[1.0, 2.0, math.nan]])
    energy = torch.zeros_like(alignment)
    assert head_penalty(config, energy, alignment, reference=reference).item() == (0 + 2) / 2 + (2 + 2) / 2
    mask = torch.tensor([[True, False, True]])
    assert head_penalty(config, energy, alignment, target_mask=mask, reference=reference).item() == 0 + 2
    unknown = torch.full((1, 3), math.nan)
    assert head_penalty(config, energy, alignment, reference=unknown).item() == 0


def test_delay_is_how_far_stops_lie_behind_an_even_pace():
    """Two tokens, four real positions: due at shares 1/2 and 1 of the audio."""
    stop, lengths, real = torch.tensor([[[3.0, 3.0]]]), torch.tensor([4]), torch.tensor([[True, True]])
    assert delay_behind_pace(stop, lengths, real).tolist() == [[[0.5, 0.0]]]
    assert delay_behind_pace(stop - 3, lengths, real).tolist() == [[[0.0, 0.0]]]


def test_frames_become_positions_of_the_decoders_inputs_behind_the_prompt():
    config = small_config(decoder_prompt_ids=[3, 4])
    found = reference_positions(config, torch.tensor([[8.0, 12.0]]))
    assert found[0, :2].isnan().all()
    assert found[0, 2:].tolist() == [2.0, 3.0]  # four frames a position
    assert reference_positions(config, None) is None


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_training_pulls_the_stops_towards_the_reference(chunk):
    options = {"head_regularizer": "reference", "head_regularizer_layers": [0, 1], "head_regularizer_weight": 1.0}
    model = small_model(**options, reference_window=[0, 0], monotonic_chunk_size=chunk, decoder_prompt_ids=[5]).train()
    input_features, mask = features(batch=2, frames=64)
    labels = targets(batch=2)
    frames = torch.linspace(8, 48, labels.shape[1]).expand(labels.shape)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    penalties = []
    for _ in range(15):
        output = model(input_features, attention_mask=mask, labels=labels, token_frames=frames)
        penalties.append(output.head_penalty.item())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert penalties[-1] < 0.6 * penalties[0]


def test_without_a_reference_the_error_says_where_it_comes_from():
    model = small_model(head_regularizer="reference", head_regularizer_layers=[0]).train()
    input_features, mask = features(batch=1, frames=40)
    with pytest.raises(ValueError, match=r"needs token_frames beside the labels.*data\.word_times"):
        model(input_features, attention_mask=mask, labels=targets(batch=1))


def test_a_price_of_density_raises_alpha():
    input_features, mask = features(batch=1, frames=40)
    inputs = {"input_features": input_features, "attention_mask": mask, "labels": targets(batch=1)}
    free, priced = (small_model(sparsity_weight=weight).train() for weight in (0.0, 2.0))
    assert priced(**inputs).loss.item() == pytest.approx(free(**inputs).loss.item() + 2 * 0.5, rel=1e-5)  # α = 1.5
    gradients = []
    for model in (free, priced):
        model(**inputs).loss.backward()
        gradients.append(model.model.encoder.layers[0].self_attn.transform.alpha_logit.grad)
    assert (gradients[1] < gradients[0]).all()  # a step goes against the gradient: towards larger α
    assert (
        small_model(sparsity_weight=2.0, encoder_transform="softmax", decoder_transform="softmax")
        .train()(**inputs)
        .loss.isfinite()
    )

"""The monotonic attention module: reading, gates, HeadDrop, regularisers. (Its mathematics: test_alignment.py.)"""

import pytest
import torch

from hf_entmax_asr.model.monotonic import MonotonicAttention
from support.small_models import CHUNKS, features, small_config, small_model, targets

GATED = {"head_regularizer": "gate_l1", "head_regularizer_layers": [0], "head_regularizer_weight": 0.2}


def make_attention(seed: int = 0, **options) -> MonotonicAttention:
    attention = small_model(seed, lively=True, **options).model.decoder.layers[0].encoder_attn
    assert isinstance(attention, MonotonicAttention)
    return attention


def states(batch: int = 2, tokens: int = 5, positions: int = 9):
    """Decoder states (B, U, C), encoder states (B, S, C) and a mask (B, S) whose last row is shorter."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(batch, positions, dtype=torch.bool)
    mask[-1, 6:] = False
    shapes = ((batch, tokens, 16), (batch, positions, 16))
    return (*(torch.randn(shape, generator=generator) for shape in shapes), mask)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("rule", ["threshold", "cumulative"])
def test_hard_reading(chunk, rule):
    attention = make_attention(monotonic_chunk_size=chunk, firing_rule=rule).eval()
    _, weights, boundary, penalty = attention(*states(), need_weights=True)
    assert penalty is None
    assert boundary.shape == (2, 4, 5)
    assert (boundary[:, :, 1:] >= boundary[:, :, :-1]).all()
    assert len(boundary.unique()) > 2  # the heads do walk
    assert boundary[1].max() <= 5
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    index = torch.arange(9)
    outside = index > boundary.unsqueeze(-1)
    if chunk is not None:
        outside = outside | (index <= boundary.unsqueeze(-1) - chunk)
    assert (weights[outside] == 0).all()
    assert (weights[~outside] > 0).all()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_soft_reading_is_what_training_sees_without_noise(chunk):
    attention = make_attention(monotonic_chunk_size=chunk, monotonic_decoding="soft")
    inputs = states()
    output, weights, boundary, _ = attention.eval()(*inputs)
    trained, trained_weights, _, _ = attention.train()(*inputs)
    assert boundary is None
    assert torch.equal(output, trained)
    assert torch.equal(weights, trained_weights)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    assert (weights[1, :, :, 6:] == 0).all()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_decided_heads_read_alike_hard_and_soft(chunk):
    attention = make_attention(monotonic_chunk_size=chunk)
    with torch.no_grad():  # energies far from 0 leave nothing to chance
        attention.q_proj.weight.mul_(300)
        attention.energy_bias.fill_(0.0)
    inputs = states()
    hard = attention.eval()(*inputs, need_weights=True).weights
    soft = attention.train()(*inputs)[1]
    torch.testing.assert_close(hard, soft, atol=1e-4, rtol=0)


def test_noise_in_training_only():
    attention = make_attention(energy_noise_std=1.0, monotonic_decoding="soft")
    inputs = states()
    assert torch.equal(attention.eval()(*inputs)[0], attention(*inputs)[0])
    assert not torch.equal(attention.train()(*inputs)[0], attention(*inputs)[0])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_straight_through_reads_hard_and_learns_softly(chunk):
    attention = make_attention(monotonic_chunk_size=chunk)
    inputs = states()
    hard_output, hard_weights, _, _ = attention.eval()(*inputs, need_weights=True)
    soft = attention.train()(*inputs)[1]
    expected = torch.autograd.grad(soft[..., 3].sum(), attention.q_proj.weight)[0]
    attention.config.monotonic_straight_through = True
    output, weights, _, _ = attention(*inputs)
    torch.testing.assert_close(output, hard_output)
    torch.testing.assert_close(weights, hard_weights)
    torch.testing.assert_close(torch.autograd.grad(weights[..., 3].sum(), attention.q_proj.weight)[0], expected)
    assert expected.abs().max() > 0


# Heads


def test_a_gate_scales_its_head_and_zero_removes_it():
    attention = make_attention(**GATED).eval()
    inputs = states()
    with torch.no_grad():
        attention.gate.copy_(torch.tensor([1.0, 0.0, 0.5, 1.0]))
    output = attention(*inputs)[0]
    assert attention.active_heads().tolist() == [True, False, True, True]
    with torch.no_grad():  # head 1 may now hold anything
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[4:8] = 100.0
        assert torch.equal(attention(*inputs)[0], output)
        attention.v_proj.weight[8:12] *= 0.5  # head 2: the gate, moved into the values
        attention.v_proj.bias[8:12] *= 0.5
        attention.gate[2] = 1.0
    torch.testing.assert_close(attention(*inputs)[0], output)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_proximal_step_by_hand(optimizer_class):
    model = small_model(**GATED).train()
    gate = model.model.decoder.layers[0].encoder_attn.gate
    with torch.no_grad():
        gate.copy_(torch.tensor([0.5, -0.5, 0.001, 0.0]))
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    gate.grad = torch.tensor([0.2, 0.2, 0.0, 0.0])
    optimizer.step()
    stepped = gate.detach().clone()
    # λ = 0.2, learning rate 0.1; Adam divides by √v̂, which after one step is the gradient.
    size = 0.02 if optimizer_class is torch.optim.SGD else 0.02 / (gate.grad + 1e-8)
    expected = stepped.sign() * (stepped.abs() - size).clamp(min=0)
    model.proximal_gate_step(optimizer)
    torch.testing.assert_close(gate.detach(), expected)
    assert (gate[2:] == 0).all()


def test_gates_reach_exactly_zero_in_training():
    model = small_model(**{**GATED, "head_regularizer_weight": 2.0}, first_monotonic_layer=0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    input_features, mask = features()
    for _ in range(40):
        model(input_features, attention_mask=mask, labels=targets()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.proximal_gate_step(optimizer)
    assert list(model.gates()) == ["decoder.layers.0.encoder_attn"]
    assert (model.gates()["decoder.layers.0.encoder_attn"] == 0).any()


def test_no_gates_no_step():
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.proximal_gate_step(torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.gates() == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_head_drop_keeps_one_head_and_the_scale():
    attention = make_attention(head_drop=0.9).train()
    torch.manual_seed(0)
    scale = attention._head_scale(torch.zeros(1000, 1, 16)).squeeze((2, 3))  # (B, H)
    kept = (scale > 0).sum(1)
    assert kept.min() == 1
    assert kept.max() > 1
    torch.testing.assert_close(scale.sum(1), torch.full((1000,), 4.0))
    assert torch.equal(attention.eval()._head_scale(torch.zeros(3, 1, 16)), torch.ones(1, 4, 1, 1))


@pytest.mark.parametrize("transform", ["softmax", "sparsemax", "entmax15", "entmax"])
def test_cross_head_weights(transform):
    attention = make_attention(cross_head_transform=transform).eval()
    inputs = states()
    plain = make_attention().eval()
    plain.load_state_dict(attention.state_dict(), strict=False)
    with torch.no_grad():
        attention.cross_head.score.weight.zero_()
        torch.testing.assert_close(attention(*inputs)[0], plain(*inputs)[0])  # equal weights leave the heads alone
        attention.cross_head.score.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
        weights = attention.cross_head(inputs[0], torch.ones(2, 4, 5, 4))[..., 0]  # (B, H, U)
    torch.testing.assert_close(weights.sum(1), torch.full((2, 5), 4.0))
    assert (weights[:, 1:] == 0).all() == (transform != "softmax")


# Regularisers


@pytest.mark.parametrize("regularizer", ["gate_l1", "quantity", "group_lasso", "boundary_consensus"])
def test_a_regulariser_has_a_gradient_where_it_is_asked_for(regularizer):
    model = small_model(head_regularizer=regularizer, head_regularizer_layers=[1]).train()
    input_features, mask = features()
    output = model.model(input_features, attention_mask=mask, decoder_input_ids=targets().clamp(min=0))
    assert output.head_penalty > 0
    attention = model.model.decoder.layers[1].encoder_attn
    source = {"gate_l1": "gate", "group_lasso": "out_proj.weight"}.get(regularizer, "q_proj.weight")
    gradient = torch.autograd.grad(output.head_penalty, attention.get_parameter(source))[0]
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    assert attention.eval()(*states())[3] is None
    assert model.model.decoder.layers[0].encoder_attn.train()(*states())[3] is None


def test_regularisers_by_hand():
    def penalty(kind, energy, alignment, mask=None, target_mask=None):
        attention = make_attention(head_regularizer=kind, head_regularizer_layers=[0])
        return attention._penalty(energy, alignment, mask, target_mask)

    # Two tokens, three positions; one head stops at 0 and 1, the other at 1 and 2, of which only half by itself.
    alignment = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]], [[0, 1.0, 0], [0, 0, 1]]]])
    energy = torch.zeros(1, 2, 2, 3)  # p = 1/2
    torch.testing.assert_close(penalty("quantity", energy, alignment), torch.tensor(0.25))  # |1.5 − 2| / 2
    # Expected positions 0 1 and 1 2: each head is half a position off the mean.
    torch.testing.assert_close(penalty("boundary_consensus", energy, alignment), torch.tensor(1.0))
    mask = torch.tensor([[True, True, False]])
    cut = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]], [[0, 1.0, 0], [0, 1, 0]]]])
    torch.testing.assert_close(penalty("quantity", energy, cut, mask), torch.tensor(0.875))  # 0, ½ and ½, ¾ missing
    real = torch.tensor([[True, False]])  # the second token is padding
    torch.testing.assert_close(penalty("quantity", energy, cut, mask, real), torch.tensor(0.5))
    torch.testing.assert_close(penalty("boundary_consensus", energy, alignment, None, real), torch.tensor(1.0))

    attention = make_attention(head_regularizer="group_lasso", head_regularizer_layers=[0])
    with torch.no_grad():
        attention.out_proj.weight.zero_()[0, [0, 4, 5]] = torch.tensor([2.0, 3.0, 4.0])  # heads 0, 1, 1
    attention._penalty(energy, alignment, None).backward()
    torch.testing.assert_close(attention._penalty(energy, alignment, None).detach(), torch.tensor(7.0))
    assert attention.out_proj.weight.grad.isfinite().all()  # at the slices that are exactly 0, too


def test_a_soft_cache_is_not_read_hard():
    model = small_model(lively=True, monotonic_decoding="soft")
    input_features, _ = features(batch=1)
    cache = model(input_features, decoder_input_ids=torch.tensor([[1]])).past_key_values
    model.config.monotonic_decoding = "hard"
    with pytest.raises(ValueError, match="filled with monotonic_decoding='soft'"):
        model(input_features, decoder_input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_the_energy_bias_comes_from_the_configuration():
    attention = MonotonicAttention(small_config(), 0)
    assert attention.energy_bias.shape == (4,)
    assert (make_attention(energy_bias_init=-3.0).energy_bias == -3.0).all()

"""The monotonic attention module against the naive twins, token by token, alone and in a padded batch."""

import pytest
import torch

from hf_entmax_asr.model.cache import MonotonicLayer
from hf_entmax_asr.model.monotonic import MonotonicAttention
from reference import expected_alignment_loop, expected_soft_attention_loop, hard_stop
from support.small_models import CHUNKS, small_config

BATCH, HEADS, TARGETS, POSITIONS, WIDTH = 3, 4, 7, 12, 16
READINGS = [("soft", "threshold"), ("hard", "threshold"), ("hard", "cumulative")]
shared_stops = pytest.mark.parametrize("shared", [False, True])


def make_attention(**options) -> MonotonicAttention:
    torch.manual_seed(0)
    attention = MonotonicAttention(small_config(**options), 0).eval()
    with torch.no_grad():
        attention.energy_bias.copy_(torch.tensor([-1.0, -0.5, 0.0, -2.0]))
        for parameter in (attention.q_proj.weight, attention.k_proj.weight):
            parameter.mul_(3)  # energies of a few units: heads walk, and at different paces
        if hasattr(attention, "gate"):
            attention.gate.fill_(1.0)
    return attention


def inputs():
    torch.manual_seed(1)
    lengths = torch.tensor([POSITIONS, 7, 1])
    mask = torch.arange(POSITIONS) < lengths[:, None]
    return torch.randn(BATCH, TARGETS, WIDTH), torch.randn(BATCH, POSITIONS, WIDTH), mask


def heads(x):
    return x.view(BATCH, -1, HEADS, WIDTH // HEADS).transpose(1, 2).double()


def energies(attention, hidden, source, mask):
    """(B, H, U, S) energies of the stops, −∞ where padded, and of the soft window, all but −∞ there; float64."""
    stop = heads(attention.q_proj(hidden)) @ heads(attention.k_proj(source)).mT / 2  # √D = 2
    stop = stop + attention.energy_bias.double().view(-1, 1, 1)
    if attention.config.monotonic_shared_stops:
        stop = stop.mean(1, keepdim=True).expand_as(stop)
    window = stop
    if attention.config.monotonic_chunk_size != 1:
        window = heads(attention.window_q_proj(hidden)) @ heads(attention.window_k_proj(source)).mT / 2
    padding = ~mask[:, None, None, :]
    return stop.masked_fill(padding, -torch.inf), window.masked_fill(padding, -1e30)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("rule", ["threshold", "cumulative"])
@shared_stops
def test_hard_reading_equals_the_twin(chunk, rule, shared):
    attention = make_attention(monotonic_shared_stops=shared, monotonic_chunk_size=chunk, firing_rule=rule)
    hidden, source, mask = inputs()
    output, weights, boundaries, _ = attention(hidden, source, mask, need_weights=True)
    stop, window = energies(attention, hidden, source, mask)
    context = torch.zeros(BATCH, TARGETS, WIDTH)
    values = heads(attention.v_proj(source))
    for b in range(BATCH):
        last = int(mask[b].sum()) - 1
        for h in range(HEADS):
            position = 0
            for i in range(TARGETS):
                fired = hard_stop(stop[b, h, i].tolist(), position, rule)
                position = last if fired is None else fired
                assert boundaries[b, h, i] == position
                first = 0 if chunk is None else max(0, position - chunk + 1)
                share = window[b, h, i, first : position + 1].softmax(-1)
                expected = torch.zeros(POSITIONS, dtype=torch.float64)
                expected[first : position + 1] = share
                torch.testing.assert_close(weights[b, h, i].double(), expected, rtol=0, atol=1e-6)
                context[b, i, 4 * h : 4 * h + 4] = expected @ values[b, h]
    torch.testing.assert_close(output, attention.out_proj(context), rtol=0, atol=1e-5)
    assert len(boundaries[0].unique()) > (1 if shared else 4)  # the heads do walk


@pytest.mark.parametrize("chunk", CHUNKS)
@shared_stops
def test_soft_reading_equals_the_twin_with_every_gradient(chunk, shared):
    attention = make_attention(monotonic_shared_stops=shared, monotonic_chunk_size=chunk)
    hidden, source, mask = inputs()
    output, weights, boundaries, _ = attention.train()(hidden, source, mask)
    assert boundaries is None
    stop, window = energies(attention, hidden, source, mask)
    last = torch.nn.functional.one_hot(mask.sum(1) - 1, POSITIONS).bool()
    alignment = expected_alignment_loop(stop.masked_fill(last[:, None, None], torch.inf))
    expected = expected_soft_attention_loop(alignment, window, chunk)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=1e-6)
    context = expected @ heads(attention.v_proj(source))
    expected_output = attention.out_proj(context.transpose(1, 2).flatten(2).float())
    torch.testing.assert_close(output, expected_output, rtol=0, atol=1e-5)
    upstream = torch.randn_like(output)
    names, parameters = zip(*attention.named_parameters(), strict=True)
    ours = torch.autograd.grad(output, parameters, upstream)
    theirs = torch.autograd.grad(expected_output, parameters, upstream)
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
        assert a.abs().max() > 1e-4 or name in ("window_k_proj.bias",), name  # that one shifts a whole softmax


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("decoding", "rule"), READINGS)
@pytest.mark.parametrize("steps", [[1] * TARGETS, [3, 1, 3], [TARGETS]])
@shared_stops
def test_reading_in_steps_equals_reading_at_once(chunk, decoding, rule, steps, shared):
    attention = make_attention(
        monotonic_shared_stops=shared, monotonic_chunk_size=chunk, monotonic_decoding=decoding, firing_rule=rule
    )
    hidden, source, mask = inputs()
    output, weights, boundaries, _ = attention(hidden, source, mask, need_weights=True)
    cache, done, parts = MonotonicLayer(), 0, []
    for step in steps:
        parts.append(attention(hidden[:, done : done + step], source, mask, cache, done, need_weights=True))
        done += step
    torch.testing.assert_close(torch.cat([part[0] for part in parts], 1), output, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([part[1] for part in parts], 2), weights, rtol=0, atol=1e-6)
    if decoding == "hard":
        assert torch.equal(torch.cat([part[2] for part in parts], 2), boundaries)
    # Taking back tokens: the history of the cache goes back with them.
    again = attention(hidden[:, 2:4], source, mask, cache, 2, need_weights=True)
    torch.testing.assert_close(again[0], output[:, 2:4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("decoding", "rule"), READINGS)
def test_a_padded_batch_equals_single_utterances(chunk, decoding, rule):
    attention = make_attention(monotonic_chunk_size=chunk, monotonic_decoding=decoding, firing_rule=rule)
    hidden, source, mask = inputs()
    output, weights, boundaries, _ = attention(hidden, source, mask, need_weights=True)
    for b in range(BATCH):
        length = int(mask[b].sum())
        alone = attention(hidden[b : b + 1], source[b : b + 1, :length], need_weights=True)
        torch.testing.assert_close(output[b : b + 1], alone[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(weights[b : b + 1, ..., :length], alone[1], rtol=0, atol=1e-6)
        assert (weights[b, ..., length:] == 0).all()
        torch.testing.assert_close(weights[b].sum(-1), torch.ones(HEADS, TARGETS))
        if decoding == "hard":
            assert torch.equal(boundaries[b : b + 1], alone[2])


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("rule", ["threshold", "cumulative"])
def test_straight_through_with_noise_reads_hard_and_learns_from_the_same_noise(chunk, rule):
    attention = make_attention(monotonic_chunk_size=chunk, energy_noise_std=1.0, firing_rule=rule).train()
    hidden, source, mask = inputs()
    parameters = dict(attention.named_parameters())
    for name in ("v_proj.weight", "v_proj.bias", "out_proj.weight", "out_proj.bias"):
        del parameters[name]  # the weights of the reading do not depend on them
    upstream = torch.randn(BATCH, HEADS, TARGETS, POSITIONS)
    outcome = []
    for straight_through in (False, True):
        attention.config.monotonic_straight_through = straight_through
        torch.manual_seed(3)
        weights = attention(hidden, source, mask)[1]
        outcome.append((weights, torch.autograd.grad(weights, list(parameters.values()), upstream)))
    (soft, soft_grads), (hard, hard_grads) = outcome
    for a, b in zip(hard_grads, soft_grads, strict=True):
        assert torch.equal(a, b)
    assert (soft - hard).abs().max() > 0.1
    torch.manual_seed(3)
    stop, window = energies(attention, hidden, source, mask)
    noisy = stop + torch.randn(BATCH, HEADS, TARGETS, POSITIONS)
    if chunk == 1:
        window = noisy
    for h in range(HEADS):
        position = 0
        for i in range(TARGETS):
            fired = hard_stop(noisy[0, h, i].tolist(), position, rule)
            position = POSITIONS - 1 if fired is None else fired
            first = 0 if chunk is None else max(0, position - chunk + 1)
            expected = window[0, h, i, first : position + 1].softmax(-1)
            torch.testing.assert_close(hard[0, h, i, first : position + 1].double(), expected, rtol=0, atol=1e-6)


def test_head_drop_scales_what_is_left():
    attention = make_attention(head_drop=0.6)
    with torch.no_grad():
        attention.out_proj.weight.copy_(torch.eye(WIDTH))
        attention.out_proj.bias.zero_()
    hidden, source, mask = inputs()
    attention.config.monotonic_decoding = "soft"
    whole = heads(attention(hidden, source, mask)[0])
    seen = set()
    attention.train()
    for _ in range(20):
        factors = (heads(attention(hidden, source, mask)[0]) / whole).flatten(2)  # (B, H, U · D)
        torch.testing.assert_close(factors, factors[..., :1].expand_as(factors), rtol=1e-4, atol=1e-4)
        kept = (factors[..., 0] > 0.5).double()
        torch.testing.assert_close(factors[..., 0], kept * HEADS / kept.sum(1, keepdim=True), rtol=1e-4, atol=1e-4)
        seen |= {tuple(row) for row in kept.tolist()}
    assert len(seen) > 8  # drawn anew for every utterance and step
    assert all(any(row) for row in seen)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("decoding", ["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_modules(chunk, decoding, dtype):
    attention = make_attention(monotonic_chunk_size=chunk, monotonic_decoding=decoding).to(dtype)
    hidden, source, mask = inputs()
    for training in (False, True):
        output, weights, *_ = attention.train(training)(hidden.to(dtype), source.to(dtype), mask, need_weights=True)
        assert output.dtype == dtype
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, TARGETS))
        output.float().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in attention.parameters())

"""Patterns of encoder attention: each is its definition, in blocks and as a mask, and in a model."""

from functools import partial

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_entmax_asr.model.entmax import topk_softmax
from hf_entmax_asr.model.entmax_attention import entmax_attention
from hf_entmax_asr.model.patterns import Pattern, attend_in_pattern, layer_pattern, pattern_mask
from support.small_models import features, small_config, small_model, targets

PATTERNS = [
    *(Pattern("window", 3, 3), Pattern("window", 4, 0), Pattern("window", 0, 2), Pattern("window", 40, 40)),
    *(Pattern("stride", 4), Pattern("block", 4), Pattern("columns", 4, 2), Pattern("columns", 5, 5)),
]


def by_definition(pattern: Pattern, length: int, positions: int) -> torch.Tensor:
    """(S, S) of an utterance of `length` positions, pair by pair."""
    kind, size, right = pattern
    allowed = torch.zeros(positions, positions, dtype=torch.bool)
    for i in range(positions):
        for j in range(length):
            end = min((j // size + 1) * size, length) if size else 0
            allowed[i, j] = {
                "window": i - size <= j <= i + right,
                "stride": size and (i - j) % size == 0,
                "block": size and i // size == j // size,
                "columns": end - right <= j < end,
            }[kind]
    return allowed


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_pattern_in_blocks_is_attention_under_its_mask_and_that_is_its_definition(pattern):
    torch.manual_seed(0)
    positions, lengths = 18, torch.tensor([18, 13, 1])
    mask = (torch.arange(positions) < lengths[:, None])[:, None, None]
    expected = torch.stack([by_definition(pattern, n, positions) for n in lengths.tolist()])[:, None]
    real = mask.transpose(2, 3)  # what padding reads means nothing
    assert torch.equal(pattern_mask(pattern, mask, positions) & real, expected & real)
    assert torch.equal(pattern_mask(pattern, None, positions)[0, 0], expected[0, 0])
    inputs = [torch.randn(3, 2, positions, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    attend = partial(entmax_attention, alpha=1.4)
    context = attend_in_pattern(lambda q, k, v, m: (attend(q, k, v, mask=m), None), pattern, *inputs, mask)
    wanted = attend(*inputs, mask=expected)
    torch.testing.assert_close(context * real, wanted * real)
    grad = torch.randn(3, 2, positions, 4, dtype=torch.float64) * real
    for ours, theirs in zip(
        torch.autograd.grad(context, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_no_pattern_stores_what_grows_with_the_square_of_the_length():
    """The largest tensor that attention is given, and would make of scores."""
    positions, size, columns = 4096, 16, 4
    largest = {}
    for pattern in (Pattern("window", size, size), Pattern("stride", size), Pattern("columns", size, columns)):

        def attend(query, key, value, mask, pattern=pattern):
            scores = query.shape[0] * query.shape[2] * key.shape[2]
            largest[pattern.kind] = max(mask.numel(), scores)
            return query[..., : value.shape[3]], None

        x = torch.zeros(1, 1, positions, 1)
        attend_in_pattern(attend, pattern, x, x, x, None)
    assert largest == {
        "window": positions * 3 * size,
        "stride": positions**2 // size,
        "columns": positions**2 * columns // size,
    }


@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_two_layers_reach_everything(name):
    config = small_config(encoder_pattern=name, encoder_pattern_size=4, encoder_pattern_columns=1)
    first, second = (pattern_mask(layer_pattern(config, layer), None, 19)[0, 0].float() for layer in range(2))
    assert (second @ first > 0).all()
    assert (first > 0).float().mean() < 0.5 > (second > 0).float().mean()


@pytest.mark.parametrize("name", ["strided", "fixed"])
@pytest.mark.parametrize("transform", ["entmax", "topk"])
def test_a_model_with_a_pattern(name, transform):
    """Blocks and mask agree, padding changes nothing, maps are zero outside the pattern, and it learns."""
    options = {"encoder_pattern": name, "encoder_pattern_size": 3, "encoder_pattern_columns": 1, "attention_topk": 2}
    model = small_model(encoder_transform=transform, subsampling_layers=1, **options)
    speech, mask = features(frames=37)
    encode = model.get_encoder()
    states = encode(speech, attention_mask=mask)[0]
    with_maps = encode(speech, attention_mask=mask, output_attentions=True)
    positions = model.position_mask(mask)
    torch.testing.assert_close(with_maps[0][positions], states[positions], atol=1e-5, rtol=1e-4)
    alone = encode(speech[2:, : int(mask[2].sum())])[0]
    torch.testing.assert_close(alone[0], states[2][positions[2]], atol=1e-5, rtol=1e-4)
    for layer, maps in enumerate(with_maps.attentions):
        allowed = pattern_mask(layer_pattern(model.config, layer), positions[:, None, None], maps.shape[-1])
        assert (maps * ~allowed == 0).all()
    model(input_features=speech, attention_mask=mask, labels=targets()).loss.backward()
    assert all(p.grad is not None for name, p in encode.named_parameters() if "alpha" not in name)


def test_patterns_and_chunks_exclude_each_other():
    with pytest.raises(StrictDataclassError, match="encoder_pattern = 'dilated' is not known"):
        small_config(encoder_pattern="dilated")
    with pytest.raises(StrictDataclassError, match="encoder_pattern_size = 0 must be at least 1"):
        small_config(encoder_pattern_size=0)
    with pytest.raises(StrictDataclassError, match="encoder_chunk_size = 4 does not go with encoder_pattern = 'fixed'"):
        small_config(encoder_pattern="fixed", encoder_chunk_size=4)
    with pytest.raises(StrictDataclassError, match="encoder_pattern_columns = 9 must be at most"):
        small_config(encoder_pattern="fixed", encoder_pattern_size=8, encoder_pattern_columns=9)
    with pytest.raises(ValueError, match="no chunks can be encoded"):
        small_model(encoder_pattern="strided").get_encoder()(features()[0], encoder_chunk_size=4)


def test_topk_with_ties_is_the_rule_of_the_explicit_sparse_transformer():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    kept = torch.stack([row >= row.sort(descending=True).values[1] for row in scores])  # the k-th largest, k = 2
    expected = torch.softmax(scores.masked_fill(~kept, -torch.inf), -1)
    torch.testing.assert_close(topk_softmax(scores, 2, keep_ties=True), expected)
    assert (topk_softmax(scores, 2) > 0).sum(-1).tolist() == [2, 2]
    torch.testing.assert_close(topk_softmax(scores.T, 2, dim=0, keep_ties=True), expected.T)

"""Chunk masks of the encoder: who reads whom, in every transform and kernel, and how a model is told."""

import pytest
import torch

from hf_entmax_asr import kernels
from hf_entmax_asr.model.chunks import NO_CHUNKS, Chunks, chunk_mask, encoder_chunks
from hf_entmax_asr.model.configuration_entmax_asr import TRANSFORMS
from hf_entmax_asr.model.entmax_attention import entmax_attention
from support.small_models import features, small_config, small_model, targets

CHUNKS = [Chunks(1), Chunks(1, 0), Chunks(4), Chunks(4, 1), Chunks(7, 2), Chunks(100, 3)]


def by_definition(queries: int, keys: int, chunks: Chunks) -> torch.Tensor:
    """Query i reads key j of its chunk, or of one of the `left` chunks before it."""
    rows = []
    for i in range(queries):
        behind = [i // chunks.size - j // chunks.size for j in range(keys)]
        rows.append([d >= 0 and (chunks.left < 0 or d <= chunks.left) for d in behind])
    return torch.tensor(rows)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_the_mask_is_its_definition(chunks):
    mask = chunk_mask(chunks, torch.zeros(2, 11, 11))
    assert torch.equal(mask, by_definition(11, 11, chunks))
    padding = torch.arange(11) < torch.tensor([[11], [6]])[..., None]  # (B, 1, S)
    assert torch.equal(chunk_mask(chunks, torch.zeros(2, 11, 11), padding), mask & padding)
    assert chunk_mask(NO_CHUNKS, torch.zeros(2, 11, 11), padding) is padding


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("length", [1, 9, 70])
def test_native_attention_in_chunks_is_eager_attention_under_their_mask(chunks, length):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3)]
    alpha = torch.tensor([1.0, 1.4, 1.8], requires_grad=True)
    padding = (torch.arange(length) < torch.tensor([[length], [length // 2 + 1]]))[:, None, None]
    grad = torch.randn(2, 3, length, 8)
    found = []
    for mode, masks in (
        ("auto", {"mask": padding, "chunks": chunks}),
        ("eager", {"mask": padding & by_definition(length, length, chunks)}),
    ):
        with kernels.use(mode):
            out = entmax_attention(*inputs, alpha, **masks)
            found.append([out, *torch.autograd.grad(out, [*inputs, alpha], grad)])
    for native, eager in zip(*found, strict=True):
        torch.testing.assert_close(native, eager, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("front_end", ["conv2d", "whisper"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_no_chunk_sees_a_later_one_or_more_than_its_left_context(transform, front_end):
    options = {"encoder_transform": transform, "attention_topk": 3, "front_end": front_end}
    model = small_model(subsampling_layers=1, **options)
    speech, _ = features(batch=1, frames=60)  # 30 positions in chunks of 5
    encode = model.get_encoder()

    def states(x: torch.Tensor, left: int, maps: bool = False) -> torch.Tensor:
        return encode(x, encoder_chunk_size=5, encoder_left_chunks=left, output_attentions=maps)[0]

    for left, layers in ((-1, 2), (1, 2)):
        before = states(speech, left)
        torch.testing.assert_close(states(speech, left, maps=True), before, atol=1e-5, rtol=1e-4)
        later = speech.clone()
        later[:, 33:] += 1  # chunk 2 ends with position 14, whose convolutions end with frame 30
        assert torch.equal(states(later, left)[:, :15] == before[:, :15], torch.ones(1, 15, 16, dtype=torch.bool))
        assert not torch.allclose(states(later, left)[:, 20:], before[:, 20:])
        early = speech.clone()
        early[:, :8] += 1  # positions 0 to 4, the first chunk
        reach = 30 if left < 0 else 5 * (1 + layers * left)
        changed = (states(early, left) - before).abs().amax(-1)[0] > 1e-6
        assert not changed[reach:].any()
        if transform == "softmax":
            assert changed[:reach].all()


def test_chunks_longer_than_the_audio_change_nothing():
    model = small_model()
    speech, mask = features()
    encode = model.get_encoder()
    whole = encode(speech, mask)[0]
    torch.testing.assert_close(encode(speech, mask, encoder_chunk_size=50)[0], whole)
    assert not torch.allclose(encode(speech, mask, encoder_chunk_size=2)[0], whole)


def test_a_padded_utterance_in_chunks_is_the_utterance_alone():
    model = small_model()
    speech, mask = features()
    encode = model.get_encoder()
    together = encode(speech, mask, encoder_chunk_size=4, encoder_left_chunks=1)[0]
    for index, length in enumerate(mask.sum(1).tolist()):
        alone = encode(speech[index : index + 1, :length], encoder_chunk_size=4, encoder_left_chunks=1)[0]
        torch.testing.assert_close(together[index : index + 1, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)


def test_shared_maps_are_chunked_too():
    model = small_model(encoder_map_groups=[2])
    speech, _ = features(batch=1)
    maps = model.get_encoder()(speech, encoder_chunk_size=3, output_attentions=True).attentions
    allowed = by_definition(*maps[0].shape[-2:], Chunks(3))
    for weights in maps:
        assert not weights[..., ~allowed].any()


def test_the_configuration_and_generate_say_the_chunks():
    model = small_model(lively=True)
    speech, mask = features()
    options = {"attention_mask": mask, "max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True}
    for_one_call = model.generate(speech, encoder_chunk_size=2, encoder_left_chunks=1, **options)
    whole = model.generate(speech, **options)
    model.config.encoder_chunk_size, model.config.encoder_left_chunks = 2, 1
    configured = model.generate(speech, **options)
    assert all(torch.equal(a, b) for a, b in zip(for_one_call.scores, configured.scores, strict=True))
    assert not torch.allclose(configured.scores[0], whole.scores[0])
    again = model.generate(speech, encoder_chunk_size=0, **options)
    assert torch.equal(again.scores[0], whole.scores[0])
    plain = model.generate(speech, attention_mask=mask, max_new_tokens=8)  # the encoder runs inside transformers' own
    assert torch.equal(plain, configured.sequences)


def test_training_draws_chunks_and_evaluation_does_not():
    config = small_config(chunk_training_rate=0.5, chunk_training_sizes=[2, 4], chunk_training_left=[-1, 1])
    torch.manual_seed(0)
    drawn = [encoder_chunks(config, training=True) for _ in range(200)]
    assert set(drawn) == {NO_CHUNKS, *(Chunks(size, left) for size in (2, 4) for left in (-1, 1))}
    assert 60 < drawn.count(NO_CHUNKS) < 140
    assert encoder_chunks(config, training=False) == NO_CHUNKS
    assert encoder_chunks(config, training=True, asked={"encoder_chunk_size": 3}) == Chunks(3, -1)
    assert encoder_chunks(small_config(), training=True) == NO_CHUNKS
    model = small_model(chunk_training_rate=1.0, chunk_training_sizes=[2]).train()
    speech, mask = features()
    model(input_features=speech, attention_mask=mask, labels=targets()).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_chunk_size": -1}, "encoder_chunk_size = -1"),
        ({"encoder_left_chunks": -2}, "encoder_left_chunks = -2"),
        ({"chunk_training_rate": 1.5}, "chunk_training_rate = 1.5"),
        ({"chunk_training_sizes": []}, "chunk_training_sizes"),
        ({"chunk_training_sizes": [4, 0]}, "chunk_training_sizes"),
        ({"chunk_training_left": [-2]}, "chunk_training_left"),
    ],
)
def test_impossible_chunks_are_refused(options, message):
    with pytest.raises(Exception, match=message):
        small_config(**options)


def test_impossible_chunks_of_one_call_are_refused():
    with pytest.raises(ValueError, match="encoder_chunk_size = -3"):
        small_model().get_encoder()(features()[0], encoder_chunk_size=-3)

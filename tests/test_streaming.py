"""The incremental encoder equals the masked offline one, whatever pieces the audio comes in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.model.chunks import Chunks
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.model.streaming import IncrementalEncoder, IncrementalFeatures
from support.small_models import small_model

RATE = 16000
STATISTICS = {"cmvn_mean": [-3.0] * 12, "cmvn_std": [2.0] * 12}
EXTRACTORS = {
    "kaldi": {"cmvn": "none"},
    "kaldi global": {"cmvn": "global", **STATISTICS},
    "kaldi running": {"cmvn": "running", **STATISTICS},
    "whisper": {"kind": "whisper", "cmvn": "none", "maximum": "running"},
}
FRONT_ENDS = {
    "conv2d": {"front_end": "conv2d", "subsampling_layers": 2},
    "conv2d of one layer": {"front_end": "conv2d", "subsampling_layers": 1},
    "whisper": {"front_end": "whisper", "subsampling_layers": 1, "encoder_positions": "learned"},
    "rotary": {"front_end": "whisper", "subsampling_layers": 1, "encoder_positions": "rotary"},
}


def speech(samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose loudness rises and falls, so that running statistics move."""
    generator = np.random.default_rng(seed)
    loudness = 0.02 + 0.3 * np.sin(np.arange(samples) / 3000) ** 2
    return (loudness * generator.standard_normal(samples)).clip(-1, 1).astype(np.float32)


def pieces(audio: np.ndarray, cuts: list[float]) -> list[torch.Tensor]:
    ends = sorted(int(cut * len(audio)) for cut in cuts)
    return [torch.from_numpy(piece) for piece in np.split(audio, ends)]


@pytest.mark.parametrize("kind", EXTRACTORS)
@given(samples=st.integers(1, 9000), cuts=st.lists(st.floats(0, 1), max_size=6))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_frames_of_pieces_are_those_of_the_whole(kind, samples, cuts):
    extractor = EntmaxAsrFeatureExtractor(feature_size=12, **EXTRACTORS[kind])
    audio = speech(samples)
    whole = extractor(audio, sampling_rate=RATE, return_tensors="pt").input_features[0]
    incremental = IncrementalFeatures(extractor)
    frames = [incremental.feed(piece) for piece in pieces(audio, cuts)]
    frames.append(incremental.feed(torch.zeros(0), last=True))
    torch.testing.assert_close(torch.cat(frames), whole, atol=1e-5, rtol=1e-5)
    assert incremental.frames == len(whole)


@pytest.mark.parametrize("kind", ["kaldi running", "whisper"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
@given(
    samples=st.integers(1, 16000),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    chunks=st.tuples(st.integers(1, 20), st.sampled_from([-1, 0, 2])),
)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_states_of_pieces_are_those_of_the_whole_under_the_mask(front_end, kind, samples, cuts, chunks):
    model = small_model(**FRONT_ENDS[front_end])
    extractor = EntmaxAsrFeatureExtractor(feature_size=12, **EXTRACTORS[kind])
    audio, (size, left) = speech(samples), chunks
    batch = extractor(audio, sampling_rate=RATE, return_tensors="pt")
    whole = model.get_encoder()(**batch, encoder_chunk_size=size, encoder_left_chunks=left)[0]
    incremental = IncrementalEncoder(model.get_encoder(), extractor, Chunks(size, left))
    states = [state for piece in pieces(audio, cuts) for state in incremental.feed(piece)]
    assert all(state.shape[1] == size for state in states)
    states.append(incremental.finish())
    torch.testing.assert_close(torch.cat(states, 1), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"encoder_map_groups": [2]}, {"encoder_transform": "topk", "attention_topk": 3}])
def test_shared_maps_and_other_transforms_too(options):
    model = small_model(**options)
    extractor = EntmaxAsrFeatureExtractor(feature_size=12, cmvn="none")
    audio = speech(16000)
    whole = model.get_encoder()(
        **extractor(audio, sampling_rate=RATE, return_tensors="pt"), encoder_chunk_size=6, encoder_left_chunks=1
    )[0]
    incremental = IncrementalEncoder(model.get_encoder(), extractor, Chunks(6, 1))
    states = [*incremental.feed(torch.from_numpy(audio)), incremental.finish()]
    torch.testing.assert_close(torch.cat(states, 1), whole, atol=1e-5, rtol=1e-4)


def test_the_same_pieces_or_others_give_the_same_bits():
    model = small_model(**FRONT_ENDS["whisper"])
    extractor = EntmaxAsrFeatureExtractor(feature_size=12, **EXTRACTORS["whisper"])
    audio = speech(20000)
    found = []
    for cuts in ([], [0.5], list(np.linspace(0, 1, 40))):
        incremental = IncrementalEncoder(model.get_encoder(), extractor, Chunks(8, 2))
        states = [state for piece in pieces(audio, cuts) for state in incremental.feed(piece)]
        found.append(torch.cat([*states, incremental.finish()], 1))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("front_end", [name for name in FRONT_ENDS if name != "rotary"])
@pytest.mark.parametrize("kind", ["kaldi", "whisper"])
def test_a_chunk_is_encoded_with_the_last_sample_that_it_needs(front_end, kind):
    model = small_model(**FRONT_ENDS[front_end])
    extractor = EntmaxAsrFeatureExtractor(feature_size=12, **EXTRACTORS[kind])
    incremental = IncrementalEncoder(model.get_encoder(), extractor, Chunks(5))
    samples = torch.from_numpy(speech(20000))
    needed = incremental.samples_for(5)
    ahead_ms = (needed - 5 * incremental.stride * extractor.hop_samples) / 16
    assert ahead_ms == (2.5 if kind == "whisper" else 15) + (10 if front_end == "whisper" else 0)
    assert list(incremental.feed(samples[: needed - 1])) == []
    (states,) = incremental.feed(samples[needed - 1 : needed])
    assert states.shape == (1, 5, 16)


def test_what_is_held_does_not_grow_where_the_left_context_is_bounded():
    model = small_model()
    extractor = EntmaxAsrFeatureExtractor(feature_size=12, cmvn="none")
    held = {}
    for left in (2, -1):
        incremental = IncrementalEncoder(model.get_encoder(), extractor, Chunks(4, left))
        held[left] = []
        for _ in range(12):
            list(incremental.feed(torch.from_numpy(speech(4 * 640))))
            held[left].append(incremental.numel)
    assert len(set(held[2][4:])) == 1
    assert held[-1][-1] > held[-1][4] > held[2][4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cmvn": "utterance"}, "cmvn is 'utterance'.*features.cmvn=global"),
        ({"cmvn": "global"}, "fit_global_cmvn"),
        ({"cmvn": "none", "min_seconds": 30}, "min_seconds is 30.*feature_extractor.min_seconds = 0"),
    ],
)
def test_features_that_need_the_whole_recording_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IncrementalFeatures(EntmaxAsrFeatureExtractor(**options))


def test_a_learned_table_of_positions_says_where_it_ends():
    model = small_model(encoder_positions="learned", max_source_positions=10)
    extractor = EntmaxAsrFeatureExtractor(feature_size=12, cmvn="none")
    incremental = IncrementalEncoder(model.get_encoder(), extractor, Chunks(4))
    with pytest.raises(ValueError, match="max_source_positions = 10"):
        list(incremental.feed(torch.from_numpy(speech(16000))))

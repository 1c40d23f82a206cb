"""`generate` of an iterator, and sessions that step together: each stream gives what it gives alone, and as a whole."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.streamers import BaseStreamer

from hf_entmax_asr.metrics import lagging
from hf_entmax_asr.model.sessions import feed_together, finish_together
from hf_entmax_asr.model.streaming import IncrementalFeatures
from test_sessions import RATE, READINGS, offline, recogniser, speech, stream


class Listener(BaseStreamer):
    """Notes what it is told, and how many pieces had been asked for by then."""

    def __init__(self):
        self.told, self.pieces, self.asked, self.ended = [], [], 0, False

    def put(self, value):
        self.told += value.flatten().tolist()
        self.pieces += [self.asked] * value.numel()

    def end(self):
        self.ended = True


def pieces_of(audio, count, listener):
    for piece in np.array_split(audio, count):
        listener.asked += 1
        yield piece


@pytest.mark.parametrize("front_end", ["conv2d", "whisper"])
def test_an_iterator_of_audio_gives_the_tokens_of_the_whole_as_they_come(front_end):
    model, processor = recogniser(front_end)
    model.generation_config.max_repeats = 2
    size, audio, listener = 4 if front_end == "conv2d" else 8, speech(1.6), Listener()
    result = model.generate(
        input_features=pieces_of(audio, 9, listener),
        processor=processor,
        encoder_chunk_size=size,
        encoder_left_chunks=2,
        streamer=listener,
        return_dict_in_generate=True,
    )
    whole = offline(model, processor, audio, size, 2)
    assert listener.told == result.sequences[0].tolist() == whole.sequences[0].tolist()
    assert listener.ended
    assert len(set(listener.pieces)) > 3  # while the audio came in
    for layer, of_whole in zip(result.boundaries, whole.boundaries, strict=True):
        assert torch.equal(layer[..., :-1], of_whole[..., :-1])  # the end was cut, not read


def test_an_iterator_of_features_of_several_streams():
    model, processor = recogniser()
    audios = [speech(1.6, seed) for seed in range(3)]
    whole = processor.feature_extractor(audios, sampling_rate=RATE, return_tensors="pt").input_features
    as_they_come = IncrementalFeatures(processor.feature_extractor)
    frames = as_they_come.feed(torch.from_numpy(audios[0]))
    assert torch.equal(frames, whole[0, : len(frames)])  # what makes the pieces from audio
    asked = {"encoder_chunk_size": 4, "max_new_tokens": 9}
    tokens = model.generate(input_features=iter(whole.split(13, 1)), **asked)
    assert torch.equal(tokens, model.generate(input_features=whole, **asked))
    assert tokens.shape == (3, 10)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "encoder_chunk_size = 0 reads the whole audio at once"),
        ({"encoder_chunk_size": 4, "num_beams": 3}, "written greedily"),
        ({"encoder_chunk_size": 4, "do_sample": True}, "written greedily"),
        ({"encoder_chunk_size": 4, "attention_mask": None}, "attention_mask cannot be given"),
        ({"encoder_chunk_size": 4}, r"generate\(..., processor=processor\)"),
        ({"encoder_chunk_size": 4, "language": "auto"}, "name the language"),
    ],
)
def test_what_an_iterator_cannot_have_is_refused(asked, message):
    model, _ = recogniser()
    with pytest.raises(ValueError, match=message):
        model.generate(input_features=iter([speech(0.5)]), **asked)
    with pytest.raises(ValueError, match=r"shape \(2, 9\)"):
        model.generate(input_features=iter([np.zeros((2, 9))]), encoder_chunk_size=4)
    with pytest.raises(ValueError, match="without pieces"):
        model.generate(input_features=iter([]), encoder_chunk_size=4)


@pytest.mark.parametrize(
    ("front_end", "reading", "beams"),
    [
        ("conv2d", "single", [1, 1, 1]),
        ("whisper", "window", [1, 1, 1]),
        ("conv2d", "lookback", [1, 1, 1]),
        ("whisper", "single", [1, 3, 1]),
    ],
)
def test_sessions_that_step_together_are_each_as_alone(front_end, reading, beams):
    positions = {"conv2d": "rotary", "whisper": "learned"}[front_end]
    model, processor = recogniser(
        front_end, monotonic_chunk_size=READINGS[reading], encoder_map_groups=[2], encoder_positions=positions
    )
    audios = [speech(seconds, seed) for seed, seconds in enumerate((1.5, 0.5, 1.1))]
    options = {"chunk_ms": 160, "left_chunks": 2, "pause_ms": 300, "longest_seconds": 1.0}
    alone = [stream(model, processor, audio, num_beams=n, **options)[0] for audio, n in zip(audios, beams, strict=True)]
    together = [model.stream(processor, num_beams=n, **options) for n in beams]
    events: list[list] = [[], [], []]
    sizes = np.random.default_rng(0).integers(0, 9000, (20, 3))
    for begin, end in zip(sizes.cumsum(0) - sizes, sizes.cumsum(0), strict=True):
        fed = feed_together(together, [audio[a:b] for audio, a, b in zip(audios, begin, end, strict=True)])
        events = [old + new for old, new in zip(events, fed, strict=True)]
    finals = finish_together(together)
    for one, other, said, final in zip(alone, together, events, finals, strict=True):
        assert final.committed == one.text
        assert [token for event in [*said, final] for token in event.tokens] == list(other.tokens)
        for a, b in zip(one.tokens, other.tokens, strict=True):
            assert (a.id, a.text, a.time_ms, a.emitted_ms) == (b.id, b.text, b.time_ms, b.emitted_ms)
            assert a.score == pytest.approx(b.score, abs=1e-3)


def test_a_session_that_fails_does_not_keep_the_others_from_going_on():
    model, processor = recogniser(front_end="whisper", max_source_positions=60)
    audio = speech(1.6)
    short, long = (model.stream(processor, chunk_ms=160) for _ in range(2))
    with pytest.raises(ValueError, match="max_source_positions = 60"):
        feed_together([long, short], [audio, audio[:12000]])
    alone, _ = stream(model, processor, audio[:12000])
    assert short.tokens
    assert [token.id for token in short.tokens] == [token.id for token in alone.tokens][: len(short.tokens)]
    with pytest.raises(ValueError, match="different ones of one model"):
        finish_together([short, short])


@given(
    seed=st.integers(0, 99),
    seconds=st.floats(0.05, 1.5),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    size=st.integers(2, 9),
    left=st.sampled_from([-1, 0, 2]),
    pause_ms=st.sampled_from([None, 200]),
)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_contracts_of_a_session(seed, seconds, cuts, size, left, pause_ms):
    """Splits change nothing, text is never taken back, all of it is told, reset begins anew, and the whole audio gives
    the same."""
    model, processor = recogniser(monotonic_chunk_size=None)
    options = {"chunk_ms": 40 * size, "left_chunks": left, "pause_ms": pause_ms, "longest_seconds": 1.0}
    audio = speech(seconds, seed)
    session, events = stream(model, processor, audio, cuts, **options)
    assert all(after.committed.startswith(before.committed) for before, after in itertools.pairwise(events))
    assert [token for event in events for token in event.tokens] == list(session.tokens)
    said, delays = session.text, [token.emitted_ms for token in session.tokens]
    assert delays == sorted(delays)
    assert all(delay <= 1000 * len(audio) / RATE for delay in delays)
    if delays:
        assert session.stats().lagging == lagging(delays, 1000 * len(audio) / RATE)
    tokens = session.tokens
    session.reset()
    session.feed(audio)
    assert (session.finish().committed, session.tokens) == (said, tokens)
    if pause_ms is None:
        assert session.sequence == offline(model, processor, audio, size, left).sequences[0].tolist()


def numbers_in(thing, seen: set[int]) -> int:
    """Of all tensors, arrays and numbers that an object of ours holds, models and their parts aside."""
    if id(thing) in seen or isinstance(thing, torch.nn.Module):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor | np.ndarray):
        return thing.numel() if isinstance(thing, torch.Tensor) else thing.size
    if isinstance(thing, dict):
        return sum(numbers_in(value, seen) for value in thing.values())
    if isinstance(thing, list | tuple | set) or type(thing).__name__ == "deque":
        return sum(numbers_in(value, seen) for value in thing)
    if isinstance(thing, int | float):
        return 1
    return numbers_in(vars(thing), seen) if hasattr(thing, "__dict__") else 0


def test_nothing_that_a_session_holds_grows_but_what_it_wrote():
    model, processor = recogniser(monotonic_chunk_size=3, max_tokens_per_position=0.1)
    session = model.stream(processor, chunk_ms=640, left_chunks=2, pause_ms=300, longest_seconds=4)
    audio = np.concatenate([speech(1.5), np.zeros(RATE // 2, np.float32)])
    held = []
    for _ in range(16):
        session.feed(audio)
        parts = {name: part for name, part in vars(session).items() if name not in ("_tokens", "processor", "model")}
        held.append(numbers_in(parts, {id(session)}))
    assert len(session.tokens) > 20
    assert max(held[8:]) <= max(held[:8])

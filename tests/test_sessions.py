"""Contracts of live sessions: what a stream of audio gives is what the whole audio gives, and is never taken back."""

import asyncio
import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrProcessor
from hf_entmax_asr.recognition import decoding_as
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.small_models import small_model

RATE = 16000
TEXTS = ["the quick brown fox jumps over", "a lazy dog"]
READINGS = {"single": 1, "window": 3, "lookback": None}


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose colour and loudness change all the time."""
    generator = np.random.default_rng(seed)
    count = int(seconds * RATE)
    time = np.arange(count) / RATE
    tone = np.sin(2 * np.pi * (300 + 900 * np.sin(time * 7) ** 2) * time)
    noise = generator.standard_normal(count)
    return (0.3 * np.sin(time * 5) ** 2 * tone + 0.05 * noise).clip(-1, 1).astype(np.float32)


class Capricious(torch.nn.Module):
    """A projection whose outputs swing from state to state, so that the heads of an untrained model walk."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * torch.sin(5 * self.linear(x))


def recogniser(front_end: str = "conv2d", capricious: bool = True, **options):
    """A model whose heads walk through the audio and whose tokens vary, with its processor."""
    kind = {"kind": "whisper", "maximum": "running"} if front_end == "whisper" else {}
    extractor = EntmaxAsrFeatureExtractor(feature_size=12, cmvn="none", **kind)
    tokenizer = train_character_tokenizer(TEXTS)
    sizes = {"vocab_size": len(tokenizer), "front_end": front_end, "max_tokens_per_position": 0.3}
    if front_end == "whisper":
        sizes |= {"subsampling_layers": 1, "encoder_positions": "learned"}
    model = small_model(lively=True, **{"energy_bias_init": -0.2, **sizes, **options})
    for layer in model.get_decoder().layers if capricious else ():
        attention = layer.encoder_attn
        attention.q_proj, attention.k_proj = Capricious(attention.q_proj), Capricious(attention.k_proj)
        attention.v_proj = Capricious(attention.v_proj)
    model.generation_config.suppress_tokens = [model.config.eos_token_id]  # untrained, it would end anywhere
    return model, EntmaxAsrProcessor(extractor, tokenizer)


def stream(model, processor, audio: np.ndarray, cuts=(), **options):
    """The session, finished, and its events."""
    session = model.stream(processor, **{"chunk_ms": 160, **options})
    events = []
    for piece in np.split(audio, sorted(int(cut * len(audio)) for cut in cuts)):
        events += session.feed(piece)
    events.append(session.finish())
    return session, events


def offline(model, processor, audio: np.ndarray, size: int = 4, left: int = -1, **options):
    batch = processor.feature_extractor(audio, sampling_rate=RATE, return_tensors="pt")
    return model.generate(
        **batch,
        encoder_chunk_size=size,
        encoder_left_chunks=left,
        return_dict_in_generate=True,
        **options,
    )


@pytest.mark.parametrize("front_end", ["conv2d", "whisper"])
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("stops", [{}, {"monotonic_head_wait": 2}, {"monotonic_shared_stops": True}])
def test_a_stream_gives_the_tokens_of_the_whole_audio(front_end, reading, stops):
    model, processor = recogniser(front_end, monotonic_chunk_size=READINGS[reading], **stops)
    position_ms = 20 if front_end == "whisper" else 40
    early = 0
    for seed, left in ((0, -1), (1, 1)):
        audio = speech(2.5, seed)
        session, _ = stream(model, processor, audio, left_chunks=left)
        whole = offline(model, processor, audio, 160 // position_ms, left)
        assert session.sequence == whole.sequences[0].tolist()
        for layer, boundaries in enumerate(whole.boundaries):
            centre = 0 if front_end == "whisper" else 12.5
            times = torch.tensor([token.head_times_ms[layer] for token in session.tokens])  # (U, H)
            torch.testing.assert_close(times, boundaries[0, :, : len(session.tokens)].T * float(position_ms) + centre)
        early += session.stats().streamability > 0
    assert early  # or the test shows little


@pytest.mark.parametrize("front_end", ["conv2d", "whisper"])
@pytest.mark.parametrize(("ends_anywhere", "length_penalty"), [(True, 1.0), (False, 0.0)])
def test_beams_settle_on_the_text_of_the_whole_audio(front_end, ends_anywhere, length_penalty):
    model, processor = recogniser(front_end)
    if ends_anywhere:
        model.generation_config.suppress_tokens = None
        with torch.no_grad():
            model.lm_head.weight[model.config.eos_token_id] *= 0.5
    model.generation_config.length_penalty = length_penalty
    model.generation_config.early_stopping = bool(length_penalty)
    early = 0
    for seed in range(2):
        audio = speech(2.0, seed)
        session, events = stream(model, processor, audio, np.linspace(0, 1, 7), num_beams=3)
        whole = offline(model, processor, audio, 8 if front_end == "whisper" else 4, num_beams=3)
        assert session.sequence == whole.sequences[0].tolist()
        ids = [token.id for token in session.tokens]
        stops = torch.tensor([token.head_times_ms for token in session.tokens])
        assert stops.diff(dim=0).ge(0).all()  # of one text: no head walks back
        assert events[-1].committed == session.text == processor.tokenizer.decode(ids, skip_special_tokens=True)
        for before, after in itertools.pairwise(events):
            assert after.committed.startswith(before.committed)
        early += (session.stats().streamability or 0) > 0 and any(event.partial for event in events)
        assert session.tokens == stream(model, processor, audio, num_beams=3)[0].tokens
    assert early


class Chained(LogitsProcessor):
    """Likes some tokens behind others, as a language model does."""

    def __init__(self, vocabulary: int) -> None:
        self.liking = 3 * torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(0))

    def __call__(self, input_ids, scores):
        return scores + self.liking[input_ids[:, -1]]


@pytest.mark.parametrize("beams", [1, 3])
def test_processors_of_scores_are_those_of_generate_in_every_utterance(beams):
    model, processor = recogniser()
    liking, changed = [Chained(model.config.vocab_size)], 0
    for seed in range(3):
        audio = speech(2.0, seed)
        session, _ = stream(model, processor, audio, num_beams=beams, logits_processor=liking)
        whole = offline(model, processor, audio, num_beams=beams, logits_processor=liking)
        assert session.sequence == whole.sequences[0].tolist()
        pieces = iter(np.array_split(audio, 7))
        if beams == 1:
            asked = {"processor": processor, "encoder_chunk_size": 4, "logits_processor": liking}
            assert model.generate(input_features=pieces, **asked)[0].tolist() == session.sequence
        changed += session.sequence != stream(model, processor, audio, num_beams=beams)[0].sequence
    assert changed
    model.generation_config.ctc_weight = 0.3
    with pytest.raises(ValueError, match=r"ctc_weight = 0.3: CTC scores a text by the whole audio"):
        model.stream(processor, chunk_ms=160)


def test_beams_end_where_the_positions_of_tokens_do():
    model, processor = recogniser("whisper", decoder_positions="learned", max_target_positions=7)
    for beams in (1, 3):
        session, _ = stream(model, processor, speech(2.5), num_beams=beams)
        whole = offline(model, processor, speech(2.5), 8, num_beams=beams)
        assert session.sequence == whole.sequences[0].tolist()
        assert len(session.sequence) == 7


@given(cuts=st.lists(st.floats(0, 1), max_size=8), seed=st.integers(0, 3))
@settings(max_examples=5, deadline=None, derandomize=True)
@pytest.mark.parametrize("front_end", ["conv2d", "whisper"])
def test_any_split_gives_the_same_tokens_times_and_scores(front_end, cuts, seed):
    model, processor = recogniser(front_end)
    audio = speech(1.3, seed)
    session, events = stream(model, processor, audio, cuts)
    at_once, _ = stream(model, processor, audio)
    assert session.tokens == at_once.tokens
    assert [token for event in events for token in event.tokens] == list(session.tokens)


def test_committed_text_only_grows_and_holds_every_token():
    model, processor = recogniser()
    session, events = stream(model, processor, speech(3), np.linspace(0, 1, 30))
    assert len(events) > 3
    for before, after in itertools.pairwise(events):
        assert after.committed.startswith(before.committed)
        assert after.audio_ms >= before.audio_ms
    assert events[-1].final
    assert events[-1].committed == session.text == "".join(token.text for token in session.tokens)
    ids = [token.id for token in session.tokens]
    assert session.text == processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_characters_of_several_tokens_are_held_back():
    model, processor = recogniser()
    pieces = ["d", "d\ufffd", "dé", "dé\ufffd"]
    processor.tokenizer.decode = lambda ids, **_: pieces[min(len(ids), len(pieces)) - 1]
    session, events = stream(model, processor, speech(1))
    assert [token.text for token in session.tokens][:4] == ["d", "", "é", ""]
    assert events[-1].committed == "dé\ufffd"
    assert session.text == "dé\ufffd"


@pytest.mark.parametrize("seconds", [0.0001, 0.01, 0.16, 0.1725, 0.64, 0.9])
def test_finish_hears_the_end_whatever_the_length(seconds):
    model, processor = recogniser()
    audio = speech(seconds)
    session, _ = stream(model, processor, audio)
    whole = offline(model, processor, audio)
    assert session.tokens
    assert session.sequence == whole.sequences[0].tolist()


def test_nothing_gives_nothing():
    model, processor = recogniser()
    session, (final,) = stream(model, processor, speech(0))
    assert (final.committed, session.tokens, session.stats().real_time_factor) == ("", (), None)


def test_16_bit_integers_and_floats_are_the_same():
    model, processor = recogniser()
    integers = (speech(1) * 32768).astype(np.int16)
    floats = integers.astype(np.float32) / 32768
    assert stream(model, processor, integers)[0].tokens == stream(model, processor, floats)[0].tokens


def test_reset_is_a_new_session():
    model, processor = recogniser()
    audio = speech(1.5)
    fresh, _ = stream(model, processor, audio)
    session = model.stream(processor, chunk_ms=160)
    session.feed(speech(1.0, seed=5))
    session.reset()
    session.feed(audio)
    session.finish()
    assert session.tokens == fresh.tokens
    assert session.stats().delays_ms == fresh.stats().delays_ms


def test_sessions_in_threads_do_not_touch_each_other():
    model, processor = recogniser()
    audios = [speech(1.5, seed) for seed in range(4)]
    alone = [stream(model, processor, audio)[0].tokens for audio in audios]
    together: dict[int, tuple] = {}

    def run(index: int) -> None:
        together[index] = stream(model, processor, audios[index], np.linspace(0, 1, 9))[0].tokens

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(4)] == alone


def test_listening_asynchronously_gives_the_same_events():
    model, processor = recogniser()
    audio = speech(1.2)
    _, events = stream(model, processor, audio, [0.3, 0.6])

    async def pieces():
        for piece in np.split(audio, [int(0.3 * len(audio)), int(0.6 * len(audio))]):
            yield piece

    async def listen():
        return [event async for event in model.stream(processor, chunk_ms=160).listen(pieces())]

    assert asyncio.run(listen()) == events


def test_a_head_with_a_gate_of_0_is_not_waited_for():
    model, processor = recogniser(head_regularizer="gate_l1", head_regularizer_layers=[0, 1])
    layers = [layer.encoder_attn for layer in model.get_decoder().layers]
    with torch.no_grad():
        for layer in layers:
            layer.energy_bias[1] = -100.0  # head 1 never stops by itself
    waiting, _ = stream(model, processor, speech(2))
    assert waiting.stats().streamability == 0
    with torch.no_grad():
        for layer in layers:
            layer.gate[1] = 0.0
    session, _ = stream(model, processor, speech(2))
    assert session.stats().streamability > 0
    assert all(layer[1] is None for token in session.tokens for layer in token.head_times_ms)
    whole = offline(model, processor, speech(2))
    assert session.sequence == whole.sequences[0].tolist()


def test_waiting_for_no_head_writes_earlier():
    slow = []
    for wait in (None, 3, 0):
        model, processor = recogniser(monotonic_head_wait=wait)
        with torch.no_grad():
            model.get_decoder().layers[0].encoder_attn.energy_bias[0] -= 3
        session, _ = stream(model, processor, speech(3))
        slow.append(session.stats().streamability)
        if wait is not None:
            for token in session.tokens:
                assert all(max(layer) - min(layer) <= wait * 40 for layer in token.head_times_ms)
    assert slow[0] < slow[1] <= slow[2]


@pytest.mark.parametrize(
    ("options", "asked", "message"),
    [
        (
            {"cross_attention": "full"},
            {},
            "2 of 2 decoder layers read the whole audio.*model.cross_attention=monotonic",
        ),
        ({"first_monotonic_layer": 1}, {}, "1 of 2 decoder layers"),
        ({"monotonic_decoding": "soft"}, {}, "monotonic_decoding = 'hard'"),
        ({}, {"chunk_ms": 100}, "multiple of 40 ms.*: 80 is the nearest"),
        ({}, {"left_chunks": -2}, "left_chunks = -2"),
        ({}, {"num_beams": 0}, "num_beams = 0"),
        ({}, {"language": "auto"}, "name the language"),
        ({}, {"pause_ms": 300, "longest_seconds": 0.2}, "longest_ms = 200"),
    ],
)
def test_what_cannot_stream_is_refused(options, asked, message):
    model, processor = recogniser(**options)
    with pytest.raises(ValueError, match=message):
        model.stream(processor, **asked)


def test_features_of_the_whole_recording_are_refused():
    model, processor = recogniser()
    processor.feature_extractor.cmvn = "utterance"
    with pytest.raises(ValueError, match="cmvn is 'utterance'"):
        model.stream(processor)


def test_a_finished_session_takes_no_more():
    model, processor = recogniser()
    session, _ = stream(model, processor, speech(0.3))
    for call in (lambda: session.feed(speech(0.1)), session.finish):
        with pytest.raises(ValueError, match="reset"):
            call()


def test_heads_that_must_be_surer_stop_later_and_a_stream_still_gives_the_tokens_of_the_whole():
    late = []
    for probability in (0.3, 0.5, 0.9):
        model, processor = recogniser(monotonic_chunk_size=None, firing_rule="cumulative")
        with decoding_as(model, firing_probability=probability):
            session, _ = stream(model, processor, speech(2.5))
            assert session.sequence == offline(model, processor, speech(2.5)).sequences[0].tolist()
        assert model.config.firing_probability == 0.5
        late.append(session.tokens[0].time_ms)
    assert late[0] < late[1] < late[2]

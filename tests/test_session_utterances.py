"""Where live sessions end an utterance and begin the next: at pauses, and where the model ends a text."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor

from test_sessions import RATE, recogniser, speech, stream


def test_pauses_end_utterances_and_bound_what_is_held():
    model, processor = recogniser(front_end="whisper", max_source_positions=150)
    sentence, pause = speech(1.0), np.zeros(RATE, np.float32)
    stream_of = np.concatenate([sentence, pause] * 5)
    session = model.stream(processor, chunk_ms=160, pause_ms=300, longest_seconds=2.5)
    held, events = [], []
    for piece in np.split(stream_of, 50):
        events += session.feed(piece)
        held.append(session.stats().held_numbers)
    assert session.finish().committed.count(" ") >= 4
    assert max(held[25:]) <= max(held[:25])
    for before, after in itertools.pairwise(events):
        assert after.committed.startswith(before.committed)
    one, _ = stream(model, processor, stream_of[: int(1.5 * RATE)], pause_ms=300, longest_seconds=2.5)
    assert one.text == session.text[: len(one.text)]
    split, _ = stream(model, processor, stream_of, np.linspace(0, 1, 23), pause_ms=300, longest_seconds=2.5)
    assert split.tokens == session.tokens


@pytest.mark.parametrize("chunk_ms", [160, 1280])
def test_a_pause_within_a_chunk_ends_an_utterance(chunk_ms):
    """Both sentences are recognised as they are alone, wherever the chunks lie."""
    model, processor = recogniser("whisper")
    first, second = speech(0.83), speech(0.71, 1)
    quiet = np.zeros(int(0.4 * RATE), np.float32)
    options = {"chunk_ms": chunk_ms, "pause_ms": 300}
    both, events = stream(model, processor, np.concatenate([first, quiet, second]), [0.1, 0.5, 0.55], **options)
    ends_ms, starts_ms = 830 + 300, 830 + 300 - 150  # half of the pause, at most 200 ms, is of the next utterance
    alone, _ = stream(model, processor, np.concatenate([first, quiet[: int(0.3 * RATE)]]), chunk_ms=chunk_ms)
    then, _ = stream(model, processor, np.concatenate([quiet[: int(0.25 * RATE)], second]), chunk_ms=chunk_ms)
    assert alone.tokens
    assert then.tokens
    assert [token.id for token in both.tokens] == [token.id for token in (*alone.tokens, *then.tokens)]
    assert both.text == f"{alone.text} {then.text}"
    assert max(token.emitted_ms for token in both.tokens[: len(alone.tokens)]) <= ends_ms
    times = [token.time_ms for token in both.tokens[len(alone.tokens) :]]
    assert times == pytest.approx([starts_ms + token.time_ms for token in then.tokens])
    assert events[-1].final


@pytest.mark.parametrize("beams", [1, 3])
def test_speech_behind_an_end_that_the_model_found_is_another_utterance(beams):
    model, processor = recogniser()
    model.generation_config.suppress_tokens = None
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 0.8
    audio, options = speech(3.0), {"pause_ms": 300, "num_beams": beams}
    first, _ = stream(model, processor, audio, num_beams=beams)
    assert first.sequence[-1] == model.config.eos_token_id
    assert max(token.time_ms for token in first.tokens) < 2100  # and what follows would be lost
    whole, events = stream(model, processor, audio, **options)
    assert whole.text.startswith(first.text)
    assert max(token.time_ms for token in whole.tokens) > 2500
    for before, after in itertools.pairwise(events):
        assert after.committed.startswith(before.committed)
    assert [token for event in events for token in event.tokens] == list(whole.tokens)
    emitted = [token.emitted_ms for token in whole.tokens]
    assert emitted == sorted(emitted)
    assert emitted[-1] <= 3000
    assert whole.stats().streamability == sum(time < 3000 for time in emitted) / len(emitted)  # not those behind it
    split, _ = stream(model, processor, audio, np.linspace(0, 1, 17), **options)
    assert split.tokens == whole.tokens


class NothingAtFirst(LogitsProcessor):
    """The first text ends before it begins."""

    def __init__(self, end: int) -> None:
        self.end, self.calls = end, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        others = torch.arange(scores.shape[1]) != self.end
        return scores.masked_fill(others, -torch.inf) if self.calls == 1 else scores


@pytest.mark.parametrize("beams", [1, 3])
def test_speech_behind_an_empty_text_is_another_utterance(beams):
    """As behind noise in which the model hears nothing."""
    model, processor = recogniser()
    model.generation_config.suppress_tokens = None
    options = {"pause_ms": 300, "num_beams": beams}
    silenced = {"logits_processor": [NothingAtFirst(model.config.eos_token_id)]}
    audio = speech(3.0)
    assert stream(model, processor, audio, num_beams=beams, **silenced)[0].text == ""
    silenced["logits_processor"][0].calls = 0
    session, _ = stream(model, processor, audio, **options, **silenced)
    times = [token.time_ms for token in session.tokens]
    assert max(times) > 2500
    if beams == 1:
        assert min(times) < 2000


def test_a_long_utterance_is_cut_before_its_positions_end():
    model, processor = recogniser(front_end="whisper", max_source_positions=60)
    session, _ = stream(model, processor, speech(4), pause_ms=300, longest_seconds=1.2)
    assert session.stats().audio_seconds == 4
    with pytest.raises(ValueError, match="max_source_positions = 60"):
        stream(model, processor, speech(4))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("pause_ms", [None, 300])
def test_silence_says_nothing(beams, pause_ms):
    model, processor = recogniser()
    silence = np.zeros(3 * RATE, np.float32)
    session, _ = stream(model, processor, silence, pause_ms=pause_ms, longest_seconds=1.2, num_beams=beams)
    assert session.text == ""


def test_pauses_end_utterances_with_beams_too():
    model, processor = recogniser()
    stream_of = np.concatenate([speech(0.8), np.zeros(RATE, np.float32)] * 2 + [speech(0.4, 1)])
    options = {"pause_ms": 300, "longest_seconds": 2.5, "num_beams": 3}
    session, events = stream(model, processor, stream_of, np.linspace(0, 1, 17), **options)
    for before, after in itertools.pairwise(events):
        assert after.committed.startswith(before.committed)
    assert session.text.count(" ") >= 2
    assert not events[-1].partial
    assert session.tokens == stream(model, processor, stream_of, **options)[0].tokens
    one, _ = stream(model, processor, stream_of[: int(1.8 * RATE)], **options)
    assert one.text
    assert session.text.startswith(one.text)

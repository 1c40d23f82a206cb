"""scripts/stream.py: a file, and raw samples on the standard input, give the same text."""

import io
import json
import sys

import numpy as np
import pytest
import soundfile

from support.language_models import make_ngrams, needs_kenlm, write_arpa
from test_sessions import RATE, recogniser, speech


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, processor = recogniser(capricious=False)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    soundfile.write(path, speech(1.2), RATE, subtype="PCM_16")
    return path


def test_a_file_and_the_standard_input_give_the_same_text(call, checkpoint, recording, monkeypatch):
    status, text, said = call("stream", checkpoint, recording, "--chunk-ms", 160, "--left-chunks", 2)
    assert status == 0
    assert text.endswith("\n")
    assert len(text) > 2
    assert "1.2 s of audio, real-time factor" in said
    samples, _ = soundfile.read(recording, dtype="int16")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(samples.astype("<i2").tobytes())))
    assert call("stream", checkpoint, "-", "--chunk-ms", 160, "--left-chunks", 2)[:2] == (0, text)


def test_tokens_and_events(call, checkpoint, recording):
    text = call("stream", checkpoint, recording, "--chunk-ms", 160, "--head-wait", 0)[1]
    lines = call("stream", checkpoint, recording, "--chunk-ms", 160, "--head-wait", 0, "--tokens")[1].splitlines()
    assert len(lines) >= len(text.strip())
    assert all("heard" in line for line in lines)
    events = call("stream", checkpoint, recording, "--chunk-ms", 160, "--head-wait", 0, "--json")[1].splitlines()
    assert json.loads(events[-1])["committed"] == text.rstrip("\n")


def test_silence_and_what_is_refused(call, checkpoint, recording, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    status, text, said = call("stream", checkpoint, tmp_path / "silence.wav")
    assert (status, text.strip()) == (0, "")
    assert "no text" in said
    status, text, said = call("stream", checkpoint, recording, "--chunk-ms", 50)
    assert (status, text) == (1, "")
    assert "multiple of 40 ms" in said


@needs_kenlm
def test_a_language_model(call, checkpoint, recording, tmp_path):
    arpa = write_arpa(tmp_path / "lm.arpa", make_ngrams([["a", "be"], ["be", "a"]]))
    asked = ("stream", checkpoint, recording, "--chunk-ms", 160)
    alone, fused = call(*asked)[1], call(*asked, "--lm", arpa, "--lm-weight", 20)[1]
    assert set(fused.split()) <= {"a", "be", "b"}  # the last may be cut by the limit of the audio
    assert fused != alone
    status, text, said = call(*asked, "--lm", tmp_path / "none.arpa")
    assert (status, text) == (1, "")
    assert "none.arpa" in said

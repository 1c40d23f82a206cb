"""What the page of scripts/app.py shows and does, without gradio."""

import base64
import itertools
import json
import re
import struct
import zlib

import numpy as np
import pytest
import soundfile

from conftest import script
from hf_entmax_asr.recognition.live_page import Hearing, why_not_live, words_of_tokens
from hf_entmax_asr.recognition.page_picture import picture, png, spectrogram
from test_sessions import RATE, recogniser, speech


@pytest.fixture(scope="module")
def live():
    model, processor = recogniser(decoder_layers=2, decoder_attention_heads=2)
    return model, processor


@pytest.fixture(scope="module")
def heard(live):
    hearing = Hearing(*live)
    texts = [hearing.hear(RATE, piece) for piece in np.array_split(speech(4.0), 9)]
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    return hearing.finish()


def test_a_page_hears_what_a_session_writes(live, heard):
    model, processor = live
    with model.stream(processor, pause_ms=600) as session:
        session.feed(speech(4.0))
        text = session.finish().committed
        tokens = session.tokens
    assert heard.text == text
    assert text.strip()
    np.testing.assert_allclose(heard.waveform, speech(4.0), atol=1e-6)
    assert " ".join(item.word.text for item in heard.words) == " ".join(text.split())
    spelled = [token for token in tokens if token.text.strip()]
    assert all(set(item.stops) == {"0.0", "0.1", "1.0", "1.1"} for item in heard.words)
    assert list(heard.words[-1].stops.values()) == pytest.approx(
        [time / 1000 for layer in spelled[-1].head_times_ms for time in layer]
    )


def test_the_heads_of_word_times_tell_the_times(live):
    model, processor = live
    with model.stream(processor) as session:
        session.feed(speech(4.0))
        session.finish()
        tokens = session.tokens
    settings = {"source": "stops", "start": [0, 1], "end": [1, 0], "end_at": "same", "end_offset_ms": 50}
    model.generation_config.word_times = settings
    try:
        first = words_of_tokens(model, processor.tokenizer, tokens)[0]
    finally:
        del model.generation_config.word_times
    spelled = [token for token in tokens if token.text.strip()]
    assert first.word.start == pytest.approx(spelled[0].head_times_ms[0][1] / 1000)


def test_other_rates_integers_and_channels_are_the_same_recording(live):
    hearing = Hearing(*live)
    wave = (speech(2.0) * 32767).astype(np.int16)
    for piece in np.array_split(np.stack([wave, wave], axis=1), 7):
        hearing.hear(2 * RATE, piece)
    heard = hearing.finish()
    assert len(heard.waveform) == len(wave) // 2
    with pytest.raises(ValueError, match="longer than 1800 s"):
        hearing.hear(1, np.zeros(1801, np.float32))


def test_a_model_that_cannot_write_early_hears_the_whole():
    model, processor = recogniser(capricious=False, cross_attention="full")
    assert "read the whole audio" in why_not_live(model)
    hearing = Hearing(model, processor)
    assert hearing.hear(RATE, speech(1.5)) == ""
    heard = hearing.finish()
    assert " ".join(item.word.text for item in heard.words) == " ".join(heard.text.split())
    assert all(not item.stops for item in heard.words)
    assert Hearing(model, processor).finish().text == ""


def test_the_picture_has_every_word_and_stop(heard):
    shown = picture(heard, np.random.default_rng(0).normal(size=(400, 12)), "file=<a>.wav", {"SRT": "a&b"})
    assert shown.count("data-start=") == len(heard.words)
    assert shown.count("<circle") == sum(len(item.stops) for item in heard.words)
    assert 'src="file=&lt;a&gt;.wav"' in shown
    assert '<a download href="a&amp;b">SRT</a>' in shown
    starts = [float(start) for start in re.findall(r'data-start="([\d.]+)"', shown)]
    assert starts == pytest.approx([item.word.start for item in heard.words], abs=1e-3)
    assert "width:480px" in shown


def test_a_spectrogram_is_a_png_with_low_frequencies_below():
    pixels = spectrogram(np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
    assert pixels.shape == (2, 3)
    assert pixels[1, 0] == 0
    assert pixels[0, 2] == 255
    content = png(pixels)
    assert struct.unpack(">II", content[16:24]) == (3, 2)
    at = content.index(b"IDAT")
    (length,) = struct.unpack(">I", content[at - 4 : at])
    assert zlib.decompress(content[at + 4 : at + 4 + length]) == b"".join(b"\0" + row.tobytes() for row in pixels)


def test_a_page_writes_files_to_download(live, tmp_path):
    app = script("app")
    page = app.Page(*live, tmp_path)
    soundfile.write(tmp_path / "said.wav", speech(2.0), RATE)
    *partial, (text, shown) = page.upload(str(tmp_path / "said.wav"))
    assert [shown for _, shown in partial] == ["", ""]
    record, srt = (next(tmp_path.rglob(f"*/said.{form}")) for form in ("json", "srt"))
    written = json.loads(record.read_text())
    assert (written["file"], written["text"], written["seconds"]) == ("said.wav", text, 2.0)
    assert srt.read_text().startswith("1\n00:00:0")
    assert f'href="gradio_api/file={srt}"' in shown


def test_a_microphone_is_heard_piece_by_piece(live, tmp_path):
    page = script("app").Page(*live, tmp_path)
    samples = (speech(2.0) * 32767).astype("<i2")
    for piece in np.split(samples, 8):
        given = {"key": "a", "rate": RATE, "samples": base64.b64encode(piece.tobytes()).decode()}
        said = page.hear(given)
        page.hear(given | {"key": "b"})
    result = page.finish({"key": "a"})
    assert result["text"].startswith(said)
    assert result["text"].strip()
    assert "<audio" in result["html"]
    assert page.finish({"key": "a"}) == {"text": "", "html": ""}
    assert page.finish({"key": "b"})["text"] == result["text"]


def test_a_space_has_all_that_the_page_needs(monkeypatch, capsys, tmp_path):
    app = script("app")
    monkeypatch.setattr(app.importlib.metadata, "version", lambda name: "1.2.3+cpu")
    checkpoint = tmp_path / "best"
    (checkpoint / "training_state").mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["app.py", str(checkpoint), "--space", str(tmp_path / "space")])
    assert app.main() == 0
    made = {path.name for path in (tmp_path / "space").iterdir()}
    assert made == {"app.py", "hf_entmax_asr", "requirements.txt", "README.md", "checkpoint"}
    assert [path.name for path in (tmp_path / "space" / "checkpoint").iterdir()] == ["config.json"]
    assert "torch==1.2.3\n" in (tmp_path / "space" / "requirements.txt").read_text()
    assert "sdk_version: 1.2.3" in (tmp_path / "space" / "README.md").read_text()
    app.make_space("owner/name", tmp_path / "other")
    monkeypatch.setattr(app, "__file__", str(tmp_path / "other" / "app.py"))
    assert app.found_checkpoint() == "owner/name"

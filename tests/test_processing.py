"""The processor: audio and text to model inputs, and a saved copy that needs neither the package nor a prompt."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_entmax_asr import EntmaxAsrConfig, EntmaxAsrForConditionalGeneration
from hf_entmax_asr.corpora import load_folder
from hf_entmax_asr.model import pipeline_entmax_asr
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.apart import run_apart

RATE = 16000
SPEECH, _ = soundfile.read(Path(__file__).parent / "speech.flac", dtype="float32")
TEXT = "he was not an ill disposed young man"


@pytest.fixture(scope="module")
def processor() -> EntmaxAsrProcessor:
    return EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(), train_character_tokenizer([TEXT]))


def test_audio_and_text(processor):
    texts = [TEXT, "he was"]
    inputs = processor(audio=[SPEECH, SPEECH[:8000]], text=texts, sampling_rate=RATE)
    assert list(inputs) == processor.model_input_names == ["input_features", "attention_mask", "labels"]
    expected = processor.feature_extractor([SPEECH, SPEECH[:8000]], sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(inputs["input_features"], expected["input_features"])
    assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
    ids = processor.tokenizer(texts).input_ids
    assert inputs["labels"].tolist() == [ids[0], ids[1] + [-100] * (len(ids[0]) - len(ids[1]))]
    assert ids[1][-1] == processor.tokenizer.eos_token_id


def test_one_recording_and_one_text(processor):
    inputs = processor(SPEECH, TEXT, sampling_rate=RATE)
    assert inputs["input_features"].shape == (1, 297, 80)
    assert inputs["labels"].tolist() == [processor.tokenizer(TEXT).input_ids]
    assert processor.decode(inputs["labels"][0], skip_special_tokens=True) == TEXT
    assert processor.batch_decode(inputs["labels"], skip_special_tokens=True) == [TEXT]


def test_audio_alone_and_text_alone(processor):
    assert list(processor(audio=SPEECH, sampling_rate=RATE)) == ["input_features", "attention_mask"]
    encoded = processor(text=[TEXT, "he"])
    assert encoded["input_ids"].shape == encoded["attention_mask"].shape == (2, len(TEXT) + 1)
    assert encoded["attention_mask"].sum(dim=1).tolist() == [len(TEXT) + 1, 3]


def test_options_reach_the_right_one(processor):
    inputs = processor(
        audio=SPEECH,
        text=TEXT,
        sampling_rate=RATE,
        audio_kwargs={"padding": "max_length", "max_length": 400, "return_tensors": "np"},
        text_kwargs={"truncation": True, "max_length": 10, "return_tensors": None},
    )
    assert isinstance(inputs["input_features"], np.ndarray)
    assert inputs["input_features"].shape == (1, 400, 80)
    assert isinstance(inputs["labels"], list)
    assert len(inputs["labels"][0]) == 10
    assert inputs["labels"][0][-1] == processor.tokenizer.eos_token_id
    inputs = processor(audio=[SPEECH], text=["he"], sampling_rate=RATE, return_attention_mask=False)
    assert list(inputs) == ["input_features", "labels"]
    assert inputs["labels"].shape == (1, 3)


def test_errors(processor):
    with pytest.raises(ValueError, match="give audio, text or both"):
        processor()
    with pytest.raises(ValueError, match="2 recordings but 1 texts"):
        processor(audio=[SPEECH, SPEECH], text=TEXT, sampling_rate=RATE)
    with pytest.raises(ValueError, match="8000 Hz, this extractor needs 16000 Hz"):
        processor(audio=SPEECH, sampling_rate=8000)
    with pytest.raises(ValueError, match="raw_speech is empty"):
        processor(audio=[], sampling_rate=RATE)
    with pytest.raises(TypeError, match="str for argument tokenizer"):
        EntmaxAsrProcessor(processor.feature_extractor, "tokenizer")


def test_saved_and_loaded_with_the_package(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), EntmaxAsrProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is EntmaxAsrProcessor
        assert type(loaded.feature_extractor) is EntmaxAsrFeatureExtractor
        assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
        assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is EntmaxAsrFeatureExtractor
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT).input_ids == processor.tokenizer(TEXT).input_ids
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["auto_map"] == {"AutoProcessor": "processing_entmax_asr.EntmaxAsrProcessor"}
    assert "feature_extraction_entmax_asr" in config["feature_extractor"]["auto_map"]["AutoFeatureExtractor"]
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.pkl"))


WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["hf_entmax_asr"] = None  # importing it now fails
import soundfile
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer

first, second, again, audio, text = sys.argv[1:]
speech, rate = soundfile.read(audio, dtype="float32")
processor = AutoProcessor.from_pretrained(first, trust_remote_code=True)
processor.save_pretrained(again)
results = []
for folder in (first, again, second):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(audio=speech, text=text, sampling_rate=rate)
    assert (extractor(speech, sampling_rate=rate, return_tensors="pt").input_features == inputs.input_features).all()
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(text).input_ids == inputs.labels[0].tolist()
    total = inputs.input_features.double().abs().sum().item()
    results.append([type(processor).__module__, total, inputs.labels.tolist()])
print(json.dumps(results))
"""


def test_saved_and_loaded_without_the_package(processor, tmp_path):
    first, second, again = tmp_path / "first", tmp_path / "second", tmp_path / "again"
    for folder in (first, second):
        processor.save_pretrained(folder)
        EntmaxAsrConfig(vocab_size=len(processor.tokenizer)).save_pretrained(folder)
    # A second checkpoint, whose code differs, must be read with its own code.
    code = second / "feature_extraction_entmax_asr.py"
    code.write_text(code.read_text().replace("PREEMPHASIS = 0.97", "PREEMPHASIS = 0.0"))
    audio = Path(__file__).parent / "speech.flac"
    output = run_apart(WITHOUT_THE_PACKAGE, first, second, again, audio, TEXT, folder=tmp_path)
    assert output.returncode == 0, output.stderr
    results = json.loads(output.stdout.splitlines()[-1])
    here = processor(audio=SPEECH, text=TEXT, sampling_rate=RATE)
    total = here["input_features"].double().abs().sum().item()
    for module, absolute_sum, labels in results:
        assert module.startswith("transformers_modules.")
        assert labels == here["labels"].tolist()
        assert (absolute_sum == pytest.approx(total, rel=1e-6)) == ("second" not in module)


@pytest.fixture(scope="module")
def model(processor) -> EntmaxAsrForConditionalGeneration:
    torch.manual_seed(0)
    config = EntmaxAsrConfig(
        vocab_size=len(processor.tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    return EntmaxAsrForConditionalGeneration(config).eval()


# The pipeline's default is 5 beams; an untrained model must be kept from special tokens to say anything.
OPTIONS = {"generate_kwargs": {"max_new_tokens": 12, "num_beams": 1, "suppress_tokens": [0, 1, 2, 3]}}


@pytest.fixture
def transcribe(model, processor):
    return pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )


def test_the_stock_pipeline(model, processor, transcribe):
    inputs = processor(audio=SPEECH, sampling_rate=RATE)
    ids = model.generate(**inputs, **OPTIONS["generate_kwargs"])
    expected = processor.decode(ids[0], skip_special_tokens=True)
    assert len(expected) == 12
    assert transcribe(SPEECH.copy(), **OPTIONS)["text"] == expected
    stereo = {"raw": np.stack([SPEECH, SPEECH]), "sampling_rate": RATE}
    assert transcribe(stereo, **OPTIONS)["text"] == expected
    # The last piece of 1.49 s steps over 2.99 s is 10 ms: shorter than a window.
    pieces = transcribe(SPEECH.copy(), chunk_length_s=1.49, stride_length_s=0.0, **OPTIONS)
    assert isinstance(pieces["text"], str)
    both = transcribe([SPEECH.copy(), SPEECH[:8000].copy()], batch_size=2, **OPTIONS)
    assert [one["text"] for one in both] == [expected, transcribe(SPEECH[:8000].copy(), **OPTIONS)["text"]]


def test_the_stock_pipeline_takes_the_rows_of_a_folder(transcribe, tmp_path):
    for split, samples in (("train", SPEECH[:16000]), ("test", SPEECH)):
        (tmp_path / split).mkdir()
        soundfile.write(tmp_path / split / "a.wav", samples, RATE, subtype="FLOAT")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\na.wav,{TEXT}\n")
    expected = [transcribe(samples.copy(), **OPTIONS) for samples in (SPEECH, SPEECH[:16000])]
    rows = load_folder(tmp_path, decode_audio=True)
    assert list(transcribe(KeyDataset(rows["test"], "audio"), **OPTIONS)) == expected[:1]
    assert rows["test"]["text"][0] == rows["test"][0]["text"] == TEXT
    stream = load_folder(tmp_path, streaming=True, decode_audio=True)["train"]
    assert [row["text"] for row in stream] == [TEXT]
    assert list(transcribe((row["audio"] for row in stream), **OPTIONS)) == expected[1:]


def test_the_package_s_pipeline_takes_rows_that_are_not_decoded(model, processor, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", SPEECH, RATE, subtype="FLOAT")
    content = (tmp_path / "a.wav").read_bytes()
    read = lambda given, rate: soundfile.read(io.BytesIO(given), dtype="float32")[0]  # noqa: E731
    monkeypatch.setattr(pipeline_entmax_asr, "ffmpeg_read", read)  # which is not installed everywhere
    recognise = pipeline_entmax_asr.EntmaxAsrPipeline(
        model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    expected = recognise(SPEECH.copy(), **OPTIONS)
    for row in ({"path": str(tmp_path / "a.wav"), "bytes": None}, {"path": "elsewhere", "bytes": content}):
        assert recognise(row, **OPTIONS) == expected

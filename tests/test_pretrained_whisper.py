"""A converted Whisper computes what transformers' Whisper computes, and everything of the package works on it.

HF_ENTMAX_ASR_WHISPER may name folders of real checkpoints (with ":" between them), which are then compared too.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, WhisperForConditionalGeneration, pipeline

from hf_entmax_asr import EntmaxAsrConfig, EntmaxAsrFeatureExtractor
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.model.prompts import prompt_ids
from hf_entmax_asr.pretrained import NotWhisperError, convert_whisper, converted_card
from hf_entmax_asr.recognition.inspection import analyze
from support.small_models import small_model
from support.small_whisper import SHAPES, make_whisper
from support.tones import write_splits

RATE = 16_000
SPEECH, _ = soundfile.read(Path(__file__).parent / "speech.flac", dtype="float32")


def waves(*seconds: float) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [(0.2 * generator.standard_normal(int(RATE * s))).astype(np.float32) for s in seconds]


@pytest.fixture(scope="module", params=[*SHAPES, *filter(None, os.environ.get("HF_ENTMAX_ASR_WHISPER", "").split(":"))])
def whisper(request, tmp_path_factory):
    if request.param not in SHAPES:
        return Path(request.param)
    return make_whisper(tmp_path_factory.mktemp("whisper") / request.param, **SHAPES[request.param])


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp("whisper") / "english")


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp("whisper") / "multilingual", **SHAPES["multilingual"])


def both(folder, **settings):
    """Whisper, what became of it, and features of two recordings for each of them."""
    theirs = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    ours, processor = convert_whisper(folder, **settings)
    batch = processor([SPEECH, SPEECH[: len(SPEECH) // 2]], sampling_rate=RATE, return_tensors="pt")
    return theirs, ours, processor, batch


def test_features_are_whispers(whisper):
    theirs = AutoProcessor.from_pretrained(whisper, trust_remote_code=False)
    _, processor = convert_whisper(whisper)
    extractor = getattr(theirs, "feature_extractor", theirs)
    audio = waves(0.001, 0.7, 30.0, 29.999)
    expected = extractor(audio, sampling_rate=RATE, return_tensors="pt").input_features.transpose(1, 2)
    features = processor(audio, sampling_rate=RATE, return_tensors="pt").input_features
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_a_recording_has_the_same_features_alone_and_in_a_batch():
    extractor = EntmaxAsrFeatureExtractor(kind="whisper", cmvn="none")
    audio = waves(0.4, 1.234)
    together = extractor(audio, sampling_rate=RATE, return_tensors="pt")
    for index, waveform in enumerate(audio):
        alone = extractor(waveform, sampling_rate=RATE, return_tensors="pt").input_features[0]
        assert len(alone) == extractor.num_frames(len(waveform)) == together.attention_mask[index].sum()
        assert torch.equal(together.input_features[index, : len(alone)], alone)


@pytest.mark.parametrize("settings", [{"cmvn": "utterance"}, {"cmvn": "none", "hop_ms": 20}, {"kind": "mfcc"}])
def test_other_features_are_refused(settings):
    with pytest.raises(ValueError, match="whisper"):
        EntmaxAsrFeatureExtractor(**{"kind": "whisper", **settings})


def test_logits_and_tokens_are_whispers(whisper):
    theirs, ours, _, batch = both(whisper)
    features = batch["input_features"].transpose(1, 2)
    tokens = torch.randint(0, theirs.config.vocab_size, (2, 6))
    with torch.no_grad():
        expected = theirs(features, decoder_input_ids=tokens).logits
        found = ours(**batch, decoder_input_ids=tokens).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    options = {"language": "en", "task": "transcribe"} if ours.generation_config.is_multilingual else {}
    for beams in (1, 5):
        expected = theirs.generate(
            features, num_beams=beams, max_new_tokens=12, attention_mask=torch.ones_like(features[:, 0]), **options
        )
        found = ours.generate(**batch, num_beams=beams, max_new_tokens=12)
        end, given = ours.config.eos_token_id, 1 + len(ours.config.decoder_prompt_ids)
        for ours_row, theirs_row in zip(found[:, given:].tolist(), expected.tolist(), strict=True):
            text = [token for token in ours_row if token != end]
            # transformers 5 leaves the prompt out where it made it itself, and may leave the end out.
            assert [token for token in theirs_row if token != end][-len(text) :] == text
        assert len(found.unique()) > 3  # else it proves little


def test_a_language_and_a_task_can_be_asked_for(multilingual):
    _, ours, _, batch = both(multilingual, language="de", task="translate")
    settings = ours.generation_config
    ids = {"language": settings.lang_to_id["<|de|>"], "task": settings.task_to_id["translate"]}
    assert ours.config.decoder_prompt_ids == [ids["language"], ids["task"], settings.no_timestamps_token_id]
    assert ours.generate(**batch)[0, 1:4].tolist() == ours.config.decoder_prompt_ids
    assert ours.generate(**batch, language="zh")[0, 1].item() == settings.lang_to_id["<|zh|>"]
    detected = ours.generate(**batch, language="auto")[:, 1]
    with torch.no_grad():
        start = torch.full((2, 1), ours.config.decoder_start_token_id)
        logits = ours(**batch, decoder_input_ids=start).logits[:, 0]
    languages = sorted(settings.lang_to_id.values())
    assert detected.tolist() == [languages[i] for i in logits[:, languages].argmax(1)]


def test_unknown_languages_and_tasks_name_the_known_ones(english, multilingual):
    with pytest.raises(ValueError, match=r"language = 'xx' is not known to this model. Use one of: de, en, zh"):
        convert_whisper(multilingual, language="xx")
    with pytest.raises(ValueError, match="task = 'sing' is not known"):
        convert_whisper(multilingual, task="sing")
    with pytest.raises(ValueError, match="no tokens for languages and tasks"):
        convert_whisper(english, language="de")
    model, processor = convert_whisper(english)
    with pytest.raises(ValueError, match="no languages to choose from"):
        model.generate(**processor(waves(1.0), sampling_rate=RATE), language="auto")
    assert prompt_ids(model.generation_config) == list(model.config.decoder_prompt_ids)


def test_texts_become_labels_without_the_prompt(english):
    model, processor = convert_whisper(english)
    text = "The quick fox, please."
    labels = processor.tokenizer(text).input_ids
    assert labels[-1] == model.config.eos_token_id
    assert not set(labels[:-1]) & {model.config.decoder_start_token_id, *model.config.decoder_prompt_ids}
    assert processor.tokenizer.decode(labels, skip_special_tokens=True) == text


def test_the_prompt_is_given_and_never_predicted(english):
    model, processor = convert_whisper(english, ctc_loss_weight=0.3)
    batch = processor(waves(1.0, 2.0), text=["the fox", "five dozen jugs"], sampling_rate=RATE)
    inputs = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    given = [model.config.decoder_start_token_id, *model.config.decoder_prompt_ids]
    assert inputs[:, : len(given)].tolist() == [given] * 2
    outputs = model(**batch)
    assert outputs.logits.shape[1] == batch["labels"].shape[1]
    explicit = model(**{**batch, "decoder_input_ids": inputs})
    real = batch["labels"] != -100
    torch.testing.assert_close(outputs.logits[real], explicit.logits[real])
    outputs.loss.backward()
    assert model.ctc_head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("chunk", [None, 4, 1])
def test_monotonic_heads_start_as_whispers_attention(english, chunk):
    full, processor = convert_whisper(english)
    settings = {"cross_attention": "monotonic", "monotonic_chunk_size": chunk, "energy_bias_init": -50.0}
    model, _ = convert_whisper(english, **settings)
    batch = processor(waves(1.0), sampling_rate=RATE)
    tokens = torch.randint(0, 200, (1, 5))
    with torch.no_grad():
        expected, found = (each(**batch, decoder_input_ids=tokens).logits for each in (full, model))
    if chunk is None:  # all heads stop at the end, and the window is all of the audio
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    layer = model.model.decoder.layers[0].encoder_attn
    if chunk != 1:
        assert torch.equal(layer.window_q_proj.weight, layer.q_proj.weight)


def test_saved_and_loaded_it_is_the_same_and_works_in_the_pipeline(multilingual, tmp_path):
    model, processor = convert_whisper(multilingual, encoder_transform="entmax", cross_attention="monotonic")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path).eval()
    batch = AutoProcessor.from_pretrained(tmp_path)(waves(1.0, 0.5), sampling_rate=RATE)
    assert torch.equal(again.generate(**batch), model.generate(**batch))
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path))
    options = {"num_beams": 1, "max_new_tokens": 20}
    text = recognise({"raw": waves(1.0)[0], "sampling_rate": RATE}, generate_kwargs=dict(options))["text"]
    tokens = model.generate(**processor(waves(1.0), sampling_rate=RATE), **options)[0]
    assert text == processor.decode(tokens, skip_special_tokens=True)
    translated = recognise({"raw": waves(1.0)[0], "sampling_rate": RATE}, generate_kwargs={"task": "translate"})
    assert isinstance(translated["text"], str)


def test_learned_positions_end_somewhere(english):
    model, processor = convert_whisper(english, max_tokens_per_position=1.0)
    batch = processor(waves(1.0), sampling_rate=RATE)
    assert model.generate(**batch, max_new_tokens=1000, eos_token_id=-1).shape[1] == model.config.max_target_positions
    with pytest.raises(ValueError, match="41 tokens are more than max_target_positions = 40"):
        model(**batch, decoder_input_ids=torch.ones(1, 41, dtype=torch.long))


def test_what_is_no_whisper_is_refused_by_name(english, tmp_path):
    with pytest.raises(NotWhisperError, match="holds no configuration"):
        convert_whisper(tmp_path)
    small_model().save_pretrained(tmp_path / "ours")
    with pytest.raises(NotWhisperError, match="is a 'entmax_asr' checkpoint, not a 'whisper' one"):
        convert_whisper(tmp_path / "ours")
    with pytest.raises(ValueError, match="d_model: fixed by the Whisper checkpoint"):
        convert_whisper(english, d_model=32)


def copy_of(folder, target):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_damaged_weights_are_refused(english, tmp_path):
    cut = copy_of(english, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(NotWhisperError, match=r"the weights of .* cannot be read"):
        convert_whisper(cut)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "config.json is a pipe"),
        ("generation_config.json", "{", "generation_config.json is not JSON"),
        ("generation_config.json", {"suppress_tokens": [-1]}, "generation_config.json: suppress_tokens is '[-1]'"),
        ("generation_config.json", {"is_multilingual": 1}, "generation_config.json: is_multilingual is '1'"),
        ("generation_config.json", {"lang_to_id": {"<|en|>": -1}}, "generation_config.json: lang_to_id is"),
        ("preprocessor_config.json", {"hop_length": 80}, "preprocessor_config.json: hop_length is 80"),
        ("tokenizer.json", {"model": 3}, "tokenizer.json: "),
    ],
)
def test_damaged_settings_are_named(english, tmp_path, file, content, said):
    odd = copy_of(english, tmp_path / "odd")
    if content is None:
        (odd / file).unlink()
        os.mkfifo(odd / file)
    elif isinstance(content, dict):
        (odd / file).write_text(json.dumps(json.loads((odd / file).read_text()) | content))
    else:
        (odd / file).write_text(content)
    with pytest.raises(NotWhisperError, match=re.escape(said)) as error:
        convert_whisper(odd)
    assert "\n" not in str(error.value)


def test_weights_that_are_no_fractions_or_no_numbers_are_refused(english, tmp_path):
    odd = copy_of(english, tmp_path / "odd")
    name = "model.encoder.layer_norm.weight"
    for change, said in (
        (lambda t: t > 0, "holds numbers of type BOOL"),
        (lambda t: t * float("nan"), "holds NaN or infinite numbers"),
        (lambda t: t[:3], "has other sizes than its config.json says"),
    ):
        tensors = load_file(english / "model.safetensors")
        save_file(tensors | {name: change(tensors[name])}, odd / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(NotWhisperError, match=said):
            convert_whisper(odd)


def test_another_tokenizer_is_refused(english, tmp_path):
    odd = copy_of(english, tmp_path / "odd")
    tokenizer = json.loads((odd / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 5000, "content": "<|new|>"})
    (odd / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(NotWhisperError, match="they do not belong together"):
        convert_whisper(odd)


def test_configuration_of_the_front_end():
    with pytest.raises(StrictDataclassError, match="must be 1 with front_end = 'whisper'"):
        EntmaxAsrConfig(front_end="whisper")
    with pytest.raises(StrictDataclassError, match="holds 99, which is no token: vocab_size = 50"):
        EntmaxAsrConfig(vocab_size=50, decoder_prompt_ids=[99])


def test_program(english, tmp_path, call):
    output = tmp_path / "converted"
    status, printed, said = call("convert_whisper", english, "--output", output, "--config", "encoder_transform=entmax")
    assert (status, said) == (0, "")
    assert "M parameters, started from" in printed
    assert "base_model" not in yaml.safe_load((output / "README.md").read_text().split("---")[1])
    assert json.loads((output / "config.json").read_text())["encoder_transform"] == "entmax"
    status, _, said = call("convert_whisper", english, "--output", output)
    assert status == 1
    assert "add --overwrite" in said
    status, _, said = call("convert_whisper", tmp_path, "--output", tmp_path / "no")
    assert (status, said.count("\n"), (tmp_path / "no").exists()) == (1, 1, False)


def test_a_card_names_the_base_model_and_its_licence(english, tmp_path):
    model, _ = convert_whisper(english)
    folder = tmp_path / "named"
    shutil.copytree(english, folder)
    (folder / "README.md").write_text("---\nbase_model: openai/whisper-tiny.en\nlicense: mit\n---\nText\n")
    card = converted_card(str(folder), model)
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == "openai/whisper-tiny.en"
    assert metadata["license"] == "mit"
    assert "its\nlicence is that of Whisper's: mit." in card
    assert "not said in its card" in converted_card(str(english), model)


def test_its_attention_can_be_analysed(english, tmp_path):
    """Nothing is heard for the prompt: the decoder reads it, the heads of cross-attention are asked about the text."""
    rows = load_folder(write_splits(tmp_path, test=3))["test"]
    for settings in ({}, {"cross_attention": "monotonic"}):
        model, processor = convert_whisper(english, min_seconds=0.0, **settings)
        document = analyze(model, processor, rows)
        tokens = sum(len(labels) for labels in processor.tokenizer(list(rows["text"])).input_ids)
        assert document.utterances == 3
        assert document.modules.keys() >= {"encoder.layers.0.self_attn", "decoder.layers.1.encoder_attn"}
        if settings:
            assert document.monotonic.tokens == tokens

"""Every row of the paper's Tables II and III: three steps by its recipe, in a small size, then whatever a checkpoint is
for."""

import math
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from hf_entmax_asr import read_audio
from hf_entmax_asr.model.configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from hf_entmax_asr.recognition import SpeechSeq2SeqCollator, load_recogniser, recognise, transcribe_files
from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training import RecipeError, load_recipe, read_history, train
from support.small_baselines import SIZES
from support.tones import write_splits

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "scripts" / "recipes" / "baselines"
RECIPES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
CONVOLUTIONS = {
    "wav2letter": ["model.conv_channels=[8,6]", "model.conv_kernels=[5,4]"],
    "jasper": ["model.conv_channels=[6,8,12,16]", "model.conv_kernels=[5,3,5,1]"],
}
TRAINING = [
    *("batching.frames_per_batch=900", "batching.num_workers=0", "schedule.max_steps=3", "schedule.warmup_steps=2"),
    *("evaluation.log_every_steps=1", "evaluation.every_steps=null", "evaluation.tensorboard=false"),
    *("evaluation.max_utterances=2", "evaluation.num_beams=2", "features.feature_size=20"),
]


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=12, validation=2)


def small(name: str) -> list[str]:
    """Overrides that make a recipe's model tiny; a key of a baseline alone must not make a recogniser one."""
    sizes = {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "subsampling_channels": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    sizes |= {key: value for key, value in SIZES.items() if f"{key}:" in text}
    return [*(f"model.{key}={value}" for key, value in sizes.items()), *CONVOLUTIONS.get(name, [])]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_its_checkpoint_transcribes(name, tones, tmp_path, call):
    more = ["optimizer.ema_decay=0.9"] if name == "jasper" else []
    recipe = load_recipe(FOLDER / f"{name}.yaml", [*TRAINING, *small(name), *more, f"data.path={tones}"])
    result = train(recipe, tmp_path / "run", card_template=(ROOT / "model_cards" / "template.md").read_text())
    assert (result.step, result.finished) == (3, True)
    steps = [row for row in read_history(tmp_path / "run" / "history.jsonl") if "evaluation" not in row]
    assert all(math.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in steps)
    assert list(result.scores) == ["full"]
    model, processor = load_recogniser(result.best, "cpu", any_system=True)
    compared = isinstance(model.config, EntmaxAsrBaselineConfig)
    assert compared == (name not in ("transformer", "explicit_sparse", "factorized"))
    card = (result.best / "README.md").read_text()
    assert ("sparse-attention" in card, "adaptively sparse (α-entmax)" in card) == (not compared, not compared)
    if compared:
        assert f"a system to compare with: {model.config.encoder_type} encoder" in card
        with pytest.raises(CheckpointError, match="one of the systems to compare with"):
            load_recogniser(result.best, "cpu")
    if name == "jasper":  # a running mean of weights takes its norms' statistics from the trained ones
        assert all((buffer != 0).any() for key, buffer in model.named_buffers() if "running_mean" in key)
    files = sorted((tones / "validation").glob("*.flac"))
    texts = [transcript.text for transcript in transcribe_files(model, processor, files, num_beams=2)]
    waveforms = [read_audio(str(file)) for file in files]
    collate = SpeechSeq2SeqCollator(processor)
    frames = [len(waveform) // 160 for waveform in waveforms]
    load = lambda indices: collate([{"audio": waveforms[i]} for i in indices])  # noqa: E731
    assert [text.strip() for text in recognise(model, processor.tokenizer, frames, load, num_beams=2)] == texts
    speech = pipeline("automatic-speech-recognition", str(result.best), device="cpu")
    assert speech.type == "seq2seq"
    assert type(speech.model) is type(model)
    said = speech({"raw": waveforms[0], "sampling_rate": 16000}, generate_kwargs={"num_beams": 2})
    assert said["text"].strip() == texts[0]
    if name in ("rnn_t", "jasper"):
        search = ("--num-beams", 2, "--device", "cpu")
        status, printed, _ = call("evaluate", result.best, tones, "--split", "validation", *search)
        assert status == 0
        assert f"2 beams{', CTC alone' if name == 'jasper' else ''}, no language model" in printed
        assert call("transcribe", result.best, files[0], *search)[:2] == (0, f"{texts[0]}\n")
        status, _, said_of_times = call("transcribe", result.best, files[0], *search, "--format", "srt")
        assert status == 1
        assert "the times of words are not known of a system to compare with" in said_of_times


def test_a_run_goes_on_and_another_tokenizer_keeps_what_it_can(tones, tmp_path):
    overrides = [*TRAINING, *small("rnn_t"), f"data.path={tones}", "data.validation_split=null"]
    train(load_recipe(FOLDER / "rnn_t.yaml", overrides), tmp_path / "run", stop_after=1)
    result = train(load_recipe(tmp_path / "run" / "recipe.yaml"), tmp_path / "run", resume=True)
    assert (result.step, result.finished) == (3, True)
    more = [f"start_from={result.last}", "tokenizer.train_anew=true", "tokenizer.kind=bpe", "tokenizer.vocab_size=20"]
    again = train(load_recipe(FOLDER / "rnn_t.yaml", [*overrides, *more]), tmp_path / "again", stop_after=1)
    model, processor = load_recogniser(again.last, "cpu", any_system=True)
    assert model.head.lm_head.weight.shape[0] == len(processor.tokenizer)


def test_what_a_system_to_compare_with_cannot_do_is_refused(tones, tmp_path):
    overrides = [*TRAINING, *small("wav2letter"), f"data.path={tones}", "evaluation.analyze_every_steps=2"]
    with pytest.raises(RecipeError, match="cannot be analysed"):
        train(load_recipe(FOLDER / "wav2letter.yaml", overrides), tmp_path / "run")
    with pytest.raises(RecipeError, match="head = 'rnn' is not known"):
        load_recipe(FOLDER / "wav2letter.yaml", ["model.head=rnn"])


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_size_is_built(name):
    """Without memory; and its parameters are of the order that was published."""
    from hf_entmax_asr.model.modeling_entmax_asr_baselines import recogniser_class
    from hf_entmax_asr.training.recipe import config_class

    recipe = load_recipe(FOLDER / f"{name}.yaml")
    with torch.device("meta"):
        config = config_class(recipe.model)(**recipe.model, vocab_size=4233)
        count = recogniser_class(config)(config).num_parameters()
    least, most = {"jasper": (180e6, 220e6)}.get(name, (5e6, 60e6))
    assert least < count < most

"""Word times by a recogniser's own cross-attention, and training that takes them."""

import importlib.util
import itertools
import math

import pytest

from hf_entmax_asr.analysis.phonemes import read_ctm
from hf_entmax_asr.pretrained import convert_whisper
from hf_entmax_asr.recognition import DataError
from hf_entmax_asr.recognition.utterances import prepare_split, read_split
from hf_entmax_asr.recognition.word_alignment import align_words, following_heads
from hf_entmax_asr.training import RecipeError, read_history, train
from hf_entmax_asr.training.optimization import ramp
from support.small_whisper import make_whisper
from support.tones import tiny_recipe, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("tones"), train=12, validation=3)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def converted(whisper):
    model, processor = convert_whisper(str(whisper))
    processor.feature_extractor.min_seconds = 0.0
    return model, processor


@pytest.fixture(scope="module")
def align(request):
    path = request.config.rootpath / "scripts" / "align.py"
    spec = importlib.util.spec_from_file_location("align_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_utterance_is_divided_among_its_words(converted, tones):
    model, processor = converted
    utterances = prepare_split(read_split(str(tones), "train"), processor)
    found = dict(align_words(model, processor, utterances))
    assert set(found) == set(utterances.ids)
    for name, text, frames in zip(utterances.ids, utterances.texts, utterances.frames, strict=True):
        words = found[name]
        assert [word.label for word in words] == text.split()
        assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(words))
        assert words[-1].end <= frames * 0.01 + 0.02
    assert len(following_heads(model, processor, utterances)) == 6


def test_a_monotonic_model_and_a_head_that_is_not_there_are_refused(converted, whisper, tones):
    model, processor = converted
    utterances = prepare_split(read_split(str(tones), "validation"), processor)
    with pytest.raises(ValueError, match="there is no head 9 in layer 0"):
        next(align_words(model, processor, utterances, [(0, 9)]))
    monotonic, _ = convert_whisper(str(whisper), cross_attention="monotonic")
    with pytest.raises(ValueError, match="words are aligned by full cross-attention"):
        next(align_words(monotonic, processor, utterances))


def test_the_script_writes_what_training_takes(align, converted, whisper, tones, tmp_path, capsys):
    model, processor = converted
    model.save_pretrained(tmp_path / "full")
    processor.save_pretrained(tmp_path / "full")
    times = tmp_path / "train.ctm"
    assert align.main([str(tmp_path / "full"), str(tones), "--output", str(times), "--heads", "0.0", "1.2"]) == 0
    assert "12 of 12 utterances" in capsys.readouterr().out
    assert len(read_ctm(times)) == 12
    start, _ = convert_whisper(str(whisper), cross_attention="monotonic", monotonic_chunk_size=None)
    start.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    recipe = tiny_recipe(
        tones,
        model={
            "head_regularizer": "reference",
            "head_regularizer_layers": [0],
            "head_regularizer_weight": 0.5,
        },
        data={"word_times": str(times), "validation_split": None},
        schedule={"max_steps": 4, "regularizer_ramp": [0.0, 0.5]},
        evaluation={"log_every_steps": 1},
    )
    recipe.start_from = str(tmp_path / "start")
    recipe.model = {key: value for key, value in recipe.model.items() if "regularizer" in key}
    recipe.features = {}
    result = train(recipe, tmp_path / "run")
    lines = read_history(tmp_path / "run" / "history.jsonl")
    assert lines[0]["loss"] == pytest.approx(lines[0]["cross_entropy_loss"], rel=1e-5)  # the penalty has no weight yet
    assert lines[-1]["loss"] == pytest.approx(
        lines[-1]["cross_entropy_loss"] + 0.5 * lines[-1]["head_penalty"], rel=1e-4
    )
    assert '"head_regularizer_weight": 0.5' in (result.last / "config.json").read_text()  # whatever the ramp


def test_times_of_other_utterances_are_refused(tones, tmp_path):
    times = tmp_path / "other.ctm"
    times.write_text("nobody 1 0.0 1.0 word\n")
    recipe = tiny_recipe(
        tones, model={"head_regularizer": "reference"}, data={"word_times": str(times)}, schedule={"max_steps": 1}
    )
    with pytest.raises(DataError, match="no utterance of the training split with the words of its text"):
        train(recipe, tmp_path / "run")


def test_the_penalty_and_its_times_belong_together(tones):
    with pytest.raises(RecipeError, match=r"data\.word_times is None: set both"):
        tiny_recipe(tones, model={"head_regularizer": "reference"})
    with pytest.raises(RecipeError, match="regularizer_ramp"):
        tiny_recipe(tones, schedule={"regularizer_ramp": [0.5, 0.2]})


def test_a_ramp():
    assert [ramp((0.2, 0.6), used) for used in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert ramp((0.0, 0.0), 0.0) == 1
    assert not math.isnan(ramp((0.5, 0.5), 0.4))

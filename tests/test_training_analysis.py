"""Analyses while a model is trained: by recipe and by transformers' Trainer, their page, and what the card tells."""

import dataclasses
import importlib.util
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_entmax_asr.analysis.document import AnalysisDocument, load_analysis
from hf_entmax_asr.analysis.figures.training import plot_over_training
from hf_entmax_asr.analysis.findings import findings
from hf_entmax_asr.analysis.trajectories import trajectory
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.recognition import DataError, SpeechSeq2SeqCollator, analyze
from hf_entmax_asr.recognition.attention_section import ATTENTION_HEADING
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.training import AnalysisCallback, RecipeError, read_history, train
from hf_entmax_asr.training import engine as engine_module
from hf_entmax_asr.training.analysis_callback import analysis_files, drop_analyses_after, newest_analysis, write_page
from hf_entmax_asr.training.model_card import _architecture
from support.analysis_document import document, document_json
from support.small_models import small_config
from support.tones import tiny_recipe, write_splits

TEMPLATE = (Path(__file__).parent.parent / "model_cards" / "template.md").read_text(encoding="utf-8")
PHASES = {"straight_through_fraction": 0.3}  # the last steps train the hard path
EVALUATION = {"save_every_steps": 3, "keep_last": 9}
ANALYSES = {"analyze_every_steps": 3, "analyze_utterances": 4}


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=6)


def recipe(tones: Path, analyses: dict, **sections):
    sections = {"optimizer": {"ema_decay": 0.3}, "schedule": PHASES} | sections
    return tiny_recipe(tones, evaluation=EVALUATION | analyses, **sections)


@pytest.fixture(scope="module")
def watched(tones, tmp_path_factory):
    """8 steps with dropout, noise, masks, a running mean and a straight-through phase, analysed after 3, 6 and 8."""
    return train(recipe(tones, ANALYSES), tmp_path_factory.mktemp("watched") / "run", card_template=TEMPLATE)


def documents(run: Path) -> dict[int, AnalysisDocument]:
    return {step: load_analysis(path) for step, path in analysis_files(run / "analysis").items()}


# by recipe


def test_watching_changes_nothing(tones, tmp_path):
    """Without a running mean the trained model itself is analysed, in between dropout, noise and the hard path."""
    plain = {"optimizer": {"ema_decay": None}}
    watched = train(recipe(tones, ANALYSES, **plain), tmp_path / "watched")
    alone = train(recipe(tones, {}, **plain), tmp_path / "alone")
    assert list(documents(tmp_path / "watched")) == [3, 6, 8]
    assert not (tmp_path / "alone" / "analysis").exists()
    for step in (3, 6, 8):
        one, other = (run.last.parent / "checkpoints" / f"step-{step:08d}" for run in (watched, alone))
        for name in ("model", "training_state/optimizer", "training_state/random"):
            expected, actual = (load_file(folder / f"{name}.safetensors") for folder in (other, one))
            assert expected.keys() == actual.keys()
            assert all(torch.equal(expected[key], actual[key]) for key in expected), name
    clock = {"time", "elapsed_seconds", "frames_per_second"}
    histories = [
        [{k: v for k, v in row.items() if k not in clock} for row in read_history(run.last.parent / "history.jsonl")]
        for run in (watched, alone)
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 6


def test_analyses_are_of_the_model_that_is_saved(watched, tones):
    run = watched.last.parent
    found = documents(run)
    assert list(found) == [3, 6, 8]
    assert {d.utterances for d in found.values()} == {4}
    assert found[3].checkpoint == "run after 3 steps"
    assert found[3].data == f"{tones.name}, validation"
    rows = load_folder(tones)["validation"].select([0, 2, 3, 5])  # evenly spaced
    for step in (3, 8):
        model, processor = load_recogniser(str(run / "checkpoints" / f"step-{step:08d}"), "cpu")
        expected = analyze(model, processor, rows)
        assert found[step].modules == expected.modules
        assert found[step].monotonic == expected.monotonic
    assert found[3].modules != found[8].modules


def test_the_run_ends_with_a_page(watched):
    folder = watched.last.parent / "analysis"
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "Attention of run after 8 steps" in page
    assert "Over training" in page
    assert {"alphas.png", "gates.png", "over_training.png"} <= {path.name for path in folder.glob("*.png")}
    assert load_analysis(folder / "analysis.json") == documents(watched.last.parent)[8]
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_without_matplotlib_the_numbers_are_there_and_it_is_said_once(tones, tmp_path, monkeypatch, caplog):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find_spec(name, *a)
    )
    with caplog.at_level(logging.WARNING, logger="hf_entmax_asr"):
        result = train(recipe(tones, ANALYSES, schedule={"max_steps": 4}), tmp_path / "run")
    assert result.finished
    assert sum("matplotlib" in record.message for record in caplog.records) == 1
    names = sorted(path.name for path in (tmp_path / "run" / "analysis").iterdir())
    assert names == ["analysis.json", "step-00000003.json", "step-00000004.json"]


def test_a_resumed_run_leaves_no_analysis_of_later_steps(tones, tmp_path):
    run = tmp_path / "run"
    settings = recipe(tones, ANALYSES | {"analyze_every_steps": 2})
    train(settings, run)
    assert list(documents(run)) == [2, 4, 6, 8]
    (run / "analysis" / "notes.txt").write_text("of the user")
    for step in (6, 8):  # as if it had been killed before they were saved
        (run / "checkpoints" / f"step-{step:08d}").rename(tmp_path / str(step))
    before = documents(run)[2]
    stopped = train(settings, run, resume=True, stop_after=4)
    assert not stopped.finished
    assert documents(run) == {2: before, 4: documents(run)[4]}
    assert documents(run)[4].step == 4
    assert sorted(path.name for path in (run / "analysis").iterdir()) == [
        "notes.txt",
        "step-00000002.json",
        "step-00000004.json",
    ]  # the page of step 8 has gone
    finished = train(settings, run, resume=True)
    assert finished.finished
    assert list(documents(run)) == [2, 4, 6, 8]
    assert "after 8 steps" in (run / "analysis" / "index.html").read_text(encoding="utf-8")


def test_frames_per_second_count_training_alone(tones, tmp_path, monkeypatch):
    now = [0.0]

    def tick() -> float:
        now[0] += 0.01
        return now[0]

    write = AnalysisCallback.write

    def slow(self, model, step):
        now[0] += 1000
        return write(self, model, step)

    monkeypatch.setattr(engine_module.time, "monotonic", tick)
    monkeypatch.setattr(AnalysisCallback, "write", slow)
    train(recipe(tones, {"analyze_every_steps": 1, "analyze_utterances": 1}), tmp_path / "run", stop_after=6)
    speeds = [row["frames_per_second"] for row in read_history(tmp_path / "run" / "history.jsonl")]
    assert len(speeds) == 3
    assert min(speeds) > 1000  # 2 steps of some hundred frames in less than a second, not in 2000


def test_analyses_need_a_validation_split_and_utterances_that_are_short_enough(tones, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match=r"analyze_every_steps is 3 and data.validation_split is null"):
        recipe(tones, ANALYSES, data={"validation_split": None})
    monkeypatch.setattr("hf_entmax_asr.training.analysis_callback.MAX_SECONDS", 0.2)
    with pytest.raises(DataError, match=r"none of the 6 utterances to analyse is at most 0.2 s long"):
        train(recipe(tones, ANALYSES), tmp_path / "run")
    assert not (tmp_path / "run" / "history.jsonl").exists() or not read_history(tmp_path / "run" / "history.jsonl")


def test_analyses_in_half_precision(tones, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(mixed_precision="bf16")
        settings = recipe(tones, ANALYSES, schedule={"max_steps": 3}, optimizer={"ema_decay": None})
        train(settings, tmp_path / "run", accelerator=accelerator)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    module = documents(tmp_path / "run")[3].encoder[0]
    assert all(0 < value < module.uniform.entropy_nats * 1.01 for value in module.entropy_nats)


# the card


def section(card: str) -> str:
    return card.split(f"{ATTENTION_HEADING}\n", 1)[1].split("\n#", 1)[0]


def test_the_card_tells_what_the_newest_analysis_found(watched, tones, tmp_path):
    found = documents(watched.last.parent)
    for step in (3, 6, 8):
        card = (watched.last.parent / "checkpoints" / f"step-{step:08d}" / "README.md").read_text(encoding="utf-8")
        told = section(card)
        assert f"Measured after {step} steps on 4 utterances (0.1 minutes) of {tones.name}, validation." in told
        assert [line[2:] for line in told.splitlines() if line.startswith("- ")] == findings(found[step])
        assert str(tones) not in card
    without = train(recipe(tones, {}, schedule={"max_steps": 1}), tmp_path / "run", card_template=TEMPLATE)
    told = section((without.last / "README.md").read_text(encoding="utf-8")).strip()
    assert told.startswith("Not measured yet; `scripts/analyze.py")
    assert "\n" not in told


def test_findings_without_labels_where_every_head_is_diagonal():
    given = document_json(labels=False)
    for module in given["modules"].values():
        if module["kind"] == "encoder":
            module["role"] = ["linguistic"] * 2
    found = findings(AnalysisDocument.from_dict(given))
    assert found[0] == "Roles: 6 of 6 encoder heads are linguistic (diagonal) (layers 0, 1, 2)."


def test_the_architecture_line_counts_the_heads_that_are_left_and_the_maps_that_are_shared():
    assert "width 16, 2 + 4 heads; self-attention weights by entmax in the encoder and entmax in the decoder; " in (
        _architecture(small_config())
    )
    pruned = small_config(encoder_heads_per_layer=[1, 2], cross_heads_per_layer=[4, 3])
    told = "heads by layer: 1 2 in encoder self-attention, 4 4 in decoder self-attention, 4 3 in cross-attention; "
    assert told in _architecture(pruned)
    groups = {"encoder_map_groups": [1, 3, 2], "decoder_map_groups": [1, 1]}
    shared = _architecture(small_config(encoder_layers=6, **groups))
    assert "in the decoder, one map shared by encoder layers 1 to 3, one by encoder layers 4 to 5; monotonic" in shared


# the picture


def over_steps() -> list[AnalysisDocument]:
    given = []
    for step in (200, 100, 300):
        one = document_json() | {"step": step}
        for module in one["modules"].values():
            if module["kind"] == "encoder":
                module["zero_share"] = [step / 1000, None]
        given.append(AnalysisDocument.from_dict(one))
    return given


def test_the_picture_shows_means_of_layers_in_the_order_of_the_steps():
    points = trajectory(iter([*over_steps(), document()]))  # one that names no step is left out
    assert [point.step for point in points] == [100, 200, 300]
    figure = plot_over_training(points)
    figure.canvas.draw()
    cad, zeros, entropy = figure.axes
    assert [line.get_label() for line in cad.lines] == ["layer 0", "layer 1", "layer 2", "uniform attention"]
    assert [line.get_ydata()[0] for line in cad.lines] == pytest.approx([0.7, 0.835, 0.97, 0.7])
    assert list(zeros.lines[0].get_xdata()) == [100, 200, 300]
    assert list(zeros.lines[0].get_ydata()) == pytest.approx([10, 20, 30])  # % of the heads that were measured
    assert len(zeros.lines) == 3  # uniform attention has no zeros to show
    expected = document().encoder[1].entropy_nats
    assert entropy.lines[1].get_ydata()[0] == pytest.approx(sum(expected) / 2)
    assert [axes.get_xlabel() for axes in figure.axes] == ["optimiser step"] * 3
    with pytest.raises(ValueError, match=r"of \[2, 3\] layers"):
        plot_over_training([*points, *trajectory([dataclasses.replace(document(layers=2), step=1)])])
    with pytest.raises(ValueError, match="of no layers"):
        plot_over_training([])


# transformers' own Trainer


def test_the_trainer_ends_with_the_last_step_and_a_page(watched, tones, tmp_path):
    model, processor = load_recogniser(str(watched.last), "cpu")
    rows = load_folder(tones)["validation"]
    folder = tmp_path / "analysis"
    folder.mkdir()
    (folder / "step-00000009.json").write_text("{}")  # of an earlier training that went further
    callback = AnalysisCallback(processor, rows, folder, every_steps=2, max_utterances=2, name="mine", data="tones")
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=3,
            per_device_train_batch_size=2,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        data_collator=SpeechSeq2SeqCollator(processor),
        callbacks=[callback],
    )
    trainer.train()
    assert list(analysis_files(folder)) == [2, 3]
    last = newest_analysis(folder)
    assert (last.step, last.checkpoint, last.data) == (3, "mine after 3 steps", "tones")
    assert "Attention of mine after 3 steps" in (folder / "index.html").read_text(encoding="utf-8")
    assert {"alphas.png", "gates.png", "over_training.png"} <= {path.name for path in folder.glob("*.png")}


def test_the_trainer_with_weights_that_are_shared_out_is_refused(watched, tones, tmp_path):
    model, processor = load_recogniser(str(watched.last), "cpu")
    callback = AnalysisCallback(processor, load_folder(tones)["validation"], tmp_path / "analysis")
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    with pytest.raises(ValueError, match="FSDP and DeepSpeed ZeRO-3 share them out"):
        callback.on_train_begin(SimpleNamespace(fsdp=["full_shard"]), state, None, model=model)
    callback.on_train_begin(SimpleNamespace(fsdp=[]), state, None, model=model)


def test_files_that_no_run_wrote_stay(tmp_path):
    assert write_page(tmp_path) is None
    for name in ("analysis.json", "step-x.json"):
        (tmp_path / name).write_text(json.dumps(document_json()))  # as scripts/analyze.py writes it
    (tmp_path / "index.html").write_text("a page")
    drop_analyses_after(tmp_path, 0)
    assert len(list(tmp_path.iterdir())) == 3
    assert newest_analysis(tmp_path) is None

"""Training: recipes, batches, the schedule, data checks, checkpoints, exact resume, and transformers' own Trainer."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.training import (
    CheckpointError,
    DataError,
    HeadGateCallback,
    RecipeError,
    SpeechSeq2SeqCollator,
    TrainingDiverged,
    average_checkpoints,
    load_recipe,
    read_history,
    train,
    word_error_metrics,
)
from hf_entmax_asr.training import engine as engine_module
from hf_entmax_asr.training.batching import BatchOptions, BatchStream, plan_epoch
from hf_entmax_asr.training.checkpointing import CheckpointStore, atomic_folder
from hf_entmax_asr.training.engine import TrainingRun
from hf_entmax_asr.training.optimization import budget_used, learning_rate, parameter_groups
from hf_entmax_asr.training.preparation import build_config, build_model, build_processor, load_checkpoint, load_rows
from hf_entmax_asr.training.recipe import ScheduleSection, recipe_from_dict, recipe_to_dict
from hf_entmax_asr.training.utterances import cache_features, checked, ctc_length, prepare_split

ROOT = Path(__file__).parent.parent
TONES_HZ = dict(zip("abcdef", (300, 500, 800, 1250, 1900, 2800), strict=True))


def write_tones(folder: Path, count: int, seed: int) -> None:
    """A split whose letters are tones: 120 ms each, silence for spaces and at both ends."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = [("file_name", "text")]
    time = np.arange(1920) / 16000
    for index in range(count):
        words = ["".join(generator.choice(list(TONES_HZ), generator.integers(1, 4))) for _ in range(2)]
        text = " ".join(words)
        pieces = [0.3 * np.sin(2 * np.pi * TONES_HZ[c] * time) if c != " " else np.zeros(1920) for c in text]
        audio = np.concatenate([np.zeros(1600), *pieces, np.zeros(1600)])
        soundfile.write(folder / f"{index:03d}.flac", audio + generator.normal(0, 0.002, len(audio)), 16000)
        rows.append((f"{index:03d}.flac", text))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tones")
    write_tones(root / "train", 24, seed=0)
    write_tones(root / "validation", 5, seed=1)
    return root


def tiny_recipe(root: Path, /, **sections):
    """A model of a few thousand weights with every random part switched on, 4 batches an epoch."""
    tree = {
        "model": {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "subsampling_channels": 2,
            "ctc_loss_weight": 0.3,
            "label_smoothing": 0.1,
            "head_drop": 0.2,
            "energy_bias_init": "auto",
            "head_regularizer": "gate_l1",
            "head_regularizer_weight": 0.01,
            "head_regularizer_layers": [0],
        },
        "features": {"feature_size": 20},
        "data": {"path": str(root)},
        "batching": {"frames_per_batch": 700, "short_first_epochs": 1},
        "augmentation": {"frequency_mask_bins": 4, "time_mask_frames": 10},
        "schedule": {"warmup_steps": 4, "max_steps": 8},
        "evaluation": {"tensorboard": False, "log_every_steps": 2},
    }
    for section, values in sections.items():
        tree[section] = tree.get(section, {}) | values
    return recipe_from_dict(tree)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


# Recipes


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))])
def test_the_recipes_of_the_repository_are_valid(name):
    recipe = load_recipe(ROOT / "scripts" / "recipes" / name)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


def test_the_documented_recipe_names_every_key():
    import yaml

    tree = yaml.safe_load((ROOT / "scripts" / "recipes" / "paper_base.yaml").read_text(encoding="utf-8"))
    every = recipe_to_dict(load_recipe(ROOT / "scripts" / "recipes" / "paper_base.yaml"))
    for section in every.keys() - {"seed", "model", "features"}:
        assert tree[section].keys() == every[section].keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "unknown recipe key 'optimizer.learning_rate'; did you mean 'peak_learning"),
        ("optimiser.eps=1", "unknown recipe key 'optimiser'; did you mean 'optimizer'"),
        ("model.d_modl=8", "unknown recipe key 'model.d_modl'; did you mean 'd_model'"),
        ("model.d_model=7", "multiple of encoder_attention_heads"),
        ("model.vocab_size=7", "it follows from the tokenizer"),
        ("features.cmvn=speaker", "speaker"),
        ("schedule.max_steps=soon", "schedule.max_steps is 'soon'; it must be of type int"),
        ("schedule.max_steps=null", "the recipe has no end"),
        ("data.bad_utterances=keep", "must be one of 'refuse', 'drop'"),
        ("batching.frames_per_batch=5", "batching.frames_per_batch is 5; it must be at least 100"),
        ("optimizer.betas=[0.9]", "a list of 2 numbers"),
        ("optimizer.peak_learning_rate=0", "must be above 0"),
        ("evaluation.tensorboard=1", "evaluation.tensorboard is 1; it must be of type bool"),
        ("model", "--set takes section.key=value"),
    ],
)
def test_bad_recipe_values_are_refused_by_name(override, message):
    with pytest.raises(RecipeError, match=message.replace("[", r"\[").replace("(", r"\(")):
        load_recipe(ROOT / "scripts" / "recipes" / "paper_base.yaml", [override])


def test_overrides_are_yaml_and_floats_need_no_dot(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("optimizer: {peak_learning_rate: 2e-3}\nschedule: {max_steps: 5}\n")
    recipe = load_recipe(file, ["optimizer.betas=[0.8, 0.9]", "data.validation_split=null", "model.d_model=64"])
    assert recipe.optimizer.peak_learning_rate == 0.002
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.data.validation_split is None
    assert recipe.model == {"d_model": 64}


# Batches

FRAMES = np.random.default_rng(3).integers(20, 300, 200)


def test_every_epoch_holds_every_utterance_once_within_the_bounds():
    options = BatchOptions(frames_per_batch=2000, max_utterances=15, shuffle_window=3)
    plans = [plan_epoch(FRAMES, options, epoch) for epoch in range(2)]
    for plan in plans:
        assert sorted(i for batch in plan for i in batch) == list(range(200))
        assert max(len(b) * FRAMES[list(b)].max() for b in plan) <= 2000
        assert max(map(len, plan)) <= 15
        padded = sum(len(b) * FRAMES[list(b)].max() for b in plan)
        assert FRAMES.sum() / padded > 0.8  # bucketed: random batches of these lengths would be at 0.6
    assert plans[0] != plans[1]
    assert plans[0] == plan_epoch(FRAMES, options, 0)
    assert plans[0] != plan_epoch(FRAMES, replace(options, seed=1), 0)


def test_short_first_epochs_go_from_short_to_long():
    options = BatchOptions(frames_per_batch=2000, short_first_epochs=1)
    longest = [FRAMES[list(b)].max() for b in plan_epoch(FRAMES, options, 0)]
    assert longest == sorted(longest)
    longest = [FRAMES[list(b)].max() for b in plan_epoch(FRAMES, options, 1)]
    assert longest != sorted(longest)


def test_an_utterance_above_the_batch_size_is_refused():
    with pytest.raises(ValueError, match="300 frames does not fit a batch of 200"):
        plan_epoch(np.array([300, 20]), BatchOptions(frames_per_batch=200), 0)


def take(stream: BatchStream, count: int):
    batches = iter(stream)
    return [next(batches) for _ in range(count)]


def test_a_stream_goes_on_where_another_stood_without_replay():
    options = BatchOptions(frames_per_batch=2000)
    whole = take(BatchStream(FRAMES, FRAMES, options), 60)
    assert whole[-1].epoch > 0
    for cut in (1, 17, 40):
        place = whole[cut - 1].epoch, whole[cut - 1].next_index
        rest = BatchStream(FRAMES, FRAMES, options, epoch=place[0], next_index=place[1])
        assert take(rest, 60 - cut) == whole[cut:]


def test_processes_share_the_batches_of_one_process_and_weights_make_a_mean_over_tokens():
    options = BatchOptions(frames_per_batch=2000)
    tokens = np.random.default_rng(4).integers(1, 50, 200)
    alone = take(BatchStream(FRAMES, tokens, options, accumulation_steps=4), 40)
    shared = [
        take(BatchStream(FRAMES, tokens, options, accumulation_steps=2, rank=rank, world_size=2), 20) for rank in (0, 1)
    ]
    together = [batch for pair in zip(*shared, strict=True) for batch in pair]
    assert [b.indices for b in together] == [b.indices for b in alone]
    assert [b.seed for b in together] == [b.seed for b in alone]
    for step in range(10):
        own = alone[4 * step : 4 * step + 4]
        counts = [tokens[list(b.indices)].sum() for b in own]
        np.testing.assert_allclose([b.weight for b in own], np.array(counts) / sum(counts))
        # An average over 2 processes of sums over 2 shares gives the same mean.
        np.testing.assert_allclose([b.weight / 2 for b in together[4 * step : 4 * step + 4]], [b.weight for b in own])


# Optimizer and schedule


def test_schedule_warms_up_falls_by_the_root_and_cools_down():
    schedule = ScheduleSection(warmup_steps=100, max_steps=1000, cooldown_fraction=0.2, cooldown_floor=0.1)
    rate = lambda step: learning_rate(schedule, 2.0, step, budget_used(schedule, step, 0.0))  # noqa: E731
    assert rate(49) == pytest.approx(1.0)
    assert rate(99) == pytest.approx(2.0)
    assert rate(399) == pytest.approx(1.0)
    assert rate(800) == pytest.approx(2 * math.sqrt(100 / 801))
    assert rate(900) == pytest.approx(2 * math.sqrt(100 / 901) * 0.55)
    assert learning_rate(schedule, 2.0, 999, 1.0) == pytest.approx(2 * math.sqrt(0.1) * 0.1)


def test_a_budget_of_minutes_drives_the_same_cooldown():
    schedule = ScheduleSection(warmup_steps=1, max_minutes=10, cooldown_fraction=0.5, cooldown_floor=0.0)
    assert budget_used(schedule, 10**6, 150.0) == pytest.approx(0.25)
    assert learning_rate(schedule, 1.0, 0, 0.75) == pytest.approx(0.5)
    assert budget_used(replace(schedule, max_steps=100), 90, 150.0) == pytest.approx(0.9)


def test_weight_decay_spares_every_vector(tones):
    recipe = tiny_recipe(tones, model={"encoder_transform": "entmax"})
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    model = build_model(recipe, build_config(recipe, processor), prepare_split(rows["train"], processor))
    decayed, spared = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    spared_names = {names[id(p)].rpartition(".")[2] for p in spared["params"]}
    assert {"alpha_logit", "gate", "energy_bias", "bias"} <= spared_names
    assert all(p.ndim > 1 for p in decayed["params"])


def test_the_energy_bias_comes_from_the_data(tones):
    recipe = tiny_recipe(tones)
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    model = build_model(recipe, build_config(recipe, processor), utterances)
    positions = sum(math.ceil(math.ceil(frames / 2) / 2) for frames in utterances.frames)
    expected = -math.log(positions / sum(len(labels) for labels in utterances.labels))
    assert model.config.energy_bias_init == pytest.approx(expected)
    assert model.model.decoder.layers[0].encoder_attn.energy_bias.tolist() == pytest.approx([expected] * 2)


# Data


def test_the_cache_holds_what_the_extractor_gives_and_respects_its_budget(tones):
    recipe = tiny_recipe(tones)
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    expected_frames = utterances.frames.copy()
    collate = SpeechSeq2SeqCollator(processor)
    uncached = collate([utterances.example(i) for i in range(5)])
    assert not cache_features(utterances, processor.feature_extractor, megabytes=0.01)
    assert utterances.features is None
    assert cache_features(utterances, processor.feature_extractor, megabytes=1)
    np.testing.assert_array_equal(utterances.frames, expected_frames)
    cached = collate([utterances.example(i) for i in range(5)])
    torch.testing.assert_close(cached["input_features"], uncached["input_features"], rtol=2e-3, atol=2e-3)
    for key in ("attention_mask", "labels"):
        torch.testing.assert_close(cached[key], uncached[key])


def test_global_cmvn_is_measured_on_the_training_split(tones):
    recipe = tiny_recipe(tones, features={"feature_size": 20, "cmvn": "global"})
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    assert cache_features(utterances, processor.feature_extractor, megabytes=1)
    every = torch.cat(utterances.features).float()
    torch.testing.assert_close(every.mean(0), torch.zeros(20), rtol=0, atol=5e-3)
    torch.testing.assert_close(every.std(0), torch.ones(20), rtol=0, atol=5e-3)


def test_ctc_needs_a_blank_between_equal_neighbours():
    assert ctc_length([5, 5, 6, 5, 2]) == 5
    assert ctc_length([2]) == 0


def bad_data(tones: Path, tmp_path: Path) -> Path:
    """A clip that is as it should be, one of 50 ms and one with a text far too long for its audio."""
    rows = [("file_name", "text"), ("good.flac", "ab"), ("short.flac", "a")]
    rows.append(("wrong.flac", "abc def " * 8))
    folder = tmp_path / "bad" / "train"
    folder.mkdir(parents=True)
    audio, _ = soundfile.read(tones / "train" / "000.flac")
    for name, _ in rows[1:]:
        soundfile.write(folder / name, audio[:800] if name == "short.flac" else audio, 16000)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder.parent


def test_bad_utterances_are_refused_with_counts_and_ids(tones, tmp_path):
    recipe = tiny_recipe(bad_data(tones, tmp_path), data={"validation_split": None})
    with pytest.raises(DataError) as refusal:
        train(recipe, tmp_path / "run")
    message = str(refusal.value)
    for part in ("1 shorter than 0.1 s", "short", "more tokens than", "wrong"):
        assert part in message
    assert "good" not in message
    assert "data.bad_utterances=drop" in message


def test_a_corpus_that_cannot_be_read_is_refused(tones, tmp_path):
    path = bad_data(tones, tmp_path)
    with (path / "train" / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write("lost.flac,ab\n")
    with pytest.raises(DataError, match=r"listed but missing: .*lost\.flac"):
        train(tiny_recipe(path), tmp_path / "run")
    with pytest.raises(DataError, match="does not exist"):
        train(tiny_recipe(tmp_path / "nowhere"), tmp_path / "run")


def test_an_empty_text_is_refused_whatever_the_corpus(tones):
    recipe = tiny_recipe(tones)
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    utterances = prepare_split(rows["train"], processor)
    utterances.texts[3] = "  "
    with pytest.raises(DataError, match="1 with an empty text: 003"):
        checked("train", utterances, recipe.data, processor.tokenizer, None)


def test_bad_utterances_can_be_dropped(tones, tmp_path):
    path = str(bad_data(tones, tmp_path))
    recipe = tiny_recipe(tones, data={"path": path, "validation_split": None, "bad_utterances": "drop"})
    rows = load_rows(recipe)
    processor = build_processor(recipe, rows)
    kept = checked("train", prepare_split(rows["train"], processor), recipe.data, processor.tokenizer, 2)
    assert kept.texts == ["ab"]
    assert kept.example(0)["labels"] == processor.tokenizer("ab").input_ids


def test_unknown_characters_are_counted_and_named(tones, tmp_path):
    write_tones(tmp_path / "other" / "train", 2, seed=5)
    metadata = tmp_path / "other" / "train" / "metadata.csv"
    metadata.write_text("file_name,text\n000.flac,qab\n001.flac,cab\n")
    recipe = tiny_recipe(tones)
    processor = build_processor(recipe, load_rows(recipe))
    utterances = prepare_split(load_folder(tmp_path / "other")["train"], processor)
    with pytest.raises(DataError, match=r"limit 1\.0%.*Unknown characters: q\."):
        checked("train", utterances, recipe.data, processor.tokenizer, None)


def test_a_missing_split_is_named(tones, tmp_path):
    with pytest.raises(DataError, match=r"no split 'dev'.*'train'.*set data.validation_split"):
        train(tiny_recipe(tones, data={"validation_split": "dev"}), tmp_path / "run")


# Checkpoints


def test_a_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "checkpoint"

    def write(text, fail):
        with atomic_folder(target) as partial:
            (partial / "file").write_text(text)
            if fail:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write("one", fail=True)
    assert list(tmp_path.iterdir()) == []
    write("two", fail=False)
    with pytest.raises(OSError, match="disk full"):
        write("three", fail=True)
    assert (target / "file").read_text() == "two"
    write("four", fail=False)
    assert (target / "file").read_text() == "four"
    assert list(tmp_path.iterdir()) == [target]


def test_the_store_keeps_the_last_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=1)
    scores: dict[int, float] = {}
    for step, score in ((10, 5.0), (20, 3.0), (30, 4.0), (40, None), (50, 6.0)):
        if score is not None:
            scores[step] = score
        store.save(step, lambda folder, step=step: (folder / "step").write_text(str(step)), scores)
    assert store.steps() == [20, 40, 50]
    assert (tmp_path / "best" / "step").read_text() == "20"
    assert (tmp_path / "last" / "step").read_text() == "50"
    assert store.ranked(scores) == [20, 50]


def test_the_average_is_the_mean(tmp_path):
    for index, value in enumerate((1.0, 2.0, 6.0)):
        folder = tmp_path / str(index)
        (folder / "training_state").mkdir(parents=True)
        (folder / "config.json").write_text(str(index))
        save_file({"w": torch.full((2,), value), "half": torch.full((1,), value).half()}, folder / "model.safetensors")
    average_checkpoints([tmp_path / str(i) for i in range(3)], tmp_path / "mean")
    mean = weights(tmp_path / "mean")
    torch.testing.assert_close(mean["w"], torch.full((2,), 3.0))
    assert mean["half"].dtype == torch.float16
    assert sorted(p.name for p in (tmp_path / "mean").iterdir()) == ["config.json", "model.safetensors"]
    save_file({"other": torch.zeros(1)}, tmp_path / "1" / "model.safetensors")
    with pytest.raises(CheckpointError, match="another model"):
        average_checkpoints([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")


# Runs


@pytest.fixture(scope="module")
def whole_run(tones, tmp_path_factory):
    """8 steps of 2 micro-batches over several epochs, in one go, and the recipe."""
    recipe = tiny_recipe(tones, batching={"accumulation_steps": 2}, schedule={"straight_through_fraction": 0.3})
    output = tmp_path_factory.mktemp("whole") / "run"
    return recipe, train(recipe, output, card_template=(ROOT / "model_cards" / "template.md").read_text())


def test_stop_and_resume_equals_one_run_bit_for_bit(whole_run, tmp_path):
    recipe, whole = whole_run
    stopped = train(recipe, tmp_path / "run", stop_after=3)
    assert (stopped.step, stopped.finished) == (3, False)
    torch.manual_seed(99)  # what happened in between must not matter
    resumed = train(recipe, tmp_path / "run", resume=True)
    assert (resumed.step, resumed.finished) == (8, True)
    for name in ("model.safetensors", "training_state/optimizer.safetensors", "training_state/random.safetensors"):
        expected, actual = load_file(whole.last / name), load_file(resumed.last / name)
        assert expected.keys() == actual.keys()
        assert len(expected) > 0
        for key in expected:
            assert torch.equal(expected[key], actual[key]), f"{name}: {key}"
    # The line of step 4 averages steps 3 and 4 in one run and step 4 alone in the other; all others are equal.
    histories = [
        {
            (r["step"], r.get("evaluation")): r.get("loss", r.get("wer"))
            for r in read_history(run.last.parent / "history.jsonl")
            if r["step"] != 4
        }
        for run in (whole, resumed)
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 5


def test_a_finished_run_has_loadable_checkpoints_scores_and_a_card(whole_run):
    recipe, result = whole_run
    assert list(result.scores) == ["hard", "soft"]
    assert result.best.resolve() == result.last.resolve()
    processor, model = load_checkpoint(result.best)
    assert model.config.vocab_size == len(processor.tokenizer)
    assert not model.config.monotonic_straight_through
    card = (result.best / "README.md").read_text()
    assert f"| hard | {100 * result.scores['hard'].words.rate:.2f} |" in card
    assert "max_steps: 8" in card
    assert recipe.data.path not in card
    state = json.loads((result.best / "training_state" / "state.json").read_text())
    assert state["step"] == 8
    assert state["scores"] == {"8": result.scores["hard"].as_dict()["wer"]}
    pickles = [p for p in result.last.rglob("*") if p.suffix in (".pt", ".bin", ".pkl", ".pth")]
    assert pickles == []


def test_history_holds_losses_alphas_and_gates(whole_run):
    _, result = whole_run
    records = read_history(result.last.parent / "history.jsonl")
    training = [r for r in records if "evaluation" not in r]
    assert [r["step"] for r in training] == [2, 4, 6, 8]
    for record in training:
        assert {"loss", "cross_entropy_loss", "ctc_loss", "head_penalty", "gradient_norm"} <= record.keys()
        assert len(record["alpha"]["encoder.layers.0.self_attn"]) == 2
        assert len(record["gate"]["decoder.layers.0.encoder_attn"]) == 2
        parts = 0.7 * record["cross_entropy_loss"] + 0.3 * record["ctc_loss"] + 0.01 * record["head_penalty"]
        assert record["loss"] == pytest.approx(parts, abs=1e-4)
    assert [r["evaluation"] for r in records if "evaluation" in r] == ["validation/hard", "validation/soft"]


def test_another_data_set_or_model_cannot_be_resumed(whole_run, tones, tmp_path):
    recipe, result = whole_run
    with pytest.raises(CheckpointError, match="holds a run"):
        train(recipe, result.last.parent)
    with pytest.raises(CheckpointError, match=r"model.d_model was 16 and is now 32"):
        train(replace(recipe, model=recipe.model | {"d_model": 32}), result.last.parent, resume=True)
    write_tones(tmp_path / "data" / "train", 24, seed=7)
    write_tones(tmp_path / "data" / "validation", 5, seed=1)
    moved = replace(recipe, data=replace(recipe.data, path=str(tmp_path / "data")))
    with pytest.raises(CheckpointError, match="training data is not that of"):
        train(moved, result.last.parent, resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        train(recipe, tmp_path / "nothing", resume=True)


def test_the_last_share_of_the_budget_trains_the_hard_path(tones, tmp_path, monkeypatch):
    phases = []
    step = TrainingRun._step

    def noted(self, batches):
        step(self, batches)
        phases.append(self.plain_model.config.monotonic_straight_through)

    monkeypatch.setattr(TrainingRun, "_step", noted)
    schedule = {"max_steps": 10, "straight_through_fraction": 0.3}
    train(tiny_recipe(tones, schedule=schedule, data={"validation_split": None}), tmp_path / "run")
    assert phases == [False] * 7 + [True] * 3


def test_a_budget_of_minutes_ends_the_run(tones, tmp_path, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(engine_module.time, "monotonic", lambda: float(next(clock)))
    recipe = tiny_recipe(tones, schedule={"max_steps": None, "max_minutes": 1.0}, data={"validation_split": None})
    result = train(recipe, tmp_path / "run")
    assert result.finished
    assert 5 < result.step < 60


def test_averaging_at_the_end_gives_a_candidate_for_the_best(tones, tmp_path):
    evaluation = {"every_steps": 2, "average": "last", "average_count": 3, "keep_best": 1}
    result = train(tiny_recipe(tones, evaluation=evaluation), tmp_path / "run")
    steps = [weights(tmp_path / "run" / "checkpoints" / f"step-{step:08d}") for step in (4, 6, 8)]
    mean = weights(tmp_path / "run" / "average")
    for name in mean:
        expected = torch.stack([s[name].double() for s in steps]).mean(0).float()
        torch.testing.assert_close(mean[name], expected, rtol=0, atol=0)
    names = [r.get("evaluation") for r in read_history(tmp_path / "run" / "history.jsonl")]
    assert names[-2:] == ["mean of steps [4, 6, 8]/hard", "mean of steps [4, 6, 8]/soft"]
    load_checkpoint(result.best)


def test_a_diverged_run_stops_and_keeps_its_checkpoints_clean(tones, tmp_path, monkeypatch):
    step = TrainingRun._step

    def poisoned(self, batches):
        if self.state.step == 5:
            next(self.plain_model.parameters()).data.fill_(float("nan"))
        step(self, batches)

    monkeypatch.setattr(TrainingRun, "_step", poisoned)
    for log_every in (2, 100):  # noticed by the log line, or before a checkpoint is written
        evaluation = {"save_every_steps": 1, "log_every_steps": log_every}
        recipe = tiny_recipe(tones, evaluation=evaluation, data={"validation_split": None})
        with pytest.raises(TrainingDiverged, match=r"between steps [04] and 6.*last checkpoint"):
            train(recipe, tmp_path / f"run{log_every}")
        last = CheckpointStore(tmp_path / f"run{log_every}").last()
        assert last.name == "step-00000005"
        assert all(bool(torch.isfinite(t).all()) for t in weights(last).values())


def test_gates_close_exactly(tones, tmp_path):
    model, optimizer = {"head_regularizer_weight": 100.0}, {"peak_learning_rate": 0.1}
    recipe = tiny_recipe(tones, model=model, optimizer=optimizer, data={"validation_split": None})
    result = train(recipe, tmp_path / "run", stop_after=3)
    gates = load_checkpoint(result.last)[1].gates()
    assert all(bool((gate == 0).all()) for gate in gates.values())
    assert len(gates) == 1


def test_features_read_by_workers_train_as_features_read_here(tones, tmp_path):
    data = {"validation_split": None, "feature_cache_megabytes": 0}
    runs = [
        train(tiny_recipe(tones, data=data, batching={"num_workers": workers}), tmp_path / str(workers), stop_after=5)
        for workers in (0, 1)
    ]
    here, there = (weights(run.last) for run in runs)
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_a_bad_card_template_fails_before_training(tones, tmp_path):
    with pytest.raises(ValueError, match="placeholder"):
        train(tiny_recipe(tones), tmp_path / "run", card_template="$nobody_knows")
    assert CheckpointStore(tmp_path / "run").last() is None


def test_training_learns(tones, tmp_path):
    """A small deterministic model in a few steps: the loss must fall well below that of guessing letters."""
    recipe = tiny_recipe(
        tones,
        model={"d_model": 32, "encoder_ffn_dim": 64, "dropout": 0.0, "head_drop": 0.0, "label_smoothing": 0.0}
        | {"head_regularizer": "none", "head_regularizer_layers": []},
        schedule={"max_steps": 60, "warmup_steps": 20},
        optimizer={"peak_learning_rate": 4e-3},
        augmentation={"frequency_masks": 0, "time_masks": 0},
        data={"validation_split": None},
        evaluation={"log_every_steps": 20, "tensorboard": True},
    )
    train(recipe, tmp_path / "run")
    losses = [record["loss"] for record in read_history(tmp_path / "run" / "history.jsonl")]
    assert losses[-1] < 0.75 * losses[0]
    assert losses[-1] < 2.2  # log(9) letters
    assert list((tmp_path / "run" / "tensorboard").iterdir())


# transformers' own Trainer


def test_seq2seq_trainer_trains_and_generates(tones, tmp_path):
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    recipe = tiny_recipe(tones)
    splits = load_folder(tones)
    processor = build_processor(recipe, load_rows(recipe))
    model = build_model(recipe, build_config(recipe, processor), prepare_split(splits["train"], processor))
    model.config.head_regularizer_weight = 100.0  # any step closes a gate that the callback thresholds
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        predict_with_generate=True,
        generation_max_length=8,
        remove_unused_columns=False,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=SpeechSeq2SeqCollator(processor),
        processing_class=processor,
        compute_metrics=word_error_metrics(processor.tokenizer),
        callbacks=[HeadGateCallback()],
    )
    trainer.train()
    evaluation = [entry for entry in trainer.state.log_history if "eval_wer" in entry]
    assert len(evaluation) == 1
    assert evaluation[0]["eval_wer"] > 0
    assert evaluation[0]["eval_reference_words"] == 10
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) > 0.9 * len(before)
    assert all(bool((gate == 0).all()) for gate in model.gates().values())

"""The programs of scripts/, run as a user runs them, and several processes against one."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from hf_entmax_asr.recognition import transcription
from hf_entmax_asr.training import train
from hf_entmax_asr.training.recipe import recipe_to_dict
from support.tones import plain_recipe, write_splits

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, test=6)


@pytest.fixture(scope="module")
def checkpoint(tones, tmp_path_factory) -> Path:
    recipe = plain_recipe(tones, schedule={"max_steps": 2})
    return train(recipe, tmp_path_factory.mktemp("run") / "run").last.resolve()


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


# train.py


def save_recipe(recipe, path: Path) -> Path:
    path.write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    return path


@pytest.mark.slow
def test_two_processes_train_as_one(tones, tmp_path):
    """Two processes with one batch each make the steps of one process with two: gradients are means over tokens."""
    recipe = plain_recipe(tones, schedule={"max_steps": 4, "warmup_steps": 2}, evaluation={"compare_decodings": False})
    alone = train(
        plain_recipe(tones, schedule={"max_steps": 4, "warmup_steps": 2}, batching={"accumulation_steps": 2}),
        tmp_path / "alone",
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, SCRIPTS / "train.py", "--recipe", save_recipe(recipe, tmp_path / "r.yaml")]
    command += ["--output", tmp_path / "together"]
    done = subprocess.run(
        command,
        env=environment() | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("finished after 4 steps")
    expected = load_file(alone.last / "model.safetensors")
    actual = load_file(tmp_path / "together" / "last" / "model.safetensors")
    for name, tensor in expected.items():
        if name.endswith("self_attn.k_proj.bias"):
            continue  # it shifts all scores of a row alike: its gradient is 0 but for rounding, which Adam scales up
        torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    state = tmp_path / "together" / "last" / "training_state"
    assert {key[0] for key in load_file(state / "random.safetensors")} == {"0", "1"}
    assert json.loads((state / "state.json").read_text())["scores"].keys() == {"4"}


def test_a_launch_that_starts_one_process_of_several_is_refused(call, monkeypatch, tmp_path):
    # What accelerate 1.15 sets for `accelerate launch --cpu --num_processes 2`.
    for name, value in (("ACCELERATE_USE_CPU", "True"), ("KMP_AFFINITY", "fine"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    status, _, error = call("train", "--recipe", SCRIPTS / "recipes" / "prompts_demo.yaml", "--output", tmp_path)
    assert status == 1
    assert "accelerate launch --multi_gpu --num_processes N" in error


def test_an_interrupted_run_saves_and_resumes(call, tones, tmp_path, monkeypatch):
    from hf_entmax_asr.training.engine import TrainingRun

    step = TrainingRun._step

    def interrupted(self, batches):
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, batches)

    monkeypatch.setattr(TrainingRun, "_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    recipe = save_recipe(plain_recipe(tones, schedule={"max_steps": 100000}), tmp_path / "r.yaml")
    status, out, _ = call("train", "--recipe", recipe, "--output", tmp_path / "run")
    assert status == 0
    assert out.startswith("stopped; --resume goes on after 3 steps")
    assert signal.getsignal(signal.SIGINT) is before
    status, out, _ = call("train", "--output", tmp_path / "run", "--resume", "--stop-after", "5")
    assert status == 0
    assert out.startswith("stopped; --resume goes on after 5 steps")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.d_modl=3"], "did you mean 'd_model'"),
        (["--data", "/nowhere"], "corpus folder /nowhere does not exist"),
        (["--set", "data.validation_split=dev"], "no split 'dev'"),
    ],
)
def test_train_says_what_is_wrong_in_one_line(call, tones, tmp_path, arguments, message):
    recipe = save_recipe(plain_recipe(tones), tmp_path / "r.yaml")
    status, out, error = call("train", "--recipe", recipe, "--output", tmp_path / "run", *arguments)
    assert (status, out) == (1, "")
    assert message in error
    assert "Traceback" not in error


def test_the_best_checkpoint_is_pushed_without_training_state(call, tones, tmp_path, monkeypatch):
    """Against a Hub that only notes what it is told."""
    import huggingface_hub

    told = {}

    class Hub:
        def create_repo(self, name, private, exist_ok):
            told["repository"] = (name, private, exist_ok)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{name}")

        def upload_folder(self, repo_id, folder_path, ignore_patterns, commit_message):
            names = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
            told["files"] = set(huggingface_hub.utils.filter_repo_objects(names, ignore_patterns=ignore_patterns))
            told["repo_id"] = repo_id

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
            told["files"].add(path_in_repo)
            told["card"] = path_or_fileobj.decode()

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "whoami", lambda: {"name": "me"})
    recipe = save_recipe(plain_recipe(tones, schedule={"max_steps": 2}), tmp_path / "r.yaml")
    arguments = ("--recipe", recipe, "--output", tmp_path / "run", "--push_to_hub", "tones", "--private")
    status, out, error = call("train", *arguments)
    assert status == 0, error
    assert told["repository"] == ("tones", True, True)
    assert told["repo_id"] == "me/tones"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "modeling_entmax_asr.py"} <= told[
        "files"
    ]
    assert not any(name.startswith("training_state") for name in told["files"])
    assert "https://huggingface.co/me/tones" in out
    assert 'model="me/tones"' in told["card"]
    assert not re.search(r"\$[a-z]|THIS_REPOSITORY|to be stated", told["card"])
    head = yaml.safe_load(told["card"].split("---")[1])
    assert head["model-index"][0]["results"][0]["metrics"][0]["type"] == "wer"
    assert head["model-index"][0]["name"] not in ("run", "best", "last")


def test_a_push_without_access_is_refused_before_training(call, tones, tmp_path, monkeypatch):
    import huggingface_hub

    def whoami():
        raise OSError("no token")

    monkeypatch.setattr(huggingface_hub, "whoami", whoami)
    recipe = save_recipe(plain_recipe(tones), tmp_path / "r.yaml")
    status, _, error = call("train", "--recipe", recipe, "--output", tmp_path / "run", "--push-to-hub", "tones")
    assert status == 1
    assert "no token" in error
    assert not (tmp_path / "run").exists()


# evaluate.py


def test_evaluate_prints_scores_and_writes_utterances(call, checkpoint, tones, tmp_path):
    status, out, _ = call("evaluate", checkpoint, tones, "--output", tmp_path / "scores.jsonl")
    assert status == 0
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == [f"{i:03d}" for i in range(6)]
    words = sum(len(record["reference"].split()) for record in records)
    errors = sum(record[kind] for record in records for kind in ("substitutions", "insertions", "deletions"))
    assert f"WER {100 * errors / words:.1f} %" in out
    assert f"{words} words" in out
    assert "6 utterances of test" in out


def test_evaluate_batches_do_not_change_the_result(call, checkpoint, tones, tmp_path):
    for name, frames in (("one", "100"), ("all", "16000")):
        arguments = (
            "--frames-per-batch",
            frames,
            "--output",
            tmp_path / name,
            "--decoding",
            "soft",
            "--num-beams",
            "2",
        )
        assert call("evaluate", checkpoint, tones, *arguments)[0] == 0
    assert (tmp_path / "one").read_text() == (tmp_path / "all").read_text()


def test_evaluate_names_what_it_lacks(call, checkpoint, tones):
    status, _, error = call("evaluate", checkpoint, tones, "--split", "dev")
    assert status == 1
    assert "no split 'dev'; it has test, train" in error
    status, _, error = call("evaluate", tones / "nothing", tones)
    assert status == 1
    assert "there is no folder" in error
    status, _, error = call("evaluate", tones, tones)
    assert status == 1
    assert "is not a checkpoint of hf_entmax_asr" in error


# transcribe.py


@pytest.fixture
def recordings(tones, tmp_path) -> Path:
    """A folder with good files of several kinds and rates, and two that cannot be transcribed."""
    folder = tmp_path / "recordings"
    (folder / "deep").mkdir(parents=True)
    audio, _ = soundfile.read(tones / "test" / "000.flac", dtype="float32")
    soundfile.write(folder / "a.wav", audio, 16000)
    soundfile.write(folder / "b.ogg", np.stack([audio, audio], axis=1), 16000)
    soundfile.write(folder / "deep" / "c.mp3", np.repeat(audio, 3), 48000)
    soundfile.write(folder / "d.flac", audio[:100], 16000)
    (folder / "e.wav").write_text("not audio")
    (folder / "notes.txt").write_text("not audio either, and not asked for")
    return folder


def test_transcribe_does_what_it_can_and_reports_the_rest(call, checkpoint, recordings, tmp_path):
    output = tmp_path / "out.json"
    status, _, error = call("transcribe", checkpoint, recordings, tmp_path / "missing.wav", "--output", output)
    assert status == 1
    records = {Path(r["file"]).name: r for r in json.loads(output.read_text())}
    assert list(records) == ["a.wav", "b.ogg", "d.flac", "c.mp3", "e.wav", "missing.wav"]
    for name in ("a.wav", "b.ogg", "c.mp3"):
        assert "error" not in records[name]
        assert isinstance(records[name]["text"], str)
        assert records[name]["seconds"] == pytest.approx(records["a.wav"]["seconds"], abs=0.1)
    assert "less than one analysis window" in records["d.flac"]["error"]
    assert "cannot be decoded" in records["e.wav"]["error"]
    assert "does not exist" in records["missing.wav"]["error"]
    for name in ("d.flac", "e.wav", "missing.wav"):
        assert name in error


def test_transcribe_prints_text(call, checkpoint, recordings):
    status, out, error = call("transcribe", checkpoint, recordings / "a.wav")
    assert (status, error) == (0, "")
    assert len(out.splitlines()) == 1
    status, out, _ = call("transcribe", checkpoint, recordings / "a.wav", recordings / "b.ogg", "--decoding", "soft")
    assert status == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(recordings / "a.wav"), str(recordings / "b.ogg")]


def test_transcribe_refuses_what_is_too_long(call, checkpoint, recordings):
    status, _, error = call("transcribe", checkpoint, recordings / "a.wav", "--max-seconds", "0.5")
    assert status == 1
    assert "the limit is 0.5 s" in error


def test_transcribe_writes_every_form_of_a_long_recording_with_times(call, checkpoint, recordings, tmp_path):
    tone, rate = soundfile.read(recordings / "a.wav", dtype="float32")
    pause = np.zeros(rate, np.float32)
    soundfile.write(tmp_path / "long.wav", np.concatenate([pause, tone, pause, tone, pause, tone]), rate)
    output = tmp_path / "texts"
    options = ("--output-folder", output, "--format", "txt,json,srt,vtt,ctm", "--piece-seconds", "1.2")
    status, out, error = call("transcribe", checkpoint, tmp_path / "long.wav", *options)
    assert (status, out, error) == (0, "", "")
    assert sorted(p.name for p in output.iterdir() if p.is_file()) == [
        f"long.{form}" for form in ("ctm", "json", "srt", "txt", "vtt")
    ]
    record = json.loads((output / "long.json").read_text())
    assert record["seconds"] == pytest.approx(3 * (1 + len(tone) / rate), abs=1e-3)
    assert (output / "long.txt").read_text() == record["text"] + "\n"
    assert " ".join(word["text"] for word in record["words"]) == record["text"]
    starts = [word["start"] for word in record["words"]]
    assert starts == sorted(starts)
    status, out, _ = call("transcribe", checkpoint, recordings, "--format", "srt")
    assert (status, out) == (1, "")


@pytest.fixture
def audio_read(monkeypatch):
    """Names of the files that are read; they are recognised one by one."""
    read = []
    blocks, transcribe = transcription.audio_blocks, transcription.transcribe_files

    def recorded(file, rate):
        if len(read) == stop_after[0]:
            raise KeyboardInterrupt
        read.append(Path(file).name)
        return blocks(file, rate)

    stop_after = [None]
    monkeypatch.setattr(transcription, "audio_blocks", recorded)
    monkeypatch.setattr(
        transcription,
        "transcribe_files",
        lambda *arguments, **options: transcribe(*arguments, **options | {"seconds_per_batch": 0.1}),
    )
    return read, stop_after


@pytest.mark.parametrize("kind", ["--output-folder", "--output"])
def test_transcribe_goes_on_where_it_was_stopped(call, checkpoint, recordings, tmp_path, audio_read, kind):
    read, stop_after = audio_read
    output = tmp_path / ("out" if kind == "--output-folder" else "out.json")
    arguments = ("transcribe", checkpoint, recordings, kind, output)
    stop_after[0] = 3
    status, _, error = call(*arguments)
    assert status == 130
    assert "interrupted" in error
    assert kind == "--output-folder" or not output.exists()
    stopped = read.copy()
    assert len(stopped) == 3
    read.clear()
    stop_after[0] = None
    status, _, error = call(*arguments, "--resume", "--num-beams", "2")
    assert status == 1
    assert "run with num_beams = 1, now it is 2" in error
    status, _, error = call(*arguments, "--resume")
    assert status == 1  # d.flac and e.wav are no good
    good = {"a.wav", "b.ogg", "c.mp3"}
    assert sorted(read) == sorted({"a.wav", "b.ogg", "c.mp3", "d.flac", "e.wav"} - (good & set(stopped)))
    if kind == "--output":
        records = {Path(record["file"]).name: record for record in json.loads(output.read_text())}
        assert {name for name, record in records.items() if "error" not in record} == good
    else:
        assert {str(p.relative_to(output)) for p in output.rglob("*.txt")} == {"a.txt", "b.txt", "deep/c.txt"}
    read.clear()
    call(*arguments, "--resume")
    assert sorted(read) == ["d.flac", "e.wav"]


@pytest.mark.slow
def test_two_processes_transcribe_as_one(call, checkpoint, recordings, tmp_path):
    (recordings / "e.wav").unlink()
    status, _, _ = call("transcribe", checkpoint, recordings, "--output", tmp_path / "alone.json")
    assert status == 1
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, SCRIPTS / "transcribe.py", checkpoint, recordings, "--output", tmp_path / "together.json"],
        env=environment() | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "less than one analysis window" in done.stderr
    assert json.loads((tmp_path / "together.json").read_text()) == json.loads((tmp_path / "alone.json").read_text())

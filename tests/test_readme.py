"""The README's Python blocks run, and its commands name programs and options that exist."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrProcessor
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.corpus_trees import write_aishell1, write_librispeech, write_wsj
from support.small_models import small_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- test(?:: (\w+))? -->\n```python\n(.*?)```", README, flags=re.S)


def tone(seconds: float) -> np.ndarray:
    return 0.1 * np.sin(np.arange(int(16000 * seconds)) * 0.2).astype(np.float32)


def small_processor() -> EntmaxAsrProcessor:
    return EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(), train_character_tokenizer(["one two three", "four five"]))


def test_every_python_block_is_marked():
    assert len(BLOCKS) == README.count("```python") >= 4


@pytest.mark.parametrize(
    ("needs", "code"), BLOCKS, ids=[f"{i}-{needs or 'alone'}" for i, (needs, _) in enumerate(BLOCKS)]
)
def test_python_block_runs(needs, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "readme"}
    if needs:
        processor = small_processor()
        model = small_model(vocab_size=len(processor.tokenizer), num_mel_bins=80)
        names |= {"model": model, "processor": processor}
    if needs == "checkpoint":
        model.save_pretrained("demo_output/run/best")
        processor.save_pretrained("demo_output/run/best")
        soundfile.write("recording.wav", tone(1.0), 16000)
    if needs == "corpora":
        write_aishell1(tmp_path)
        write_wsj(tmp_path / "wsj")
        write_librispeech(tmp_path, ("train-clean-100", "dev-clean"))
        code = code.replace('"/data/', f'"{tmp_path}/').replace("num_proc=8", f"cache_dir='{tmp_path}/cache'")
    if needs == "trainer":
        names["dataset"] = [{"audio": tone(1.0), "text": "one two"}, {"audio": tone(1.5), "text": "four five"}]
    exec(compile(code, "README.md", "exec"), names)


def commands() -> dict[str, list[str]]:
    """By program, every line of the README's shell blocks that starts it, continuation lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    result: dict[str, list[str]] = {}
    for line in lines:
        for program in re.findall(r"(?:scripts|benchmarks)/[\w/]+\.py|experiments\.[\w.]+", line):
            result.setdefault(program, []).append(line.split("  #")[0].strip())
    return result


@pytest.mark.parametrize("program", commands())
def test_commands_name_what_exists(program):
    start = ["-m", program] if program.startswith("experiments.") else [program]
    usage = subprocess.run(
        [sys.executable, *start, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for command in commands()[program]:
        for option in re.findall(r"(--[a-z][\w-]*)", command.split(program)[1]):
            assert option in usage, f"{program} has no option {option}"
        for file in re.findall(r"scripts/(?:recipes|launch)/\S+", command):
            assert (ROOT / file).is_file()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target

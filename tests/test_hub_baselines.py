"""Checkpoints of the systems to compare with, where the package is not installed."""

import ast
import json
from pathlib import Path

import pytest
import soundfile

from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrProcessor
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.apart import run_apart
from support.small_baselines import baseline

HERE = Path(__file__).parent
NAMES = ("rnn_t", "jasper")


@pytest.mark.slow
def test_checkpoints_load_and_transcribe_where_the_package_is_not(tmp_path):
    tokenizer = train_character_tokenizer(["the quick brown fox jumps over the lazy dog"])
    processor = EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(), tokenizer)
    expected = {}
    inputs = processor(audio=soundfile.read(HERE / "speech.flac", dtype="float32")[0], sampling_rate=16000)
    for name in NAMES:
        model = baseline(name, vocab_size=len(tokenizer), num_mel_bins=80)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        expected[name] = model.generate(**inputs, max_new_tokens=6, num_beams=2).tolist()
        for file in (tmp_path / name).glob("*.py"):  # all that is imported travels, and nothing else is needed
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert (node.level, (tmp_path / name / f"{node.module}.py").exists()) == (1, True), file.name
    program = HERE / "support" / "baselines_alone.py"
    done = run_apart(program, HERE / "speech.flac", *(tmp_path / name for name in NAMES), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, report in zip(NAMES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert report["module"].startswith(f"transformers_modules.{name}.")
        assert report["branch"] == "seq2seq"
        assert report["tokens"] == expected[name]
        assert report["pipeline"] == report["text"]

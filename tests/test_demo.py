"""The demo from end to end, with a few sentences and a few steps: every part runs and writes what it names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_demo_runs_from_end_to_end(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "demo.py", "--output", tmp_path, "--sentences", "12"]
    settings = [
        "schedule.max_steps=4",
        "evaluation.max_utterances=2",
        "evaluation.compare_decodings=false",
        "model.d_model=32",
        "evaluation.log_every_steps=2",
    ]
    result = subprocess.run(
        [*command, "--set", *settings],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["test"]["hard"]["reference_words"] > 30
    assert set(report["test"]) == {"hard", "hard, threshold rule", "soft"}
    assert report["heldout_prompts"]["hard"]["reference_words"] > 20
    assert all(1 < a < 2 for heads in report["heads"].values() for a in heads["alpha"])
    assert 0 < report["encoder_zero_share"] < 1
    assert "Through pipeline()" in result.stdout
    for picture in ("encoder_maps", "alphas", "scores"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()

"""What a run tells: its history and its bar."""

import os
import sys

import pytest

from hf_entmax_asr.recognition import CheckpointError
from hf_entmax_asr.training import read_history
from hf_entmax_asr.training.reporting import Reporter


def test_a_resumed_report_drops_what_lay_beyond_the_checkpoint(tmp_path):
    history = tmp_path / "history.jsonl"
    history.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')  # cut off by a crash
    with Reporter(tmp_path, enabled=True, tensorboard=False, start_step=2):
        pass
    assert [record["step"] for record in read_history(history)] == [1, 2]
    with Reporter(tmp_path, enabled=True, tensorboard=False):
        pass
    assert read_history(history) == []


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1.5}',
        '{"step": 1, "alpha": {"a": ["x"]}}',
        '{"step": 1, "alpha": {"a": [NaN]}}',
        '{"step": 1, "gate": 3}',
        "\x00",
    ],
)
def test_a_damaged_history_is_named_with_its_line(tmp_path, line):
    history = tmp_path / "history.jsonl"
    history.write_text(f'{{"step": 1, "alpha": {{"a": [1.5]}}}}\n{line}\n')
    with pytest.raises(CheckpointError, match=rf"{history}, line 2: not a JSON object with a step"):
        read_history(history)
    history.unlink()
    os.mkfifo(history)
    with pytest.raises(CheckpointError, match=r"history\.jsonl is a pipe"):
        read_history(history)


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    values = {"loss": 1.5, "ctc_loss": 2.25, "learning_rate": 0.001, "frames_per_second": 12345.6}
    with Reporter(tmp_path, enabled=True, tensorboard=False) as reporter:
        reporter.training(7, values, {}, time_left=75.0)
        reporter.progress(0.5)
    shown = capsys.readouterr().err
    assert " 50 %|" in shown
    assert "step 7: loss 1.500 (ctc 2.250), lr 1.00e-03, 12,346 frames/s, 1:15 left" in shown

"""What a run tells: its history and its bar."""

import sys

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


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    values = {"loss": 1.5, "ctc_loss": 2.25, "learning_rate": 0.001, "frames_per_second": 12345.6}
    with Reporter(tmp_path, enabled=True, tensorboard=False) as reporter:
        reporter.training(7, values, {}, time_left=75.0)
        reporter.progress(0.5)
    shown = capsys.readouterr().err
    assert " 50 %|" in shown
    assert "step 7: loss 1.500 (ctc 2.250), lr 1.00e-03, 12,346 frames/s, 1:15 left" in shown

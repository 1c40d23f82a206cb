"""Errors in one line."""

import errno
import os
from pathlib import Path

import pytest

from hf_entmax_asr.error_messages import INTERRUPTED, described, in_one_line, reports_errors
from hf_entmax_asr.kernels import modes


def failing(error):
    @reports_errors("tool.py")
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.json"), "out.json: No space left on device"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), "a, b: Invalid link"),
        (FileNotFoundError("audio file x does not exist"), "audio file x does not exist"),
        (ValueError("it is wrong"), "it is wrong"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_error_is_a_message_and_a_status(error, said, capsys, monkeypatch):
    assert described(error) == said
    assert failing(error)() == 1
    assert capsys.readouterr().err == f"tool.py: {said}\n"
    monkeypatch.setenv("HF_ENTMAX_ASR_TRACEBACK", "1")
    with pytest.raises(type(error)):
        failing(error)()


def test_mistakes_of_the_program_keep_their_traceback(capsys):
    with pytest.raises(KeyError):
        failing(KeyError("name"))()
    assert failing(KeyboardInterrupt())() == INTERRUPTED
    assert capsys.readouterr().err == "tool.py: interrupted\n"


def test_what_succeeds_is_left_alone():
    @reports_errors("tool.py")
    def main(words: list[str]) -> int:
        return len(words)

    assert main(["a", "b"]) == 2
    assert main.__name__ == "main"
    assert os.environ.get("HF_ENTMAX_ASR_TRACEBACK") is None


def test_an_unknown_mode_of_the_kernels_is_a_message(capsys, monkeypatch):
    monkeypatch.setattr(modes._State, "mode", "fast")
    assert reports_errors("tool.py")(lambda: 0)() == 1
    assert capsys.readouterr().err.startswith("tool.py: HF_ENTMAX_ASR_KERNELS = 'fast' is not known. Use one of auto,")


def test_every_program_reports_its_errors():
    for program in (Path(__file__).parent.parent / "scripts").glob("*.py"):
        if program.name == "program_options.py":  # what programs share
            continue
        assert f'@reports_errors("{program.name}")\ndef main(' in program.read_text(encoding="utf-8"), program.name


def test_an_error_of_many_lines_becomes_one():
    assert in_one_line(ValueError("one\n  two\n")) == "one two"
    assert in_one_line(KeyError()) == "KeyError"

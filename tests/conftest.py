"""Set-up shared by all tests."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

# Tests run side by side, one on each core, and so do the programs that they start. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():  # Triton kernels are then tested in its interpreter; read when triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hf_entmax_asr.kernels import backend  # imports triton, by way of transformers

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.append(str(SCRIPTS))  # its programs import program_options; at the end, for one is named like evaluate

# Marks that transformers' own common tests carry (test_common_transformers.py).
THEIR_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "order",
    "torch_compile_test",
)


@pytest.fixture
def seeded():
    torch.manual_seed(0)


def pytest_configure(config):
    for mark in THEIR_MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")
    if os.environ.get("CI") == "true":
        problem = backend.triton_problem() or (None if backend.cpu_available() else backend.status())
        if problem:
            raise pytest.UsageError(f"CI skips no test of the kernels, and here {problem}")


def script(name: str):
    """The program as a module, to call its main in this process."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(monkeypatch, capsys):
    """Call a program with arguments: (exit status, what it printed, what it said on the error stream)."""

    def run(name: str, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        status = script(name).main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run

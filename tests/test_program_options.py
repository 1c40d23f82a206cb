"""The programs read their options before they import the package, and know its names all the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_entmax_asr.corpora import CORPORA, text_rules
from hf_entmax_asr.export import folder as export_folder
from hf_entmax_asr.ngram_lm import scoring
from hf_entmax_asr.recognition import transcript_forms
from hf_entmax_asr.text import GENERAL_RULES
from program_options import (
    EXPORT_FORMATS,
    GENERAL_TEXT_RULES,
    LANGUAGE_MODEL_UNITS,
    TRANSCRIPT_FORMS,
    UNKNOWN_WORDS,
    corpora_in_text,
)
from program_options import text_rules as rule_names

ROOT = Path(__file__).parent.parent
PROGRAMS = [path for path in sorted((ROOT / "scripts").glob("*.py")) if path.stem != "program_options"]
EXPERIMENTS = (
    "silence",
    "searches",
    *(f"from_whisper/{name}" for name in ("firing", "joined_recording", "live", "road", "word_times")),
)
# Values that no option of the programs takes, and what else they need.
WRONG_VALUES = (
    ["scripts/evaluate.py", "C", "D", "--corpus", "none"],
    ["scripts/evaluate.py", "C", "D", "--normalization", "wrong"],
    ["scripts/evaluate.py", "C", "D", "--lm-unit", "syllable"],
    ["scripts/transcribe.py", "C", "a.wav", "--format", "doc"],
    ["scripts/prepare.py", "esperanto", "D"],
    ["scripts/tune_lm.py", "C", "D", "--lm", "lm.arpa", "--weights", "heavy"],
    ["scripts/train.py", "--output", "runs/x", "--stop-after", "0", "--resume"],
    ["scripts/compare.py", "a", "b", "--level", "2"],
    ["scripts/convert_whisper.py", "W", "--output", "F", "--config", "cross_attention"],
    ["scripts/sparsify.py", "C", "D", "--output", "F", "--clips", "0"],
    ["scripts/prune.py", "C", "--out", "F", "--heads", "encoder.layers.0.self_attn"],
)
# A program a line of the input; printed is what each said last, its exit status and what it had imported.
RUN_THEM = """
import contextlib, io, json, runpy, sys
for line in sys.stdin:
    sys.path[0], sys.argv, said = "scripts", json.loads(line), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        imported = [module for module in ("torch", "transformers", "numpy", "hf_entmax_asr") if module in sys.modules]
        print(json.dumps([said.getvalue().strip().split("\\n")[-1], end.code, imported]))
"""


@pytest.fixture(scope="module")
def answers() -> list:
    """(command, last line of the error stream, exit status, heavy modules imported by then) of every wrong command."""
    files = [*map(str, PROGRAMS), *(f"experiments/{name}.py" for name in EXPERIMENTS)]
    commands = [*([file, "--no-such-option"] for file in files), *WRONG_VALUES]
    done = subprocess.run(
        [sys.executable, "-c", RUN_THEM],
        cwd=ROOT,
        input="\n".join(map(json.dumps, commands)),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return [(" ".join(command), *json.loads(line)) for command, line in zip(commands, lines, strict=True)]


def test_a_wrong_option_ends_every_program_before_its_imports(answers):
    assert len(PROGRAMS) > 15
    for command, said, status, imported in answers:
        assert "error: " in said, command
        assert (status, imported) == (2, []), command


def test_the_names_are_those_of_the_package():
    assert corpora_in_text() == tuple(CORPORA)
    assert tuple(rule.name for rule in GENERAL_RULES) == GENERAL_TEXT_RULES
    assert set(text_rules()) <= set(rule_names())
    assert tuple(export_folder.FORMATS) == EXPORT_FORMATS
    assert TRANSCRIPT_FORMS == transcript_forms.FORMS
    assert (LANGUAGE_MODEL_UNITS, UNKNOWN_WORDS) == (scoring.UNITS, scoring.UNKNOWN_WORDS)

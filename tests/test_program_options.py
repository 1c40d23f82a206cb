"""The programs read their options before they import the package, and know its names all the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from experiments.real_speech import build_corpus
from experiments.real_speech.cache_folders import FOLDERS

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
    ["experiments.from_whisper.study", "W", "--output", "F", "--readings", "half"],
    ["experiments.from_whisper.study", "W", "--output", "F", "--both"],
    ["experiments.fuzz_kernels", "--functions", "relu"],
    ["experiments.real_speech.build_corpus", "chess"],
    ["experiments.real_speech.grid", "--output", "F", "--transforms", "relu"],
    ["experiments.real_speech.whisper_weights", "huge", "--output", "F"],
    ["experiments.smaller_models.study", "C", "--data", "D", "--recipe", "R", "--output", "F", "--steps", "0"],
    ["experiments.tables", "--table", "III", "--output", "F", "--corpus", "none"],
    ["experiments.tables", "--table", "II", "--output", "F", "--systems", "rnn_t"],
    ["benchmarks/gpu_speed.py", "--dtype", "int8"],
)
HEAVY = ("torch", "transformers", "numpy", "datasets", "hf_entmax_asr")
# A program a line of the input; printed is what each said last, its exit status and what it had imported.
RUN_THEM = f"""
import contextlib, io, json, sys
from support.usages import start
for line in sys.stdin:
    sys.argv, said = json.loads(line), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            start(sys.argv[0])
    except SystemExit as end:
        imported = [module for module in {HEAVY} if module in sys.modules]
        print(json.dumps([said.getvalue().strip().split("\\n")[-1], end.code, imported]))
"""


def programs() -> list[str]:
    """Every program of the repository, as a file or, of experiments, as a module for -m."""
    found = []
    for folder in ("scripts", "experiments", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                name = path.relative_to(ROOT).as_posix()
                module = name.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
                found.append(module if folder == "experiments" else name)
    return found


@pytest.fixture(scope="module")
def answers() -> list:
    """(command, last line of the error stream, exit status, heavy modules imported by then) of every wrong command."""
    commands = [*([program, "--no-such-option"] for program in programs()), *WRONG_VALUES]
    done = subprocess.run(
        [sys.executable, "-c", RUN_THEM],
        cwd=ROOT / "tests",
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
    assert len(answers) > 50
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


def test_every_game_has_a_folder():
    assert tuple(build_corpus.GAMES) == tuple(FOLDERS)

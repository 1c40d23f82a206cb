"""Rules that hold for every source file of the repository, read from its text and syntax."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "scripts", "experiments", "benchmarks", "tests")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CONSTRUCTOR_ARGUMENTS = 12

MODELS = {"model", "EntmaxAsrForConditionalGeneration"}
PROCESSORS = {"processor", "EntmaxAsrProcessor", "tokenizer", "feature_extractor"}


@cache
def trees() -> dict[str, ast.Module]:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def test_files_have_at_most_400_lines():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp", ".h")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lines) > 100
    assert not {name: count for name, count in lines.items() if count > MAX_FILE_LINES}


def test_functions_have_at_most_60_lines_and_constructors_12_arguments():
    long, wide = [], []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (count := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES:
                long.append((file, node.name, count))
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            if node.name == "__init__" and len(given) - 1 > MAX_CONSTRUCTOR_ARGUMENTS:
                wide.append((file, node.lineno, len(given) - 1))
    assert not long
    assert not wide


def name_of(node: ast.AST) -> str | None:
    """`model` of a variable, an attribute, a parameter or an annotation."""
    for field in ("id", "attr", "arg"):
        if isinstance(name := getattr(node, field, None), str):
            return name
    return None


def sequences(tree: ast.Module) -> Iterator[tuple[int, list[str | None]]]:
    """(line, names) of everything that has an order: tuples (of results, of types), arguments, fields of a class."""
    for node in ast.walk(tree):
        ordered: list = []
        if isinstance(node, ast.Tuple | ast.List):
            ordered = node.elts
        elif isinstance(node, ast.Call):
            ordered = node.args
        elif isinstance(node, ast.FunctionDef):
            ordered = [*node.args.posonlyargs, *node.args.args]
        elif isinstance(node, ast.ClassDef):
            ordered = [field.target for field in node.body if isinstance(field, ast.AnnAssign)]
        if ordered:
            yield node.lineno, [name_of(item) for item in ordered]


def misordered(tree: ast.Module) -> list[tuple[int, list[str | None]]]:
    """Where a processor, or a part of one, stands before its model."""
    found = []
    for line, names in sequences(tree):
        models = [place for place, name in enumerate(names) if name in MODELS]
        processors = [place for place, name in enumerate(names) if name in PROCESSORS]
        if models and processors and processors[0] < models[0]:
            found.append((line, names))
    return found


def test_the_model_comes_before_its_processor_everywhere():
    assert not {file: found for file, tree in trees().items() if (found := misordered(tree))}


@pytest.mark.parametrize(
    "code",
    [
        "def load() -> tuple[EntmaxAsrProcessor, EntmaxAsrForConditionalGeneration]: ...",
        "def score(tokenizer, model): ...",
        "processor, model = load()",
        "score(run.processor, run.model)",
        "class Prepared:\n    processor: object\n    model: object",
    ],
)
def test_the_other_order_is_found(code):
    assert misordered(ast.parse(code))


def test_the_label_that_losses_ignore_has_one_home():
    """Elsewhere than in tests, −100 is written once and imported by its name."""
    found = [
        (file, node.lineno)
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and ast.unparse(node) == "-100"
    ]
    assert [file for file, _ in found if not file.startswith("tests/")] == ["src/hf_entmax_asr/model/losses.py"], found

"""A checkpoint on its own: what is saved, and that it loads where the package is not installed."""

import ast
import json
import sys
from pathlib import Path

import pytest

from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrProcessor
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.checkpoint_alone import examine, examine_apart
from support.small_models import small_model

HERE = Path(__file__).parent
MODEL_FOLDER = HERE.parent / "src" / "hf_entmax_asr" / "model"
AUDIO = str(HERE / "speech.flac")

FIGURES = ("loss of", "gradient of", "zeros of")  # in the reports of checkpoint_alone.py


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_character_tokenizer(["the quick brown fox jumps over the lazy dog"])
    EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(), tokenizer).save_pretrained(folder)
    small_model(lively=True, vocab_size=len(tokenizer), num_mel_bins=80).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def with_the_package(checkpoint) -> dict:
    return examine(AUDIO, str(checkpoint))


def test_what_is_saved(checkpoint):
    suffixes = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".py", ".safetensors"}  # no pickle
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["EntmaxAsrForConditionalGeneration"]
    assert config["auto_map"] == {
        "AutoModel": "modeling_entmax_asr.EntmaxAsrModel",
        "AutoConfig": "configuration_entmax_asr.EntmaxAsrConfig",
        "AutoModelForSpeechSeq2Seq": "modeling_entmax_asr.EntmaxAsrForConditionalGeneration",
    }


def test_the_code_is_saved_whole_and_needs_nothing_else(checkpoint):
    saved = {path.name for path in checkpoint.glob("*.py")}
    assert {"alignment.py", "entmax.py", "losses.py", "modeling_entmax_asr.py", "processing_entmax_asr.py"} <= saved
    # transformers asks each Hub user to install whatever these files import outside a try.
    there = {"huggingface_hub", "numpy", "torch", "transformers"} | set(sys.stdlib_module_names)
    for name in saved:
        code = (checkpoint / name).read_text()
        assert code == (MODEL_FOLDER / name).read_text()
        tree = ast.parse(code)
        tried = {node for block in ast.walk(tree) if isinstance(block, ast.Try) for node in block.body}
        for node in ast.walk(tree):
            if node in tried and isinstance(node, ast.ImportFrom):
                assert node.module == "hf_entmax_asr.kernels", name
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert (node.level, f"{node.module}.py" in saved) == (1, True), f"{name} needs {node.module}"
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= there, name
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in there, name


def test_the_stock_pipeline_with_the_package(with_the_package):
    report = with_the_package
    assert all(module.startswith("hf_entmax_asr.") for module in report["modules"])
    model = "EntmaxAsrForConditionalGeneration"
    assert report["classes"] == ["EntmaxAsrConfig", model, "EntmaxAsrProcessor", model, "EntmaxAsrModel"]
    assert report["branch"] == "seq2seq"
    assert report["pipeline"] == report["text"]
    assert len(report["text"]) > 3


def test_the_checkpoints_own_pipeline_gives_times(with_the_package):
    """That it is equal where the package is not: below."""
    result = with_the_package["words"]
    assert result["text"] == " ".join(chunk["text"] for chunk in result["chunks"]) == with_the_package["text"].strip()
    times = [time for chunk in result["chunks"] for time in chunk["timestamp"]]
    assert times == sorted(times)
    assert all(0 <= chunk["confidence"] <= 1 for chunk in result["chunks"])


@pytest.mark.parametrize("name", ["model", "pipeline"])
def test_loaded_models_are_sparse_and_their_alpha_learns(name, with_the_package):
    assert min(with_the_package[f"zeros of {name}"]) > 0.3  # a softmax in its place would have none
    assert len(with_the_package[f"gradient of {name}"]) == 4
    assert min(with_the_package[f"gradient of {name}"]) > 0


def test_a_checkpoint_loads_where_the_package_is_not(checkpoint, with_the_package, tmp_path):
    reports = examine_apart(AUDIO, checkpoint, tmp_path)
    for report, folder in zip(reports, (checkpoint.name, "copy"), strict=True):
        modules = report.pop("modules")
        assert all(module.startswith(f"transformers_modules.{folder}.") for module in modules), modules
        # There the package computes natively, here in the eager form: the same to rounding.
        figures = {key: pytest.approx(v, rel=1e-4) for key, v in with_the_package.items() if key.startswith(FIGURES)}
        assert report == {key: value for key, value in with_the_package.items() if key != "modules"} | figures
    assert {path.name for path in checkpoint.iterdir()} == {path.name for path in (tmp_path / "copy").iterdir()}

"""What strangers may import: the names of every package, pinned, and what importing them costs."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
from setuptools.command.build_py import build_py

import hf_entmax_asr

HERE = Path(__file__).parent
ROOT = HERE.parent
CHECKPOINT, AUDIO = HERE / "checkpoint_of_0.1.0", HERE / "speech.flac"
PINNED = HERE / "public_names.txt"
WITHOUT_PUBLIC_NAMES = {
    "hf_entmax_asr.model",  # its files are imported one by one, as they travel to the Hub
    "hf_entmax_asr.analysis.figures",  # public by way of hf_entmax_asr.analysis
}
EXTRAS = ("accelerate", "datasets", "evaluate", "jiwer", "kenlm", "matplotlib", "onnx", "pocketsphinx", "tensorboard")


def packages() -> list[str]:
    found = pkgutil.walk_packages(hf_entmax_asr.__path__, "hf_entmax_asr.")
    inner = [module.name for module in found if module.ispkg]
    return ["hf_entmax_asr", *(name for name in inner if name not in WITHOUT_PUBLIC_NAMES)]


def test_the_public_names_are_those_pinned():
    names = [f"{package}.{name}" for package in packages() for name in importlib.import_module(package).__all__]
    pinned = PINNED.read_text(encoding="utf-8").splitlines()
    assert sorted(names) == pinned, (
        f"added: {sorted(set(names) - set(pinned))}; gone: {sorted(set(pinned) - set(names))}. If that is meant, "
        f"change {PINNED.name} too, and tell of it in CHANGELOG.md."
    )


@pytest.mark.parametrize("package", packages())
def test_every_public_name_is_there_and_listed_once(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing
    assert set(module.__all__) <= set(dir(module))


PLAIN_INSTALL = """
import sys
for name in {extras!r}:
    sys.modules[name] = None  # to import it raises ModuleNotFoundError

import hf_entmax_asr
loaded = [name for name in sys.modules if name.startswith("hf_entmax_asr.")]
assert all(name.split(".")[1] in ("model", "kernels") for name in loaded), loaded

from hf_entmax_asr import load_recogniser, transcribe_files
model, processor = load_recogniser({checkpoint!r}, "cpu")
(transcript,) = transcribe_files(model, processor, [{audio!r}])
assert transcript.error is None, transcript.error
"""


def test_a_plain_install_transcribes_and_the_package_alone_loads_only_models():
    """Without the extras of setup.cfg, in a process of its own."""
    program = PLAIN_INSTALL.format(extras=EXTRAS, checkpoint=str(CHECKPOINT), audio=str(AUDIO))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_type_checkers_and_compilers_find_what_they_need_in_a_wheel(monkeypatch):
    monkeypatch.chdir(ROOT)
    distribution = setuptools.Distribution()
    distribution.parse_config_files(["setup.cfg"])
    command = build_py(distribution)
    command.ensure_finalized()
    packed = {package: {Path(name).name for name in names} for package, _, _, names in command.data_files}
    assert "py.typed" in packed["hf_entmax_asr"]
    sources = {path.name for path in (ROOT / "src" / "hf_entmax_asr" / "kernels" / "csrc").iterdir()}
    assert sources <= packed["hf_entmax_asr.kernels"]

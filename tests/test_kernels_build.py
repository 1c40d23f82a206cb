"""The build of the native kernels: cache, races between processes, machines without a compiler, forks, the switch."""

import ctypes
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from hf_entmax_asr import kernels
from hf_entmax_asr.kernels import backend, build, libraries
from hf_entmax_asr.model.entmax import entmax
from support.apart import run_apart

# The package without its __init__, which would import transformers: seconds for each process.
USES_A_KERNEL = """
import sys, torch, types, warnings
package = sys.modules["hf_entmax_asr"] = types.ModuleType("hf_entmax_asr")
package.__path__ = [sys.argv[1]]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from hf_entmax_asr import kernels
    from hf_entmax_asr.model.entmax import entmax
    scores = torch.arange(12.0).view(3, 4)
    got = entmax(scores, 1.7)
    entmax(scores, 1.7)
with kernels.use("eager"):
    torch.testing.assert_close(got, entmax(scores, 1.7))
print(len([w for w in caught if issubclass(w.category, RuntimeWarning)]))
print(*[str(w.message) for w in caught])
print(kernels.status())
"""


# The smallest library alone, of which several processes build as well as of all.
BUILDS_ONE = """
import sys, types
package = sys.modules["hf_entmax_asr"] = types.ModuleType("hf_entmax_asr")
package.__path__ = [sys.argv[1]]
kernels = sys.modules["hf_entmax_asr.kernels"] = types.ModuleType("hf_entmax_asr.kernels")
kernels.__path__ = [sys.argv[1] + "/kernels"]
from hf_entmax_asr.kernels import build
print(build.load("reading")._name)
"""


# Every operator and its gradients, native against eager, in sizes that fill whole vectors and do not.
COMPARES_ALL = (
    USES_A_KERNEL
    + """
from hf_entmax_asr.model.alignment import expected_alignment, expected_soft_attention
from hf_entmax_asr.model.entmax_attention import entmax_attention

def both(function, *inputs):
    results = []
    for mode in ("auto", "eager"):
        torch.manual_seed(0)
        leaves = [t.clone().requires_grad_() for t in inputs]
        with kernels.use(mode):
            out = function(*leaves)
            results.append([out, *torch.autograd.grad(out, leaves, torch.randn(out.shape))])
    for native, eager in zip(*results):
        torch.testing.assert_close(native, eager, atol=2e-4, rtol=2e-4)

torch.manual_seed(0)
for width in (1, 7, 150):
    for alpha in (1.0, 1.1, 1.5, 1.7, 2.0):
        both(entmax, torch.randn(3, 6, width), torch.full((6, 1), alpha))
        query, key, value = torch.randn(2, 2, 40, 20), torch.randn(2, 2, width, 20), torch.randn(2, 2, width, 33)
        both(entmax_attention, query, key, value, torch.full((2,), alpha))
    for window in (3, None):
        both(lambda e, u: expected_soft_attention(expected_alignment(e), u, window),
             torch.randn(2, 2, 7, width) - 1, torch.randn(2, 2, 7, width))
"""
)


def start(environment: dict[str, str], program: str) -> subprocess.Popen:
    source = str(Path(build.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", "default::RuntimeWarning", "-c", program, source],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> list[str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.splitlines()


def uses_a_kernel(folder: Path, environment: dict[str, str]) -> list[str]:
    """What a process says that calls a kernel first thing."""
    program = f"import os; os.environ.update({environment!r})\n" + USES_A_KERNEL
    folder.mkdir()
    ended = run_apart(program, Path(build.__file__).parents[1], folder=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.fixture
def native():
    if not backend.cpu_available():
        pytest.skip("no native kernels on this machine")


def test_several_processes_build_at_once(tmp_path, native):
    started = [start({"XDG_CACHE_HOME": str(tmp_path)}, BUILDS_ONE) for _ in range(2)]
    loaded = {line for process in started for line in finish(process)}
    folder = tmp_path / "hf_entmax_asr" / "kernels"
    assert {str(path) for path in folder.iterdir()} == loaded  # nothing temporary is left
    assert len(loaded) == 1


def test_no_compiler_on_path_warns_once_and_runs_eager(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    lines = uses_a_kernel(tmp_path / "here", {"XDG_CACHE_HOME": str(tmp_path), "PATH": str(empty), "CXX": ""})
    assert lines[0] == "1"
    assert "no C++ compiler on PATH" in lines[1]
    assert "CPU: eager" in "\n".join(lines[2:])


def test_a_compiler_that_fails_warns_once_and_runs_eager(tmp_path):
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no space left" >&2\nexit 1\n')
    broken.chmod(0o755)
    lines = uses_a_kernel(tmp_path / "here", {"XDG_CACHE_HOME": str(tmp_path), "CXX": str(broken)})
    assert lines[0] == "1"
    assert "no space left" in lines[1]


def test_a_cache_that_cannot_be_made_warns_once_and_runs_eager(tmp_path):
    file = tmp_path / "file"
    file.touch()
    lines = uses_a_kernel(tmp_path / "here", {"XDG_CACHE_HOME": str(file)})
    assert lines[0] == "1"
    assert "XDG_CACHE_HOME" in lines[1]


def test_the_variable_switches_native_code_off_without_a_word(tmp_path):
    cache = tmp_path / "cache"
    lines = uses_a_kernel(tmp_path / "here", {"XDG_CACHE_HOME": str(cache), "HF_ENTMAX_ASR_KERNELS": "eager"})
    assert lines[0] == "0"
    assert "mode says so" in "\n".join(lines)
    assert not cache.exists()  # nothing was built


# Where AVX2 is the best of this machine, every other test runs that build.
OTHERS = ["default", *(["avx2"] if torch.backends.cpu.get_cpu_capability() == "AVX512" else [])]


@pytest.mark.parametrize("capability", OTHERS)
def test_other_processors_get_their_own_build_that_computes_the_same(tmp_path, native, capability):
    lines = finish(start({"XDG_CACHE_HOME": str(tmp_path), "ATEN_CPU_CAPABILITY": capability}, COMPARES_ALL))
    assert lines[0] == "0"
    expected = {"avx2": "native, AVX2", "default": "native, baseline"}[capability]
    assert expected in "\n".join(lines)
    names = sorted(path.name for path in (tmp_path / "hf_entmax_asr" / "kernels").iterdir())
    assert [name.rsplit("-", 1)[0] for name in names] == sorted(libraries.LIBRARIES)


@pytest.fixture(scope="module")
def one_built(tmp_path_factory) -> Path:
    """A cache with one library."""
    if not backend.cpu_available():
        pytest.skip("no native kernels on this machine")
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        build.load("reading")
    return cache


@pytest.mark.parametrize("damage", ["one bit", "cut short", "other", "folder", "link", "writable by others"])
def test_what_stands_in_the_place_of_a_library_is_not_run(tmp_path, native, one_built, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shutil.copytree(one_built, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "hf_entmax_asr" / "kernels").iterdir()
    content = file.read_bytes()
    file.rename(tmp_path / "moved")
    if damage == "folder":
        file.mkdir()
    elif damage == "link":
        file.symlink_to(tmp_path / "moved")
    elif damage == "writable by others":
        file.write_bytes(content)
        file.chmod(0o777)
    else:
        one_bit = bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes({"cut short": content[:4000], "one bit": one_bit, "other": b"no library"}[damage])
        file.chmod(0o700)
    built = []
    compile_one = build._compile
    monkeypatch.setattr(build, "_compile", lambda *a: built.append(a) or compile_one(*a))
    assert hasattr(build.load("reading"), "read_hard")
    assert len(built) == 1
    assert file.read_bytes() == content
    assert build._distrust(file) is None


@pytest.mark.parametrize("who", ["others may write", "link"])
def test_a_folder_that_others_rule_is_not_used(tmp_path, monkeypatch, who):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = build.cache_folder()
    assert build.trusted_folder() == folder
    if who == "link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.chmod(0o777)
    build._private_folder.cache_clear()
    with pytest.warns(RuntimeWarning, match="for this process alone.*kernels"):
        private = build.trusted_folder()
    assert private == build.trusted_folder() != folder
    assert private.stat().st_mode & 0o077 == 0


def test_a_compiler_that_never_returns_is_ended_with_its_children(tmp_path, monkeypatch):
    endless = tmp_path / "endless"
    endless.write_text("#!/bin/sh\nsleep 100 &\nsleep 100\n")
    endless.chmod(0o755)
    monkeypatch.setattr(build, "SECONDS_TO_COMPILE", 0.2)
    with pytest.raises(build.BuildError, match=r"did not end within 0\.2 s"):
        build._run([str(endless)])


def test_left_overs_of_killed_builds_are_cleared(tmp_path):
    old, young = tmp_path / ".entmax-old", tmp_path / ".entmax-young"
    old.mkdir()
    young.mkdir()
    os.utime(old, (0, 0))
    build._clear_left_overs(tmp_path)
    assert not old.exists()
    assert young.exists()


def test_other_sources_get_another_name(tmp_path, monkeypatch):
    command = ["g++"]
    before = build._key("entmax", command)
    for source in build.SOURCES.iterdir():
        (tmp_path / source.name).write_text(source.read_text())
    (tmp_path / "vector.h").write_text((build.SOURCES / "vector.h").read_text() + "\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build._key("entmax", command) != before
    assert build._key("entmax", [*command, "-O1"]) != build._key("entmax", command)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"'fast'.*auto, eager, cpu, triton"), kernels.use("fast"):
        pass


def test_use_switches_and_restores(native):
    scores = torch.randn(4, 9, requires_grad=True)
    assert "entmax" in type(entmax(scores, 1.5).grad_fn).__name__.replace("_Entmax", "")
    with kernels.use("eager"):
        assert "_Entmax" in type(entmax(scores, 1.5).grad_fn).__name__
        assert "eager, because the mode says so" in kernels.status()
        with kernels.use("cpu"):
            assert "_Entmax" not in type(entmax(scores, 1.5).grad_fn).__name__
        assert "_Entmax" in type(entmax(scores, 1.5).grad_fn).__name__
    assert "_Entmax" not in type(entmax(scores, 1.5).grad_fn).__name__


def _in_child(queue, scores, expected):
    torch.set_num_threads(2)
    queue.put(bool(torch.equal(entmax(scores, 1.6), expected)))


def test_a_forked_child_computes_the_same(native):
    scores = torch.randn(300, 64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = entmax(scores, 1.6)  # starts the parent's OpenMP threads
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks of threaded processes
            child = context.Process(target=_in_child, args=(queue, scores, expected))
            child.start()
        child.join(60)
        hung = child.is_alive()
        if hung:
            child.kill()
        assert not hung
        assert queue.get()
    finally:
        torch.set_num_threads(threads)


class _Weights(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return entmax(torch.arange(24.0).view(4, 6) * (i + 1), 1.3)


def test_data_loader_workers_compute_the_same(native):
    data = _Weights()
    expected = [data[i] for i in range(len(data))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        got = list(torch.utils.data.DataLoader(data, batch_size=None, num_workers=2))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_the_number_of_threads(native, threads):
    scores = torch.randn(200, 77)
    expected = entmax(scores, 1.2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(entmax(scores, 1.2), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_threads_are_those_of_torch_though_others_brought_a_runtime_too(native, tmp_path):
    source, alien = tmp_path / "alien.cpp", tmp_path / "a-libgomp.so"
    source.write_text('extern "C" void GOMP_parallel() { __builtin_trap(); }')
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(alien), str(source)], check=True)
    loaded = ctypes.CDLL(str(alien))
    assert str(alien) in {path for _, _, path in libraries._mapped_files()}
    address, path = libraries._openmp.__wrapped__()
    assert "omp" in Path(path).name
    assert path != str(alien)
    assert address.value != ctypes.cast(loaded.GOMP_parallel, ctypes.c_void_p).value
    assert address.value == libraries._openmp()[0].value
    entmax(torch.randn(64, 64), 1.5)

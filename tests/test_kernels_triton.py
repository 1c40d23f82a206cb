"""What all Triton kernels share: the way to them, their operators, what they refuse, and that they compile.

The interpreter shows that the arithmetic is right (the tests beside this), the compiler that it takes the kernels.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")


import hf_entmax_asr.kernels.triton_alignment as alignment_kernels
import hf_entmax_asr.kernels.triton_attention as attention_kernels
import hf_entmax_asr.kernels.triton_entmax as entmax_kernels
import hf_entmax_asr.kernels.triton_soft_attention as soft_attention_kernels
from hf_entmax_asr import kernels
from hf_entmax_asr.kernels import backend
from hf_entmax_asr.kernels.attention_inputs import AttentionInputs
from support.small_models import features, small_model, targets
from support.triton_forms import (
    DEVICE,
    assert_near,
    running,
    triton_alignment,
    triton_attention,
    triton_entmax,
    triton_soft,
)

pytestmark = pytest.mark.usefixtures("seeded")


def test_what_would_lose_digits_is_refused():
    wide = torch.randn(1, 1, 2, 4, dtype=torch.float64, device=DEVICE)
    alpha = torch.tensor(1.5, device=DEVICE)
    for function in (
        lambda: entmax_kernels.entmax_forward(wide, alpha, None, torch.float32),
        lambda: attention_kernels.attention_forward(
            AttentionInputs(wide, wide, wide, alpha.view(1, 1, 1, 1), None, None, None, False, 1.0, 0.0)
        ),
        lambda: alignment_kernels.expected_alignment_forward(wide, None, None, True),
        lambda: soft_attention_kernels.soft_attention_forward(wide, wide, None, None),
    ):
        with pytest.raises(ValueError, match="float64"):
            function()


def test_the_public_functions_reach_the_kernels():
    x = torch.randn(1, 2, 3, 4, device=DEVICE, requires_grad=True)
    for out, name in (
        (triton_entmax(x, 1.5), "triton_entmax"),
        (triton_attention(x, x, x, 1.5), "triton_attend"),
        (triton_alignment(x), "triton_align"),
        (triton_soft(x, x), "triton_spread"),
    ):
        assert name in out.grad_fn.name()
    assert "Triton" in running("triton", kernels.status)()
    assert "triton" not in triton_entmax(x.double(), 1.5).grad_fn.name()


def test_a_gpu_that_triton_cannot_serve_gets_the_eager_form_and_one_warning(monkeypatch):
    def fail():
        raise RuntimeError("no C compiler\nand a long story")

    monkeypatch.setattr(backend, "_try_triton", fail)
    monkeypatch.setattr(backend, "_interprets", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend.triton_problem.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"not in use: no C compiler\. The eager form"):
            assert backend.triton_problem() == "no C compiler"
        assert backend.triton_problem() == "no C compiler"
    finally:
        backend.triton_problem.cache_clear()


def test_operators_are_registered_as_torch_wants_them():
    x = torch.randn(1, 2, 3, 4, device=DEVICE, requires_grad=True)
    alpha = torch.full((1, 2, 1, 1), 1.4, device=DEVICE, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1, 1, 3, 3, device=DEVICE, requires_grad=True)
    mask = torch.ones(1, 4, dtype=torch.bool, device=DEVICE)
    seed = torch.zeros(1, dtype=torch.long, device=DEVICE)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(entmax_kernels.entmax_forward, (x, alpha, mask, torch.float32), test_utils=utils)
    torch.library.opcheck(
        entmax_kernels.entmax_forward, (x[:, :1, 0], alpha, None, x.dtype), test_utils=utils
    )  # broadcast
    allowed = torch.ones(1, 1, 1, 3, dtype=torch.bool, device=DEVICE)
    for over in ((None, bias), (allowed, None), (allowed, bias)):
        given = AttentionInputs(x, x, x, alpha, *over, seed=seed, is_causal=False, scale=0.5, dropout_p=0.3)
        torch.library.opcheck(attention_kernels.attend, given, test_utils=utils)
    forward = alignment_kernels.expected_alignment_forward
    torch.library.opcheck(forward, (x, mask, x[:, :, 0], True), test_utils=utils)
    for chunk_size in (2, None):
        spread = soft_attention_kernels.soft_attention_forward
        torch.library.opcheck(spread, (x.softmax(-1), x, mask, chunk_size), test_utils=utils)


def test_a_model_trains_the_same_by_the_kernels():
    model = small_model().to(DEVICE).train()
    inputs, mask = features(batch=2, frames=40)
    batch = {"input_features": inputs.to(DEVICE), "attention_mask": mask.to(DEVICE), "labels": targets(2).to(DEVICE)}
    results = []
    for mode in ("triton", "eager"):
        torch.manual_seed(0)
        with kernels.use(mode):
            loss = model(**batch).loss
            results.append([loss, *torch.autograd.grad(loss, model.parameters(), allow_unused=True)])
    for ours, theirs in zip(*results, strict=True):
        if theirs is not None:
            assert_near(ours, theirs, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90])  # 80 was compiled by hand: a minute of two cores each
def test_kernels_compile(capability, tmp_path):
    """Without a GPU, up to machine code: the interpreter knows neither types that must not change nor shared memory."""
    program = Path(__file__).parent / "support" / "compile_triton_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(program), str(capability)], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in compiled} == {
        "triton_entmax._forward", "triton_entmax._backward", "triton_attention_kernels.forward",
        "triton_attention_kernels.backward_queries", "triton_attention_kernels.backward_keys",
        "triton_alignment._forward", "triton_alignment._backward", "triton_soft_attention._window_sums",
        "triton_soft_attention._collect", "triton_soft_attention._lookback",
    }  # fmt: skip
    assert max(int(shared_memory) for _, shared_memory in compiled) <= 99 * 1024

"""Expected alignment and soft attention in Triton against the eager functions and the naive twins."""

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")


import hf_entmax_asr.kernels.triton_alignment as alignment_kernels
import hf_entmax_asr.kernels.triton_soft_attention as soft_attention_kernels
from hf_entmax_asr.model import alignment
from reference import expected_alignment_loop, expected_soft_attention_loop
from support.hard_cases import energies
from support.triton_forms import (
    DEVICE,
    assert_rounded,
    eager_alignment,
    eager_soft,
    gradients,
    triton_alignment,
    triton_soft,
)

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture(params=[1024, 16], ids=["one block", "blocks of 16"])
def positions_at_once(request, monkeypatch):
    monkeypatch.setattr(alignment_kernels, "MOST_POSITIONS", request.param)
    monkeypatch.setattr(soft_attention_kernels, "MOST_POSITIONS", request.param)


def relative_error(value, reference):
    return ((value.double().cpu() - reference).norm() / reference.norm().clamp(min=1e-300)).item()


@pytest.mark.usefixtures("positions_at_once")
@pytest.mark.parametrize("kind", energies(1, 2))
@pytest.mark.parametrize(("targets", "positions"), [(1, 1), (4, 3), (3, 37)])
def test_alignment_and_its_gradients_equal_the_loop(targets, positions, kind):
    energy = energies(targets, positions)[kind]
    previous = torch.softmax(torch.randn(1, 2, positions), -1)
    upstream = torch.randn_like(energy)
    actual = gradients(
        lambda e, p: triton_alignment(e, previous=p),
        energy.to(DEVICE), previous.to(DEVICE), dtype=torch.float32, upstream=upstream,
    )  # fmt: skip
    expected = gradients(expected_alignment_loop, energy, previous, dtype=torch.float64, upstream=upstream)
    torch.testing.assert_close(actual[0].cpu().double(), expected[0], rtol=0, atol=1e-7)  # asked: 1e-5
    for x, y in zip(actual[1:], expected[1:], strict=True):
        assert x.isfinite().all()
        assert relative_error(x, y) <= 1e-6


@pytest.mark.usefixtures("positions_at_once")
def test_alignment_of_padded_batches_equals_the_eager_form():
    energy = torch.randn(2, 3, 4, 40) - 1
    mask = torch.arange(40) < torch.tensor([40, 23])[:, None]
    energy = alignment.preserve_mass(energy, mask)
    upstream = torch.randn_like(energy)
    ours = gradients(
        lambda e: triton_alignment(e, mask.to(DEVICE)),
        energy.to(DEVICE), dtype=torch.float32, upstream=upstream,
    )  # fmt: skip
    eager = gradients(lambda e: eager_alignment(e, mask), energy, dtype=torch.float64, upstream=upstream)
    torch.testing.assert_close(ours[0].cpu().double(), eager[0], rtol=0, atol=1e-7)
    assert relative_error(ours[1], eager[1]) <= 1e-6
    assert not ours[0][1, :, :, 23:].any()
    assert not ours[1][1, :, :, 23:].any()


def test_alignment_keeps_its_mass_over_long_audio(monkeypatch):
    monkeypatch.setattr(alignment_kernels, "MOST_POSITIONS", 256)
    energy = torch.full((1, 1, 2, 700), -7.0)  # 1 − σ is rounded the same way at every position
    energy[..., -1] = torch.inf
    with torch.no_grad():
        aligned = triton_alignment(energy.to(DEVICE)).cpu()
    torch.testing.assert_close(aligned.double().sum(-1), torch.ones(1, 1, 2).double(), rtol=0, atol=1e-6)
    expected = eager_alignment(energy.double())
    torch.testing.assert_close(aligned.double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_alignment_is_rounded_once(dtype):
    energy = torch.randn(1, 2, 3, 20).to(DEVICE, dtype)
    upstream = torch.randn(1, 2, 3, 20).to(DEVICE, dtype)
    alignment = torch.softmax(energy, -1)

    def run(narrow, function, *tensors):
        return gradients(function, *tensors, dtype=narrow, upstream=upstream)

    for function, *tensors in (
        (triton_alignment, energy),
        (lambda a, u: triton_soft(a, u, 3), alignment, energy),
        (triton_soft, alignment, energy),
    ):
        narrow, wide = run(dtype, function, *tensors), run(torch.float32, function, *tensors)
        for x, y in zip(narrow, wide, strict=True):
            assert x.dtype == dtype
            assert_rounded(x, y)


@pytest.mark.usefixtures("positions_at_once")
@pytest.mark.parametrize("chunk_size", [1, 2, 5, 30, 50, None])
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_soft_attention_and_its_gradients_equal_the_loop(chunk_size, spread):
    alignment = torch.softmax(torch.randn(1, 1, 2, 37) * 2, -1)
    energy = torch.randn(1, 1, 2, 37) * spread
    upstream = torch.randn_like(energy)

    def ours(a, u):
        return triton_soft(a, u, chunk_size) + 0 * u

    def loop(a, u):
        return expected_soft_attention_loop(a, u, chunk_size)

    on_device = [x.to(DEVICE) for x in (alignment, energy)]
    actual = gradients(ours, *on_device, dtype=torch.float32, upstream=upstream)
    expected = gradients(loop, alignment, energy, dtype=torch.float64, upstream=upstream)
    for name, x, y in zip(("beta", "dalignment", "denergy"), actual, expected, strict=True):
        torch.testing.assert_close(x.cpu().double(), y, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.usefixtures("positions_at_once")
@pytest.mark.parametrize("chunk_size", [4, None])
def test_soft_attention_of_padded_batches_equals_the_eager_form(chunk_size):
    mask = torch.arange(37) < torch.tensor([37, 18])[:, None]
    energy = torch.randn(2, 2, 2, 37)
    aligned = eager_alignment(alignment.preserve_mass(torch.randn(2, 2, 2, 37), mask), mask)
    upstream = torch.randn_like(energy)
    actual = gradients(
        lambda a, u: triton_soft(a, u, chunk_size, mask.to(DEVICE)),
        aligned.to(DEVICE), energy.to(DEVICE), dtype=torch.float32, upstream=upstream,
    )  # fmt: skip
    expected = gradients(
        lambda a, u: eager_soft(a, u, chunk_size, mask),
        aligned, energy, dtype=torch.float64, upstream=upstream,
    )  # fmt: skip
    for name, x, y in zip(("beta", "dalignment", "denergy"), actual, expected, strict=True):
        torch.testing.assert_close(x.cpu().double(), y, rtol=1e-5, atol=1e-6, msg=name)
    assert not actual[2][1, :, :, 18:].any()


def test_alignment_refuses_what_does_not_fit():
    energy = torch.randn(2, 3, 4, 5, device=DEVICE)
    with pytest.raises(ValueError, match=r"must be \(batch, heads"):
        triton_alignment(energy[0])
    with pytest.raises(ValueError, match=r"source_mask is torch\.int64"):
        triton_alignment(energy, torch.ones(2, 5, dtype=torch.long, device=DEVICE))
    with pytest.raises(ValueError, match="previous has shape"):
        triton_alignment(energy, previous=energy[:, :, 0, :4])
    with pytest.raises(ValueError, match="chunk_size = 0"):
        triton_soft(energy, energy, 0)
    with pytest.raises(ValueError, match="differ in shape"):
        triton_soft(energy[:, :, :3], energy)
    with pytest.raises(ValueError, match="alignment has shape"):
        soft_attention_kernels.soft_attention_forward(energy[:, :, :3], energy, None, None)

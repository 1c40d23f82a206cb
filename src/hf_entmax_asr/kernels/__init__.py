"""Fast forms of functions in `model/`, with the same arguments: native code for the CPU, built on first use, and Triton
for NVIDIA GPUs.

Each function here returns None where it has no form for the device, dtype or mode; the caller in `model/` then runs its
own, the eager form, which is the specification. `use` and HF_ENTMAX_ASR_KERNELS choose; `status()` says what runs.

The Triton forms are imported where the first tensor wants one: it takes a second, and the package triton need not be
there.
"""

import torch
from torch import Tensor

from hf_entmax_asr.kernels import alignment_cpu, attention_cpu, entmax_cpu, reading_cpu
from hf_entmax_asr.kernels.attention_inputs import AttentionInputs
from hf_entmax_asr.kernels.backend import runs_on_cpu, runs_on_triton, status
from hf_entmax_asr.kernels.modes import use

__all__ = [
    "entmax",
    "entmax_attention",
    "expected_alignment",
    "expected_soft_attention",
    "hard_reading",
    "status",
    "use",
]


def entmax(scores: Tensor, alpha: Tensor, dim: int, mask: Tensor | None) -> Tensor | None:
    """`hf_entmax_asr.model.entmax.entmax` with `alpha` a checked tensor and `dim` negative."""
    if runs_on_cpu(scores, beside=(alpha, mask)):
        return entmax_cpu.entmax(scores, alpha, dim, mask)
    if runs_on_triton(scores, beside=(alpha, mask)):
        from hf_entmax_asr.kernels import triton_entmax

        return triton_entmax.entmax(scores, alpha, dim, mask)
    return None


def entmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    chunks: tuple[int, int],
) -> Tensor | None:
    """`hf_entmax_asr.model.entmax_attention.entmax_attention` with checked arguments, α (B|1, H|1, 1, 1) and
    chunks as (size, left), (0, -1) where there are none."""
    inputs = AttentionInputs(query, key, value, alpha, mask, bias, None, is_causal, scale, dropout_p, *chunks)
    if not inputs.fit():
        return None
    if runs_on_cpu(query, key, value, beside=(alpha, mask, bias)):
        return attention_cpu.entmax_attention(inputs)
    if runs_on_triton(query, key, value, beside=(alpha, mask, bias)):
        from hf_entmax_asr.kernels import triton_attention

        return triton_attention.entmax_attention(inputs)
    return None


def expected_alignment(energy: Tensor, source_mask: Tensor | None, previous: Tensor | None) -> Tensor | None:
    """`hf_entmax_asr.model.alignment.expected_alignment` with checked arguments."""
    if runs_on_cpu(energy, beside=(source_mask, previous)):
        return alignment_cpu.expected_alignment(energy, source_mask, previous)
    if runs_on_triton(energy, beside=(source_mask, previous)):
        from hf_entmax_asr.kernels import triton_alignment

        return triton_alignment.expected_alignment(energy, source_mask, previous)
    return None


def expected_soft_attention(
    alignment: Tensor, energy: Tensor, chunk_size: int | None, source_mask: Tensor | None
) -> Tensor | None:
    """`hf_entmax_asr.model.alignment.expected_soft_attention` with checked arguments."""
    if runs_on_cpu(alignment, beside=(energy, source_mask)):
        return alignment_cpu.expected_soft_attention(alignment, energy, chunk_size, source_mask)
    if runs_on_triton(alignment, beside=(energy, source_mask)):
        from hf_entmax_asr.kernels import triton_soft_attention

        return triton_soft_attention.expected_soft_attention(alignment, energy, chunk_size, source_mask)
    return None


def hard_reading(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    start: Tensor | None,
    source_mask: Tensor | None,
    rule: str,
    limit: float,
) -> tuple[Tensor, Tensor] | None:
    """`hf_entmax_asr.model.reading.hard_reading`, which finds what is wrong with arguments that this does not take;
    without gradients, and not in a compiled graph. limit: the `firing_limit` of its probability."""
    tensors = (query, key, value, bias)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return None
    if runs_on_cpu(*tensors, beside=(start, source_mask)):
        return reading_cpu.hard_reading(query, key, value, bias, start, source_mask, rule, limit)
    return None

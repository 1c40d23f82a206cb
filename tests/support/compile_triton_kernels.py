"""Compiles the Triton kernels for an NVIDIA GPU that need not be there: compile_triton_kernels.py CAPABILITY (80, 90).

Prints the name and the shared memory, in bytes, of each kernel that the calls below would launch.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from hf_entmax_asr.kernels.attention_inputs import AttentionInputs
from hf_entmax_asr.kernels.triton_alignment import expected_alignment_backward, expected_alignment_forward
from hf_entmax_asr.kernels.triton_attention import attention_backward, attention_forward
from hf_entmax_asr.kernels.triton_entmax import entmax_backward, entmax_forward
from hf_entmax_asr.kernels.triton_soft_attention import soft_attention_backward, soft_attention_forward


class AbsentGpu:
    """As much of a driver as the compiler asks for."""

    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def compile_only(run):
    def compile_and_report(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        print(f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__} {kernel.metadata.shared}")

    return compile_and_report


def attention(
    dtype: torch.dtype, width: int, masked: bool, is_causal: bool, biased: bool, dropping: bool, chunk_size: int = 0
) -> None:
    query, key, value = (torch.randn(1, 2, 100, width, dtype=dtype) for _ in range(3))
    mask = torch.ones(1, 1, 1, 100, dtype=torch.bool) if masked else None
    bias = torch.randn(2, 1, 100) if biased else None
    seed = torch.zeros(1, dtype=torch.int64) if dropping else None
    alpha = torch.rand(1, 2, 1, 1) + 1
    inputs = AttentionInputs(query, key, value, alpha, mask, bias, seed, is_causal, 0.1, 0.1, chunk_size, 1)
    out, *saved = attention_forward(inputs)
    attention_backward(out, inputs, *saved)


if __name__ == "__main__":
    driver.set_active(AbsentGpu())
    JITFunction.run = compile_only(JITFunction.run)
    for dtype, chunk_sizes in ((torch.float32, (4, None)), (torch.bfloat16, (4,))):
        scores, alpha = torch.randn(2, 2, 9, 300, dtype=dtype), torch.rand(2, 1, 1) + 1
        weights = entmax_forward(scores, alpha, scores > 0, dtype)
        entmax_backward(scores, weights, alpha, True)
        energy = torch.randn(2, 2, 3, 2000, dtype=dtype)
        mask = torch.ones(2, 2000, dtype=torch.bool)
        alignment, reached = expected_alignment_forward(energy, mask, energy[:, :, 0], True)
        expected_alignment_backward(alignment, energy, mask, reached)
        for chunk_size in chunk_sizes:
            beta = soft_attention_forward(alignment, energy, mask, chunk_size)
            soft_attention_backward(beta, alignment, energy, mask, chunk_size)
    attention(torch.float16, 128, masked=True, is_causal=True, biased=True, dropping=True)
    attention(torch.float32, 64, masked=True, is_causal=False, biased=False, dropping=False, chunk_size=16)

"""Set-up shared by all tests."""

import os

import torch

if not torch.cuda.is_available():  # Triton kernels are then tested in its interpreter; read when triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Marks that transformers' own common tests carry (test_common_transformers.py).
THEIR_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "order",
    "torch_compile_test",
)


def pytest_configure(config):
    for mark in THEIR_MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")

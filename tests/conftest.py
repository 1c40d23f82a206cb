"""Set-up shared by all tests."""

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

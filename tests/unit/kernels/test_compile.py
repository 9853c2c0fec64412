"""All kernels through Triton's real compiler, in the types that a GPU is used with."""

import pytest
from tests.unit.kernels.gpu_compiler import compile_all

MODULES = [f"tests.unit.kernels.{of}_launches" for of in ("attention", "draw", "layers", "narrow")]


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """By module; all in one process, which takes longer to start than to compile."""
    return compile_all(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_the_kernels_compile_for_a_gpu(failures: dict[str, str], module: str) -> None:
    assert failures[module] == ""

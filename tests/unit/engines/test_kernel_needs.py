"""What is in the way of GPU kernels is named with its cure."""

from pathlib import Path

import pytest

from llmhost.engines.kernel_needs import missing_for_kernels


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    (tmp_path / "Python.h").write_text("")
    return tmp_path


def test_a_machine_that_has_all_lacks_nothing(headers: Path):
    found = missing_for_kernels({}, finds=lambda _: True, which=lambda name: name, headers=headers)
    assert found is None


def test_without_triton_nothing_else_is_looked_at():
    found = missing_for_kernels({}, finds=lambda _: None, which=lambda _: None)
    assert found == "Triton is not installed: pip install triton"


def test_a_compiler_is_needed_and_may_be_named(headers: Path):
    def missing(environ: dict[str, str]) -> str | None:
        return missing_for_kernels(
            environ, finds=lambda _: True, which=lambda _: None, headers=headers
        )

    assert "no C compiler" in str(missing({}))
    assert missing({"CC": "/opt/cc"}) is None


def test_the_headers_of_python_are_needed(tmp_path: Path):
    found = missing_for_kernels({}, finds=lambda _: True, which=lambda name: name, headers=tmp_path)
    assert found is not None and f"headers are not in {tmp_path}" in found

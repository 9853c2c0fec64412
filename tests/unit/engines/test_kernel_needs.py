"""What is in the way of GPU kernels is named with its cure."""

from pathlib import Path

from llmhost.engines.kernel_needs import kernels_refusal, missing_headers


def refusal(
    environ: dict[str, str], *, module: object | None = True, program: str | None = None
) -> str | None:
    return kernels_refusal(environ, finds=lambda _: module, which=lambda _: program)


def test_a_machine_that_has_all_lacks_nothing():
    assert refusal({}, program="/usr/bin/gcc") is None


def test_without_triton_nothing_else_is_looked_at():
    assert refusal({}, module=None) == "Triton is not installed: pip install triton"


def test_a_compiler_is_needed_and_may_be_named():
    assert "no C compiler" in str(refusal({}))
    assert refusal({"CC": "/opt/cc"}) is None


def test_kernels_that_are_interpreted_need_no_compiler():
    assert refusal({"TRITON_INTERPRET": "1"}) is None


def test_the_headers_of_python_are_looked_for(tmp_path: Path):
    assert f"headers are not in {tmp_path}" in str(missing_headers(tmp_path))
    (tmp_path / "Python.h").write_text("")
    assert missing_headers(tmp_path) is None

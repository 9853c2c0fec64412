"""What the doctor finds, and what it makes of it."""

import json
import os
import re
import socket
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from certificates import write_certificate

from llmhost.cli import doctor
from llmhost.config.schema.server import ServerSettings
from llmhost.engines import attention_libraries as libraries
from llmhost.engines import kernel_needs


def pretend(monkeypatch: pytest.MonkeyPatch, **programs: str | None) -> None:
    """Let programs say this; `python` stands for this interpreter."""

    def run(*command: str, timeout_s: float = 20) -> str | None:
        name = "python" if command[0] == sys.executable else command[0].replace("-", "_")
        return programs.get(name)

    monkeypatch.setattr(doctor, "run", run)


def test_a_good_installation_passes(llmhost, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "2.13.0" if name == "torch" else "1.0")
    pretend(monkeypatch, python="3.52.1")

    result = llmhost("doctor", "--json")

    seen = json.loads(result.stdout)
    by_name = {check["name"]: check for check in seen["checks"]}
    assert seen["ok"] is True
    assert result.exit_code == 0
    assert {"python", "llmhost", "torch", "sqlite", "gpu", "memory", "disk", "port"} <= set(by_name)
    assert by_name["sqlite"] == {
        "name": "sqlite",
        "status": "ok",
        "found": "3.52.1",
        "advice": None,
    }


def test_a_missing_library_fails_with_its_cure(llmhost, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "litestar" else "2.11")
    pretend(monkeypatch, python="3.52.1")

    result = llmhost("doctor")

    assert result.exit_code == 1
    assert "missing  litestar      not installed\n" in result.stdout
    assert "pip install litestar" in result.stdout


def test_missing_extras_are_no_failure_and_name_their_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "5.0" if name == "redis" else None)

    found = {finding.name: finding for finding in doctor.extras()}

    assert found["gguf"].advice == "pip install 'llmhost[gguf]'"
    assert {finding.status for finding in found.values()} == {"info", "ok"}
    assert found["redis"].found == "redis 5.0"


@pytest.mark.parametrize(
    ("version", "status"),
    [("3.40.1", "warning"), ("3.51.2", "warning"), ("3.51.3", "ok"), ("3.52.0", "ok")],
)
def test_an_sqlite_with_the_wal_reset_bug_is_named(
    monkeypatch: pytest.MonkeyPatch, version: str, status: str
):
    pretend(monkeypatch, python=version)

    assert doctor.sqlite().status == status


def test_a_python_without_sqlite_cannot_serve(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch)

    assert doctor.sqlite().status == "missing"


def test_gpus_are_listed_and_a_torch_that_cannot_use_them_is_named(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, nvidia_smi="NVIDIA H200, 143771, 143000, 570.86, 9.0\njunk")
    monkeypatch.setattr(doctor, "cuda_of_torch", lambda: None)

    [gpu] = doctor.gpus()

    assert gpu.found == "NVIDIA H200, 143000 MiB of 143771 MiB free, driver 570.86"
    assert doctor.torch("2.13.0+cpu").status == "warning"
    monkeypatch.setattr(doctor, "cuda_of_torch", lambda: "12.8")
    assert doctor.torch("2.13.0+cu128").found == "2.13.0, for CUDA 12.8"


def test_what_a_gpu_will_be_used_with_is_said(monkeypatch: pytest.MonkeyPatch):
    lines = "NVIDIA H200, 143771, 143000, 570.86, 9.0\nNVIDIA A100, 81920, 80000, 570.86, 8.0"
    pretend(monkeypatch, nvidia_smi=f"{lines}\nNVIDIA X, 1, 1, 1, [N/A]")
    monkeypatch.setattr(doctor, "cuda_of_torch", lambda: "13.0")
    monkeypatch.setattr(doctor, "installed", lambda name: "3.6.0")
    monkeypatch.setattr(kernel_needs, "kernels_refusal", lambda environ: None)
    monkeypatch.setattr(kernel_needs, "missing_headers", lambda: None)

    found = {finding.name: finding for finding in doctor.gpus()}

    assert found["attention"].found == "triton, by kernels of Triton 3.6.0"
    assert found["prefill 0"].found.startswith("triton; FlashAttention-3")
    assert found["cuda graphs"].status == "ok"
    assert found["fp8 0"].found == "yes, compute capability 9.0"
    assert found["fp8 1"].found == "no: compute capability 8.0, and float8 needs 8.9"
    assert found["fp8 2"].found.startswith("not known")


def test_who_attends_to_prompts_is_said_and_why_no_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel_needs, "kernels_refusal", lambda environ: None)
    has_kernels = False
    monkeypatch.setattr(libraries, "has_flashinfer_kernels", lambda environ: has_kernels)
    monkeypatch.setattr(libraries, "installed_version", lambda library: None)
    present = set[str]()
    monkeypatch.setattr(libraries, "_finds", lambda module, finds: module in present)
    assert doctor.prefill(0, "9.0").found == (
        "triton; FlashAttention-3: not installed; FlashInfer: not installed"
    )
    present.update(library.module for library in libraries.LIBRARIES)
    monkeypatch.setattr(libraries, "installed_version", lambda library: "3.0.0")
    assert doctor.prefill(0, "9.0").found == (
        "FlashAttention-3 3.0.0, where it proves right when a model is loaded; decode by triton"
    )
    assert "FlashInfer 3.0.0: no kernels compiled" in doctor.prefill(0, "8.9").found
    has_kernels = True
    assert doctor.prefill(1, "8.9").found == (
        "FlashInfer 3.0.0, where it proves right when a model is loaded; decode by triton;"
        " FlashAttention-3 3.0.0: made for compute capability 9.0, and this GPU has 8.9"
    )
    monkeypatch.setattr(kernel_needs, "kernels_refusal", lambda environ: "no compiler")
    assert doctor.prefill(0, "9.0").found == "torch, as attention is"


def test_a_gpu_that_has_to_do_without_kernels_is_told_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel_needs, "kernels_refusal", lambda environ: "no compiler")

    found = doctor.attention()

    assert (found.status, found.advice) == ("warning", "no compiler.")
    assert found.found.startswith("torch")
    monkeypatch.setattr(kernel_needs, "kernels_refusal", lambda environ: None)
    monkeypatch.setattr(kernel_needs, "missing_headers", lambda: "no headers")
    assert doctor.attention().advice == "no headers."


def test_a_kernel_is_tried_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, python="cuda:0")
    assert doctor.kernels_work().found == "a kernel was compiled and is right on cuda:0"
    pretend(monkeypatch)
    assert doctor.kernels_work().status == "warning"


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.10.1", "warning"), ("2.11.0", "ok"), ("2.13.1+cpu", "ok"), ("2.14.0", "warning")],
)
def test_a_torch_that_was_never_tried_is_named(
    monkeypatch: pytest.MonkeyPatch, version: str, status: str
):
    pretend(monkeypatch)

    assert doctor.torch(version).status == status


def test_a_program_that_is_absent_fails_or_hangs_says_nothing():
    assert doctor.run("no-such-program") is None
    assert doctor.run(sys.executable, "-c", "raise SystemExit(3)") is None
    assert doctor.run(sys.executable, "-c", "input()", timeout_s=0.01) is None
    assert doctor.run(sys.executable, "-c", "print(1)") == "1"


def test_a_data_dir_that_others_can_read_is_named(tmp_path: Path):
    tmp_path.chmod(0o755)
    assert doctor.data_dir(tmp_path).status == "warning"
    tmp_path.chmod(0o700)
    assert doctor.data_dir(tmp_path).status == "ok"


def test_a_data_dir_is_made_on_the_first_start_where_that_is_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert doctor.data_dir(tmp_path / "new/dir").found.endswith("(made on the first start)")
    (tmp_path / "file").write_text("")
    assert doctor.data_dir(tmp_path / "file").status == "missing"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert doctor.data_dir(tmp_path / "new").status == "missing"


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert doctor.disk(tmp_path / "not/yet/there").found.endswith("free for the data dir")
    usage = type("Usage", (), {"free": 2**30})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert doctor.disk(tmp_path).status == "warning"
    seen = type("Memory", (), {"available": 2**20, "total": 2**34})
    monkeypatch.setattr("psutil.virtual_memory", lambda: seen)
    assert doctor.memory().found == "1.0 MiB of 16.0 GiB free"
    assert doctor.memory().status == "warning"


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = doctor.port("127.0.0.1", taken.getsockname()[1])

    assert (found.status, found.advice) == (
        "warning",
        "Stop what listens there, or serve on another --port.",
    )
    assert doctor.port("127.0.0.1", 0).found == "any free one"


def test_a_socket_in_use_is_named(tmp_path: Path):
    path = tmp_path / "a.sock"
    server = ServerSettings(unix_socket=str(path))
    assert doctor.listening(server).found == f"unix:{path} is free"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()

        assert doctor.listening(server).status == "warning"


def test_a_certificate_is_read(tmp_path: Path):
    cert, key = (str(path) for path in write_certificate(tmp_path, "a.example"))

    assert list(doctor.tls(ServerSettings())) == []
    assert [each.status for each in doctor.tls(ServerSettings(tls_cert=cert, tls_key=key))] == [
        "ok"
    ]
    assert [each.status for each in doctor.tls(ServerSettings(tls_cert=key, tls_key=key))] == [
        "missing"
    ]


def test_a_running_node_explains_the_port_in_use(node: Any):
    [port] = [finding for finding in doctor.settings(None) if finding.name == "port"]

    assert port.found == f"llmhost is serving at {node.url}"


def test_bad_settings_fail_and_are_quoted(llmhost, tmp_path: Path):
    (tmp_path / "models.toml").write_text("[servers]\n")

    result = llmhost("doctor")

    assert result.exit_code == 1
    assert "missing  settings      models.toml: there is no table [servers]." in result.stdout


def test_a_deep_look_computes_with_torch(llmhost, monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, python="cpu, cuda:0")
    assert doctor.torch_works().found == "torch computes on cpu, cuda:0"
    pretend(monkeypatch)
    assert doctor.torch_works().status == "missing"


def test_what_doctor_needs_is_what_the_project_depends_on():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[<>=\[; ]", line)[0] for line in project["dependencies"]}

    assert set(doctor.NEEDED) <= named
    assert set(doctor.EXTRAS) <= set(project["optional-dependencies"])


def test_the_key_of_statements_is_told_and_never_its_secret(llmhost, tmp_path: Path):
    def found() -> dict[str, Any]:
        checks = json.loads(llmhost("doctor", "--json").stdout)["checks"]
        return next(check for check in checks if check["name"] == "statements")

    secret = tmp_path / "data/statement_key"
    assert found()["status"] == "info"

    secret.write_text("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    secret.chmod(0o600)
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert (found()["status"], found()["found"]) == ("ok", f"signed with {public}")

    secret.chmod(0o644)
    assert (found()["status"], found()["advice"]) == ("warning", f"chmod 600 {secret}")

    secret.write_text("not hexadecimal")
    assert found()["status"] == "missing"

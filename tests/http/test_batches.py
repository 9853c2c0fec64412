"""Files and batches with OpenAI's own client, in its strict mode, against a server process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import Batch
from server_process import Node, eventually

SETTINGS = """
[limits]
failed_auth_per_minute = 0

[files]
max_file_bytes = 200000
max_files_per_team = 12
keep_free_bytes = 0

[models.echo]
engine = "fake"
[models.echo.price]
input = "1.00"
output = "2.00"

[models.slow]
engine = "fake"
[models.slow.options]
token_delay_ms = 20
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("batches"), SETTINGS).start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(node: Node) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{node.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


def lines(count: int, **body: Any) -> bytes:
    asked = {"model": "echo", "max_tokens": 4, **body}
    return b"".join(
        json.dumps(
            {
                "custom_id": f"id-{n}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {**asked, "messages": [{"role": "user", "content": f"hello {n}"}]},
            }
        ).encode()
        + b"\n"
        for n in range(count)
    )


def begin(client: OpenAI, content: bytes) -> Batch:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


def ended(client: OpenAI, batch: Batch) -> Batch:
    ends = ("completed", "failed", "expired", "cancelled")
    return eventually(
        lambda: now if (now := client.batches.retrieve(batch.id)).status in ends else None,
        "the batch did not end",
    )


def test_a_batch_from_its_upload_to_its_answers(client: OpenAI, node: Node) -> None:
    done = ended(client, begin(client, lines(20)))

    assert done.status == "completed"
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed) == (20, 20)
    assert done.output_file_id is not None
    text = client.files.content(done.output_file_id).text
    found = [json.loads(line) for line in text.splitlines()]
    assert [line["custom_id"] for line in found] == [f"id-{n}" for n in range(20)]
    for line in found:
        entry = node.entry(line["response"]["request_id"])
        assert entry["tokens"]["output"] == line["response"]["body"]["usage"]["completion_tokens"]
        assert entry["amount_nano"] == 500 * entry["tokens"]["fresh_input"] + 1000 * 4
    assert node.metric("llmhost_batch_lines_total", outcome="completed") >= 20
    assert client.batches.list(limit=1).data[0].id == done.id
    client.files.delete(done.output_file_id)
    client.files.delete(done.input_file_id)


def test_files_are_listed_in_pages_read_and_deleted(client: OpenAI) -> None:
    made = [
        client.files.create(
            file=(f"{n} ü.txt", b"text " * n),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        for n in range(3)
    ]
    listed = list(client.files.list(purpose="user_data", limit=2, order="asc"))
    assert [file.id for file in listed] == [file.id for file in made]
    first = client.files.retrieve(made[2].id)
    assert (first.filename, first.bytes, first.purpose) == ("2 ü.txt", 10, "user_data")
    assert first.expires_at == first.created_at + 3600
    assert client.files.content(made[2].id).read() == b"text text "
    for file in made:
        assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[0].id)


def test_a_cancelled_batch_keeps_what_it_has(client: OpenAI) -> None:
    batch = begin(client, lines(200, model="slow", max_tokens=20))
    eventually(
        lambda: (
            (counts := client.batches.retrieve(batch.id).request_counts) and counts.completed > 3
        ),
        "no line ended",
    )
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(client, batch)
    assert done.status == "cancelled"
    assert done.request_counts is not None
    assert 3 < done.request_counts.completed < 200
    assert done.output_file_id is not None
    assert done.error_file_id is not None
    answers = client.files.content(done.output_file_id).text.splitlines()
    assert len(answers) == done.request_counts.completed
    left = client.files.content(done.error_file_id).text.splitlines()
    assert len(answers) + len(left) == 200
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_uploads_that_can_not_be_are_refused_in_words_and_leave_nothing(
    client: OpenAI, node: Node
) -> None:
    def upload(content: bytes, **fields: str) -> httpx.Response:
        return node.http.post(f"{node.url}/v1/files", files={"file": ("a", content)}, data=fields)

    before = sorted(path.name for path in (node.data_dir / "files").iterdir())
    for answer, status, param in (
        (upload(b"x"), 400, "purpose"),
        (upload(b"x", purpose="nothing"), 400, "purpose"),
        (upload(b"x" * 200_001, purpose="batch"), 413, "file"),
        (upload(b"x" * 3_000_000, purpose="batch"), 413, "file"),
        (
            upload(b"x", purpose="batch", **{"expires_after[anchor]": "created_at"}),
            400,
            "expires_after.seconds",
        ),
        (node.post("/v1/files", {"purpose": "batch"}), 400, None),
        (
            node.http.post(f"{node.url}/v1/files", files={"purpose": (None, "batch")}),
            400,
            "file",
        ),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param), error
        assert answer.headers["x-request-id"].startswith("req_")
    with node.raw() as connection:  # a client that leaves amid its upload
        head = "POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n"
        kind = "content-type: multipart/form-data; boundary=b\r\n\r\n"
        part = '--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nxx'
        connection.sendall((head + kind + part).encode())
    eventually(
        lambda: sorted(path.name for path in (node.data_dir / "files").iterdir()) == before,
        "something was left",
    )


def test_a_team_that_has_all_files_it_may_have_hears_so(client: OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refused:
        for n in range(13):
            client.files.create(file=(f"{n}", b"x"), purpose="vision")
    assert refused.value.code == "file_storage_exceeded"
    for file in list(client.files.list(purpose="vision")):
        client.files.delete(file.id)


def test_commands_send_a_file_and_follow_its_batch(
    client: OpenAI, node: Node, tmp_path: Path
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(lines(3))
    made = json.loads(node.cli("batches", "create", str(file), "--json").stdout)
    done = ended(client, client.batches.retrieve(made["id"]))
    [row] = [row for row in node.admin("GET", "/batches").json()["data"] if row["id"] == done.id]
    assert (row["org"], row["status"]) == ("local", "completed")
    assert done.output_file_id is not None
    fetched = node.cli("files", "fetch", done.output_file_id)
    assert len(fetched.stdout.splitlines()) == 3, fetched

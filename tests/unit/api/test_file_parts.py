"""Files in conversations: text comes into the prompt, whatever API it came by, and anything else is refused by name."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from llmhost.config.schema import Settings
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.attached import file_of_data, file_text, has_marks, mark_of, named_in
from llmhost.core.errors import BadRequest
from llmhost.testing import TestHost, fake_chat_words, make_host

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTES = "# Notes\n\nBuy mïlk.\n"
AS_TEXT = f'<file name="notes.md">\n{NOTES}</file>\n'
LONG = SafetySettings(max_prompt_chars=2_000)


def url(content: bytes = NOTES.encode(), kind: str = "text/markdown") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[TestHost]:
    async with make_host(settings=Settings(safety=LONG)) as made:
        yield made


async def upload(host: TestHost, content: bytes = NOTES.encode(), **headers: str) -> str:
    files = {"file": ("notes.md", content), "purpose": (None, "user_data")}
    answer = await host.client.post("/v1/files", files=files, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def parts(path: str, file: dict[str, Any]) -> dict[str, Any]:
    """A body of the route, in which a user's message is a text and a file."""
    if path == "/v1/responses":
        content = [{"type": "input_text", "text": "See:\n"}, {"type": "input_file", **file}]
        return {
            "model": "fake",
            "max_output_tokens": 4,
            "input": [{"role": "user", "content": content}],
        }
    if path == "/v1/messages":
        source: dict[str, Any] = {"type": "file", "file_id": file.get("file_id")}
        if "file_data" in file:
            head, _, data = file["file_data"].partition(",")
            source = {"type": "base64", "media_type": head[5:].split(";")[0], "data": data}
        document = {"type": "document", "title": file.get("filename"), "source": source}
        content = [{"type": "text", "text": "See:\n"}, document]
        return {
            "model": "fake",
            "max_tokens": 4,
            "messages": [{"role": "user", "content": content}],
        }
    content = [{"type": "text", "text": "See:\n"}, {"type": "file", "file": file}]
    return {"model": "fake", "max_tokens": 4, "messages": [{"role": "user", "content": content}]}


PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
BETWEEN = {"/v1/messages": "\n\n"}


def words(path: str) -> str:
    return fake_chat_words(
        [{"role": "user", "content": f"See:\n{BETWEEN.get(path, '')}{AS_TEXT}"}], 4
    )


def said(answer: httpx.Response) -> str:
    body = answer.json()
    assert answer.status_code == 200, body
    if "choices" in body:
        return str(body["choices"][0]["message"]["content"])
    return str((body.get("output") or [body])[0]["content"][0]["text"])


@pytest.mark.parametrize("path", PATHS)
async def test_a_text_in_a_file_is_part_of_the_prompt(host: TestHost, path: str) -> None:
    named = {"file_id": await upload(host)}
    inline = {"file_data": url(), "filename": "notes.md"}

    for file in (inline, named):
        assert said(await host.client.post(path, json=parts(path, file))) == words(path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("file", "code", "field"),
    [
        ({"file_data": url(b"%PDF-1.7", "application/pdf")}, "unsupported_parameter", "data"),
        ({"file_data": url(b"\xff\xfe\x00", "text/plain")}, "unsupported_parameter", "data"),
        ({"file_data": "data:text/plain;base64,!!!"}, "invalid_value", "data"),
        ({"file_id": "file-nobodys"}, None, "file_id"),
        ({"file_id": "x" * 300}, "invalid_value", "file_id"),
    ],
)
async def test_what_is_no_text_is_refused_by_its_place(
    host: TestHost, path: str, file: Any, code: str, field: str
) -> None:
    answer = await host.client.post(path, json=parts(path, file))

    error = answer.json()["error"]
    error = error.get("details", {}) | error
    assert answer.status_code == (400 if code else 404)
    assert (error.get("code") or error.get("error_code")) == code
    at = {"/v1/responses": "input[0].content[1]", "/v1/messages": "messages[0].content[1].source"}
    where = at.get(path, "messages[0].content[1].file")
    name = f"file_{field}" if field == "data" and path != "/v1/messages" else field
    assert error["param"] == f"{where}.{name}"


@pytest.mark.parametrize(
    ("path", "field", "param"),
    [
        ("/v1/responses", "file_url", "input[0].content[1].file_url"),
        ("/v1/responses", "file_data", "input[0].content[1].file_data"),
        ("/v1/chat/completions", "file_url", "messages[0].content[1].file.file_url"),
        ("/v1/chat/completions", "file_data", "messages[0].content[1].file.file_data"),
    ],
)
async def test_nothing_is_fetched(host: TestHost, path: str, field: str, param: str) -> None:
    body = parts(path, {field: "https://127.0.0.1/secret"})
    error = (await host.client.post(path, json=body)).json()["error"]

    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert "fetches nothing" in error["message"]


async def test_a_file_counts_where_prompts_are_counted_and_bounded(host: TestHost) -> None:
    body = parts("/v1/messages", {"file_id": await upload(host)})
    counted = await host.client.post("/v1/messages/count_tokens", json=body)
    answered = await host.client.post("/v1/messages", json=body)
    assert counted.json()["input_tokens"] == answered.json()["usage"]["input_tokens"]

    chat = parts("/v1/chat/completions", {"file_id": await upload(host, b"word " * 500)})
    refused = await host.client.post("/v1/chat/completions", json=chat)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")

    tokens = parts("/v1/chat/completions", {"file_id": await upload(host)})
    rendered = (await host.client.post("/apply-template", json=tokens)).json()["prompt"]
    assert NOTES in rendered
    assert not has_marks(rendered)


async def test_a_response_goes_on_with_a_file_and_lists_it(host: TestHost) -> None:
    name = await upload(host)
    first = (
        await host.client.post("/v1/responses", json=parts("/v1/responses", {"file_id": name}))
    ).json()
    listed = (await host.client.get(f"/v1/responses/{first['id']}/input_items")).json()["data"]
    assert listed[0]["content"][1] == {"type": "input_file", "file_id": name}

    more = {
        "model": "fake",
        "input": "and?",
        "max_output_tokens": 2,
        "previous_response_id": first["id"],
    }
    assert said(await host.client.post("/v1/responses", json=more))
    await host.client.delete(f"/v1/files/{name}")
    gone = await host.client.post("/v1/responses", json=more)
    assert gone.status_code == 404
    assert name in gone.json()["error"]["message"]


async def test_a_stored_chat_names_its_files(host: TestHost) -> None:
    body = parts("/v1/chat/completions", {"file_data": url(), "filename": "notes.md"})
    made = (await host.client.post("/v1/chat/completions", json={**body, "store": True})).json()
    kept = (await host.client.get(f"/v1/chat/completions/{made['id']}/messages")).json()["data"][0]

    assert kept["content"] == "See:\n[file notes.md]"
    assert [part["type"] for part in kept["content_parts"]] == ["text", "text"]


async def test_another_s_file_does_not_exist() -> None:
    async with make_host() as host:
        keys = [{"authorization": f"Bearer {await host.make_key(org)}"} for org in ("acme", "zeta")]
        name = await upload(host, **keys[0])
        body = parts("/v1/chat/completions", {"file_id": name})
        own, other = [
            await host.client.post("/v1/chat/completions", json=body, headers=key) for key in keys
        ]

    assert own.status_code == 200
    assert (other.status_code, other.json()["error"]["param"]) == (
        404,
        "messages[0].content[1].file.file_id",
    )


async def test_documents_of_anthropic_s_kinds_are_texts(host: TestHost) -> None:
    async def ask(**block: Any) -> httpx.Response:
        content = [{"type": "document", **block}]
        body = {
            "model": "fake",
            "max_tokens": 4,
            "messages": [{"role": "user", "content": content}],
        }
        return await host.client.post("/v1/messages", json=body)

    text = {"type": "text", "media_type": "text/plain", "data": "a b"}
    blocks = {"type": "content", "content": [{"type": "text", "text": "a b"}]}
    for source in (text, blocks, {"type": "content", "content": "a b"}):
        told = await ask(title="t", context="Old.", source=source)
        prompt = 'Old.\n<file name="t">\na b\n</file>\n'
        assert said(told) == fake_chat_words([{"role": "user", "content": prompt}], 4)
    result = {"type": "search_result", "source": "http://x", "title": "t"}
    told = await ask(**result, content=[{"type": "text", "text": "a b"}])
    prompt = '<file name="t - http://x">\na b\n</file>\n'
    assert said(told) == fake_chat_words([{"role": "user", "content": prompt}], 4)
    for block, param in (
        (result, "content"),
        ({"source": {"type": "url", "url": "http://x"}}, "source.type"),
        ({"source": text, "citations": {"enabled": True}}, "citations.enabled"),
        ({}, "source"),
        ({"source": {"type": "text"}}, "source.data"),
        ({"source": {"type": "content", "content": [{"type": "image"}]}}, "source.content[0].type"),
    ):
        refused = await ask(**block)
        assert refused.status_code == 400
        assert refused.json()["error"]["details"]["param"] == f"messages[0].content[0].{param}"


@given(
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    st.text(max_size=20) | st.none(),
)
async def test_any_text_is_itself_in_its_file(text: str, name: str | None) -> None:
    told = file_text(text.encode(), name, "p")

    assert text.removeprefix("\ufeff").removesuffix("\n") in told
    assert file_of_data(url(text.encode(), "text/csv"), name, "p") == told
    assert file_of_data(base64.b64encode(text.encode()).decode(), name, "p") == told


@given(st.text(max_size=30))
async def test_any_data_is_a_text_or_refused(data: str) -> None:
    try:
        assert file_of_data(data, None, "p").startswith("<file>\n")
    except BadRequest as refused:
        assert refused.param == "p"


async def test_marks_are_found_among_texts() -> None:
    mark = mark_of("file-1", "messages[0]")

    assert [each.file_id for each in named_in(f"a {mark} b {mark}")] == ["file-1", "file-1"]
    assert not has_marks("\x00file \x00 and others")


async def test_a_file_that_is_named_often_counts_as_often() -> None:
    async with make_host() as host:
        named = {"file_id": await upload(host, b"x" * (1 << 20))}
        body = parts("/v1/chat/completions", named)
        body["messages"][0]["content"] += body["messages"][0]["content"][1:] * 16
        answer = await host.client.post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert "16777216 bytes together" in answer.json()["error"]["message"]


@pytest.mark.parametrize("field", ["summary", "content"])
async def test_thoughts_hold_no_files(host: TestHost, field: str) -> None:
    file = {"type": "input_file", "file_id": await upload(host)}
    thoughts = {"type": "reasoning", "summary": [], field: [file]}
    body = {"model": "fake", "max_output_tokens": 4, "input": [thoughts]}
    answer = await host.client.post("/v1/responses", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[0].content"

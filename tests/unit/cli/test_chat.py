"""A conversation over the wire, and one question from a pipe."""

import io
import json
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from llmhost.cli.caller import server_sent_data
from llmhost.cli.chat import Chat, converse
from llmhost.cli.http import Refused


def chunk(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def events(*chunks: Any) -> bytes:
    lines = [f"data: {json.dumps(one)}\n\n" for one in chunks]
    return "".join([": hello\n\n", *lines, "data: [DONE]\n\n"]).encode()


ANSWER = events(chunk(""), chunk("Hel"), chunk("lo"), chunk(None, "stop"), {"choices": []})


@pytest.fixture
def answering(node: Any) -> Any:
    node.answers["GET /v1/models"] = {"data": [{"id": "tiny"}, {"id": "big"}]}
    node.answers["POST /v1/chat/completions"] = ANSWER
    return node


def test_one_question_is_streamed_and_answered(answering, llmhost):
    result = llmhost(
        *("chat", "-m", "Hi", "--system", "Be brief.", "--max-tokens", "5"),
        *("--temperature", "0", "--api-key", "lh-sk-1"),
    )

    assert (result.stdout, result.stderr, result.exit_code) == ("Hello\n", "", 0)
    assert answering.asked[1]["token"] == "Bearer lh-sk-1"
    assert answering.asked[1]["body"] == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ],
        "max_tokens": 5,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_piped_text_is_the_question(answering, llmhost, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMHOST_API_KEY", "lh-sk-2")

    assert llmhost("chat", "big", stdin="What is this?\n").stdout == "Hello\n"
    assert answering.asked[0]["body"]["model"] == "big"
    assert answering.asked[0]["body"]["messages"][0]["content"] == "What is this?"
    assert answering.asked[0]["token"] == "Bearer lh-sk-2"


def test_a_program_gets_the_answer_object(node, llmhost):
    whole = {"id": "x", "choices": [{"message": {"role": "assistant", "content": "Hello"}}]}
    node.answers["POST /v1/chat/completions"] = whole

    result = llmhost("chat", "tiny", "-m", "Hi", "--json")

    assert json.loads(result.stdout) == whole
    assert "stream" not in node.asked[0]["body"]
    assert node.asked[0]["token"] is None


def test_nothing_to_ask_is_wrong_usage(llmhost):
    assert llmhost("chat", stdin=" \n").exit_code == 2
    assert llmhost("chat", "-m", "Hi", "--temperature", "nan").exit_code == 2


def test_without_a_server_chat_says_how_to_start_one(llmhost, tmp_path):
    result = llmhost("chat", "-m", "Hi")

    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: No llmhost server runs on {tmp_path / 'data'}. Start one with `llmhost serve`"
        " in another terminal, or name one with --url.\n"
    )


def test_a_missing_key_is_explained(node, llmhost):
    node.answers["POST /v1/chat/completions"] = (401, {"error": {"message": "No API key."}})

    assert llmhost("chat", "tiny", "-m", "Hi").stderr == (
        "Error: No API key. Give --api-key or set LLMHOST_API_KEY;"
        " `llmhost keys create` makes a key.\n"
    )


def test_an_error_inside_a_stream_ends_with_its_message(node, llmhost):
    node.answers["POST /v1/chat/completions"] = events(
        chunk("Hel"), {"error": {"message": "The engine failed."}}
    )

    result = llmhost("chat", "tiny", "-m", "Hi")

    assert (result.exit_code, result.stdout) == (1, "Hel")
    assert result.stderr == "Error: The engine failed.\n"


def test_a_stream_without_an_end_is_a_failure(node, llmhost):
    node.answers["POST /v1/chat/completions"] = ANSWER.replace(b"data: [DONE]\n\n", b"")

    assert llmhost("chat", "tiny", "-m", "Hi").stderr == (
        "Error: The answer broke off: the server closed the connection.\n"
    )


def test_an_answer_cannot_steer_the_terminal(node, llmhost):
    node.answers["POST /v1/chat/completions"] = events(
        chunk("a\x1b[2Jb\x9b\n\tc"), chunk(None, "length")
    )

    result = llmhost("chat", "tiny", "-m", "Hi")

    assert result.stdout == "a[2Jb\n\tc\n"
    assert result.stderr == "(cut: the answer reached its longest length)\n"


def test_a_server_without_models_is_reported(node, llmhost):
    node.answers["GET /v1/models"] = {"data": []}

    assert "The server offers no model" in llmhost("chat", "-m", "Hi").stderr


def test_server_sent_data_skips_comments_and_joins_lines():
    lines = [": ping", "event: x", "data: a", "data:b", "", "", "data: c", "", "data: cut"]

    assert list(server_sent_data(lines)) == ["a\nb", "c"]


Step = dict[str, Any] | type[BaseException] | Exception


class ScriptedApi:
    """Each question takes the next script; an exception in a script is raised there."""

    def __init__(self, *scripts: list[Step]) -> None:
        self.scripts = list(scripts)
        self.bodies: list[dict[str, Any]] = []
        self.closed = 0

    def models(self) -> list[str]:
        return ["tiny"]

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("these tests stream")

    def stream(self, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        self.bodies.append(body)
        try:
            for step in self.scripts.pop(0):
                if not isinstance(step, dict):
                    raise step
                yield step
        finally:
            self.closed += 1

    def asked(self) -> list[list[str]]:
        return [[message["content"] for message in body["messages"]] for body in self.bodies]


def typing(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """What a person types; the end of it is Ctrl-D."""
    script: Iterator[str | type[BaseException]] = iter(lines)

    def read(_: str) -> str:
        line = next(script, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


HELLO: list[Step] = [chunk("Hello"), chunk(None, "stop")]


def test_a_conversation_remembers_until_it_is_reset(capsys: pytest.CaptureFixture[str]):
    api = ScriptedApi(HELLO, HELLO, HELLO)

    converse(Chat(api, "tiny"), typing("one", "", "two", "/reset", "three"))

    assert api.asked() == [["one"], ["one", "Hello", "two"], ["three"]]
    assert capsys.readouterr().out == "Hello\nHello\nHello\n\n"


def test_ctrl_c_stops_the_answer_and_not_the_program(capsys: pytest.CaptureFixture[str]):
    api = ScriptedApi([chunk("Hel"), KeyboardInterrupt], HELLO)

    converse(Chat(api, "tiny"), typing("one", KeyboardInterrupt, "two", "/quit", "three"))

    assert api.asked() == [["one"], ["one", "Hel", "two"]]
    assert api.closed == 2
    printed = capsys.readouterr()
    assert "(stopped)" in printed.err
    assert "Ctrl-D or /quit leaves." in printed.err


def test_an_answer_that_was_stopped_before_its_first_word_never_was():
    api = ScriptedApi([KeyboardInterrupt], HELLO)

    converse(Chat(api, "tiny"), typing("one", "two"))

    assert api.asked() == [["one"], ["two"]]


def test_ctrl_c_on_one_question_exits_with_130(llmhost, monkeypatch: pytest.MonkeyPatch):
    api = ScriptedApi([chunk("Hel"), KeyboardInterrupt])
    api.close = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr("llmhost.cli.chat.connect", lambda *_: api)

    assert llmhost("chat", "-m", "Hi").exit_code == 130


def test_a_failed_question_is_forgotten_and_the_conversation_goes_on(
    capsys: pytest.CaptureFixture[str],
):
    api = ScriptedApi([chunk("Hel"), Refused("Too many requests.")], HELLO)

    converse(Chat(api, "tiny"), typing("one", "two"))

    assert api.asked() == [["one"], ["two"]]
    assert "Error: Too many requests.\n" in capsys.readouterr().err


def test_commands_are_answered_and_never_sent(capsys: pytest.CaptureFixture[str]):
    api = ScriptedApi(HELLO)

    converse(Chat(api, "tiny"), typing("/model big", "/model", "/help", "/nope x", "hi"))

    assert [body["model"] for body in api.bodies] == ["big"]
    noted = capsys.readouterr().err
    assert "Now talking to big." in noted
    assert "Talking to big." in noted
    assert "/nope is not known." in noted


def test_a_terminal_opens_a_conversation(answering, llmhost, monkeypatch: pytest.MonkeyPatch):
    lines = typing("one")
    monkeypatch.setattr("builtins.input", lines)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("llmhost.cli.chat._is_terminal", lambda: True)

    result = llmhost("chat")

    assert result.stdout == "Hello\n\n"
    assert llmhost("chat", "--json").exit_code == 2

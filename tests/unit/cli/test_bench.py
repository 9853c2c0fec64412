"""`llmhost bench` at the shell: what it sends, what it says, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest


def events(*chunks: Any) -> bytes:
    lines = [f"data: {json.dumps(one)}\n\n" for one in chunks]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


TEXT = events(
    {"choices": [{"index": 0, "text": "a", "finish_reason": None}]},
    {"choices": [{"index": 0, "text": "b", "finish_reason": "length"}]},
    {"choices": [], "usage": {"prompt_tokens": 6, "completion_tokens": 2}},
)


@pytest.fixture
def answering(node: Any) -> Any:
    node.answers["GET /v1/models"] = {"data": [{"id": "tiny"}, {"id": "big"}]}
    node.answers["POST /v1/completions"] = node.answers["POST /v1/chat/completions"] = TEXT
    return node


def asked(node: Any) -> list[dict[str, Any]]:
    return [request["body"] for request in node.asked if request["method"] == "POST"]


def test_the_running_nodes_first_model_is_asked(answering, llmhost, tmp_path: Path):
    out = tmp_path / "result.json"

    result = llmhost(
        *("bench", "--requests", "3", "--concurrency", "2", "--prompt-tokens", "6", "--out"),
        *(str(out), "--output-tokens", "2", "--ignore-eos", "--temperature", "0", "--json"),
    )

    data = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert data["requests"] == {"answered": 3, "failed": 0, "cut": 0}
    assert (data["prompt_tokens"], data["output_tokens"]) == (18, 6)
    assert len(json.loads(out.read_text())["records"]) == 3
    bodies = asked(answering)
    assert len(bodies) == 4  # and a warm-up
    for body in bodies:
        prompt = body.pop("prompt")
        assert len(prompt) == 6
        assert all(100 <= token < 2000 for token in prompt)
        assert body == {
            "model": "tiny",
            "max_tokens": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "ignore_eos": True,
        }


def test_a_chat_is_asked_in_words_by_the_key_that_is_given(answering, llmhost):
    result = llmhost(
        *("bench", "--route", "chat", "--model", "big", "--api-key", "k", "--warm-up", "0"),
        *("--requests", "2", "--rate", "inf", "--prompt-tokens", "uniform:3-5"),
    )

    assert result.exit_code == 0
    assert "2 answered" in result.stdout
    assert "all at once" in result.stdout
    bodies = asked(answering)
    assert all(3 <= len(b["messages"][0]["content"].split()) <= 5 for b in bodies)
    assert {request["token"] for request in answering.asked} == {"Bearer k"}


def test_the_same_seed_sends_the_same_prompts_and_no_seed_others(answering, llmhost):
    few = ("bench", "--requests", "1", "--warm-up", "0", "--model", "m")
    for more in (("--seed", "5"), ("--seed", "5"), (), ()):
        assert llmhost(*few, *more).exit_code == 0

    prompts = [body["prompt"] for body in asked(answering)]
    assert prompts[0] == prompts[1]
    assert prompts[2] != prompts[3]


def refusal(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": code}}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, refusal("No model 'x'.", "model_not_found")), "404 model_not_found: No model 'x'."),
        ((401, refusal("Bad key.", "invalid_api_key")), "Bad key. Give --api-key or set LLMHOST"),
        ((502, b"<html>nginx</html>"), "502: <html>nginx</html>"),
    ],
)
def test_a_server_that_refuses_is_one_sentence(node, llmhost, answer, said: str):
    node.answers["POST /v1/completions"] = answer

    result = llmhost("bench", "--model", "x")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_load_of_which_nothing_was_answered_fails_with_its_figures(node, llmhost):
    node.answers["POST /v1/completions"] = (503, refusal("Full.", "overloaded"))

    result = llmhost("bench", "--model", "x", "--warm-up", "0", "--requests", "2")

    assert result.exit_code == 1
    assert "2 failed with 503 overloaded: Full." in result.stdout


def test_where_nobody_answers_is_said(llmhost):
    for more in ((), ("--model", "x")):
        result = llmhost("bench", "--url", "http://127.0.0.1:9", *more)

        assert result.exit_code == 1
        assert "http://127.0.0.1:9" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert "llmhost serve" in llmhost("bench").stderr


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (("--prompt-tokens", "long"), "--prompt-tokens"),
        (("--output-tokens", "uniform:9-1"), "--output-tokens"),
        (("--rate", "0"), "--rate"),
        (("--rate", "nan"), "--rate"),
        (("--rate", "inf"), "--rate"),
        (("--rate", "1", "--concurrency", "2"), "--concurrency"),
        (("--rate", "1", "--burstiness", "0"), "--burstiness"),
        (("--duration-s", "-1"), "--duration-s"),
        (("--slo", "speed:1"), "--slo"),
        (("--route", "chat", "--prompts", "ids"), "--prompts"),
        (("--api-key", "schlüssel"), "--api-key"),
        (("--rate", "5", "engine"), "--rate"),
        (("engine", "--batch", "few"), "--batch"),
        (("engine", "--random-layers", "2", "builtin:tiny"), "--random-layers"),
        (("engine", "--random-layers", "2", "--random-heads", "7"), "--random-heads"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage_and_sends_nothing(node, llmhost, args, option: str):
    result = llmhost("bench", *args)

    assert result.exit_code == 2
    assert option in result.stderr
    assert node.asked == []


def test_a_folder_without_a_model_is_one_sentence(llmhost, tmp_path: Path):
    result = llmhost("bench", "engine", str(tmp_path / "none"))

    assert result.exit_code == 1
    assert "There is no folder" in result.stderr


def test_a_result_that_can_not_be_written_is_said(answering, llmhost, tmp_path: Path):
    result = llmhost("bench", "--requests", "1", "--out", str(tmp_path / "no" / "file.json"))

    assert result.exit_code == 1
    assert "can't be written" in result.stderr

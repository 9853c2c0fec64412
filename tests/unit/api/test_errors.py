"""Every error on the wire has OpenAI's four keys, and tells a client whether to try again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar.exceptions import HTTPException

from llmhost.api.errors import error_body, error_headers, known_error
from llmhost.core import errors
from llmhost.core.errors import HeldForReview, LlmhostError

OWN_ARGUMENTS: dict[str, dict[str, Any]] = {
    "MissingParameter": {"param": "model"},
    "ContextTooLong": {"prompt_tokens": 9, "max_tokens": 1, "limit_tokens": 8, "param": "prompt"},
    "ModelNotAllowed": {"model": "m"},
    "UnknownModel": {"model": "m", "nearest": "n"},
    "IdempotencyKeyInUse": {"retry_after_s": 5.0},
    "IdempotencyKeyReused": {},
    "HeldForReview": {"review_id": "review_1"},
    **{
        name: {"message": "spent", "level": "org", "budget_id": "b", "remaining_nano": 5}
        for name in (
            "QuotaExhausted",
            "CreditsExhausted",
            "TeamBudgetExhausted",
            "OrgBudgetExhausted",
        )
    },
    "ModelNotPriced": {"model": "m"},
    "OutOfMemory": {"device": "cuda:0"},
    "PreviousResponseNotFound": {"response_id": "resp_1"},
    "CacheMiss": {},
    "NoGuardModel": {},
    "ConversationLocked": {"conversation": "conv_1"},
    "FileInUse": {"file_id": "file-1"},
    "StorageFailed": {"path": Path("x.db"), "error": OSError("full")},
    "LimitReached": {
        "message": "slower",
        "retry_after_s": 2.0,
        "dimension": "key",
        "limit": "requests",
    },
}


def tree(kind: type[LlmhostError] = LlmhostError) -> Iterator[type[LlmhostError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_every_error_gives_the_four_keys(kind: type[LlmhostError]) -> None:
    error = kind(**OWN_ARGUMENTS.get(kind.__name__, {"message": "no"}))
    body = json.loads(error_body(error))

    assert list(body) == ["error"]
    waits = ["review_id"] if kind is HeldForReview else []
    assert list(body["error"]) == ["message", "type", "param", "code", *waits]
    assert body["error"]["message"]
    assert isinstance(body["error"]["type"], str)
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)
    assert body["error"]["param"] is None or isinstance(body["error"]["param"], str)
    assert 400 <= error.status < 600 or kind is HeldForReview


@pytest.mark.parametrize(
    ("kind", "retry_after_s", "headers"),
    [
        (errors.BadRequest, None, {}),
        (errors.NotFound, None, {}),
        (errors.Conflict, None, {"x-should-retry": "false"}),
        (errors.LlmhostError, None, {"x-should-retry": "false"}),
        (errors.ModelUnavailable, None, {"x-should-retry": "false"}),
        (
            errors.RateLimited,
            0.25,
            {"retry-after": "1", "retry-after-ms": "250", "x-should-retry": "true"},
        ),
        (
            errors.Overloaded,
            2.0001,
            {"retry-after": "3", "retry-after-ms": "2001", "x-should-retry": "true"},
        ),
        (
            errors.Overloaded,
            0.0,
            {"retry-after": "1", "retry-after-ms": "1", "x-should-retry": "true"},
        ),
    ],
)
def test_headers_say_whether_and_when_to_try_again(
    kind: type[LlmhostError], retry_after_s: float | None, headers: dict[str, str]
) -> None:
    assert error_headers(kind("no", retry_after_s=retry_after_s)) == headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.Unauthenticated),
        (404, errors.NotFound),
        (405, errors.MethodNotAllowed),
        (413, errors.RequestTooLarge),
        (422, errors.BadRequest),
        (429, errors.RateLimited),
        (500, errors.LlmhostError),
        (503, errors.LlmhostError),
    ],
)
def test_the_frameworks_errors_become_ours(status: int, kind: type[LlmhostError]) -> None:
    assert type(known_error(HTTPException(status_code=status, detail="odd"))) is kind


def test_what_nobody_thought_about_says_nothing_of_its_insides() -> None:
    assert "secret" not in json.dumps(json.loads(error_body(known_error(ValueError("secret")))))

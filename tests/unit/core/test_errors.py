"""The tree of errors: every kind has what the wire, the logs and the metrics need."""

import re
from collections.abc import Iterator

import pytest

from llmhost.core import errors
from llmhost.core.errors import ContextTooLong, LlmhostError, MissingParameter, UnknownModel

OFF_THE_WIRE = {"config_error", "already_running"}
WITHOUT_CODE = {"LlmhostError", "BadRequest", "NotFound"}
NOT_YET_DECIDED = errors.HeldForReview
"""No refusal yet, so it is a 202."""


def every_kind(kind: type[LlmhostError] = LlmhostError) -> Iterator[type[LlmhostError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from every_kind(child)


KINDS = list(every_kind())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_a_type_and_a_code(kind: type[LlmhostError]) -> None:
    assert 400 <= kind.status < 600 or (kind is NOT_YET_DECIDED and kind.status == 202)
    assert kind.type
    assert (kind.code is None) is (kind.__name__ in WITHOUT_CODE)
    if kind.code in OFF_THE_WIRE:
        assert kind.status == 500


def test_codes_tell_errors_apart() -> None:
    # Another way of finding no model, and another way to be told of an overload: clients do the same about both.
    doubles = (errors.NoGuardModel, errors.ShuttingDown)
    codes = [kind.code for kind in KINDS if kind.code is not None and kind not in doubles]
    assert len(codes) == len(set(codes))


def test_what_the_caller_did_wrong_is_a_4xx_and_the_rest_a_5xx() -> None:
    for kind in set(KINDS) - {NOT_YET_DECIDED}:
        assert (kind.status < 500) is kind.type.endswith(
            ("request_error", "permission_error", "limit_error", "insufficient_quota")
        )


def test_every_error_drawn_in_the_docstring_exists() -> None:
    drawn = re.findall(r"[│├└─ ]{4,}([A-Z]\w+)", errors.__doc__ or "")
    assert len(drawn) > 20
    for name in drawn:
        assert issubclass(getattr(errors, name), LlmhostError)


def test_a_missing_parameter_is_named() -> None:
    error = MissingParameter("messages")
    assert (error.status, error.code, error.param) == (
        400,
        "missing_required_parameter",
        "messages",
    )
    assert "'messages'" in str(error)


@pytest.mark.parametrize(
    ("max_tokens", "says", "never_says"),
    [(None, "Shorten the prompt.", "max_tokens"), (50, "set max_tokens to 10 or less", "None")],
)
def test_a_prompt_that_is_too_long_is_told_the_limit_and_the_cure(
    max_tokens: int | None, says: str, never_says: str
) -> None:
    error = ContextTooLong(
        prompt_tokens=90, max_tokens=max_tokens, limit_tokens=100, param="messages"
    )
    assert "90 tokens" in error.message
    assert "holds 100" in error.message
    assert says in error.message
    assert never_says not in error.message


def test_no_cure_is_offered_that_would_not_help() -> None:
    error = ContextTooLong(prompt_tokens=120, max_tokens=5, limit_tokens=100, param="prompt")
    assert "set max_tokens" not in error.message


def test_an_unknown_model_names_the_nearest() -> None:
    assert "Did you mean 'tiny'?" in UnknownModel("tinny", nearest="tiny").message
    assert "Did you mean" not in UnknownModel("x").message


def test_waiting_helps_only_where_it_is_promised() -> None:
    assert LlmhostError("x").retry_after_s is None
    assert LlmhostError("x", retry_after_s=2.5).retry_after_s == 2.5

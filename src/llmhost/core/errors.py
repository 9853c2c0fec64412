"""Everything that can be said no to, in one tree.

    LlmhostError
    ├── HeldForReview              202  a human decides first; its answer is asked for by the review's id
    ├── BadRequest                 400  the request itself is wrong
    │   ├── MissingParameter            a required field is absent
    │   ├── InvalidValue                a known field has a wrong type or range
    │   ├── UnsupportedParameter        a known field that this server does not honour
    │   ├── InvalidGrammar              an answer's form that can't be read or enforced
    │   ├── InvalidSchema               the same of a JSON schema
    │   ├── InvalidTool                 the same of a tool's parameters
    │   ├── InvalidEncryptedContent     encrypted content that was not made here, or for somebody else
    │   ├── ConversationLocked          another response is being made in it
    │   ├── PreviousResponseNotFound    the response to go on with is not kept here
    │   ├── ExceedsLimit                more than a limit ever has at once: no wait would help
    │   ├── ContextTooLong              prompt and answer don't fit the model's window
    │   └── ContentRefused              a safety rule or plugin refused the text
    ├── Unauthenticated            401  no key, or not a valid one
    ├── Forbidden                  403  a valid key that may not do this
    │   ├── FilesFull                   the team's files are as many or as large as they may be
    │   ├── ModelNotAllowed             the key's allow-list lacks the model
    │   └── ModelNotPriced              a budget is to be kept, and the model has no price
    ├── NotFound                   404  no such route or object
    │   └── UnknownModel                no such model
    ├── MethodNotAllowed           405
    ├── RequestTimeout             408  the body did not come in time
    ├── Conflict                   409  the object exists or is in another state
    │   ├── FileInUse                   a batch that runs reads the file
    │   └── IdempotencyKeyInUse         its request still runs, and its answer is too large to share
    ├── RequestTooLarge            413
    ├── HeadersTooLarge            431  the request's line and headers, or their number
    ├── IdempotencyKeyReused       422  the key came with another body before
    ├── RateLimited                429  waiting helps
    ├── QuotaExhausted             429  a budget has no room for it; trying again does not help
    │   ├── CreditsExhausted            what was paid in is spent
    │   ├── TeamBudgetExhausted         it is the team's
    │   └── OrgBudgetExhausted          it is the organisation's
    ├── Overloaded                 503  queue full or loading; waiting helps
    │   └── ShuttingDown                the server drains; another connection may reach another node
    ├── PluginFailed               503  a plugin whose rule is "fail closed" failed
    │   └── SafetyUnavailable           and it was one that judges text
    ├── ModelUnavailable           503  the model could not be loaded
    │   └── DoesNotFit                  it needs more memory than the device has
    ├── EngineFailed               500  the forward pass raised
    │   ├── FormTooComplex         400  an answer's form left nothing to go on with
    │   └── OutOfMemory                 and it was for want of device memory
    ├── DeadlineExceeded           504  not answered within the time that the caller gave
    ├── CacheMiss                  504  only a kept answer was wanted, and there is none
    ├── ConfigError                     models.toml, environment or flags are wrong (never on the wire)
    └── AlreadyRunning                  the port or the data dir is taken (never on the wire)

Each class carries its HTTP status and OpenAI's `type` and `code`; `code` is also the metric label. A message
says what was asked, the limit, and what to do next. Anything else that is raised is a bug and becomes a plain 500.
"""

from typing import ClassVar


class LlmhostError(Exception):
    """The root: an error that has been thought about.

    `param` names the request's field in dotted form (`messages[0].role`); `retry_after_s` is a promise
    that waiting helps and becomes the `retry-after` header.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class HeldForReview(LlmhostError):
    """No refusal yet: a reviewer decides, and until then the caller has the review's id."""

    status = 202
    type = "held_for_review"
    code = "held_for_review"

    def __init__(self, review_id: str, *, retry_after_s: float = 30.0) -> None:
        super().__init__(
            f"A reviewer decides on this first. GET /v1/reviews/{review_id} says what became of it, and has the answer"
            " when it is approved.",
            retry_after_s=retry_after_s,
        )
        self.review_id = review_id


class BadRequest(LlmhostError):
    status = 400
    type = "invalid_request_error"


class MissingParameter(BadRequest):
    code = "missing_required_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"You must provide the parameter {param!r}.", param=param)


class InvalidValue(BadRequest):
    code = "invalid_value"


class UnsupportedParameter(BadRequest):
    code = "unsupported_parameter"


class InvalidGrammar(BadRequest):
    code = "invalid_grammar"


class InvalidSchema(BadRequest):
    code = "invalid_json_schema"


class InvalidTool(BadRequest):
    code = "invalid_function_parameters"


class InvalidEncryptedContent(BadRequest):
    code = "invalid_encrypted_content"


class ConversationLocked(BadRequest):
    code = "conversation_locked"

    def __init__(self, conversation: str) -> None:
        super().__init__(
            f"Another response is being made in the conversation {conversation[:80]!r}. Ask again when it has ended.",
            param="conversation",
        )


class PreviousResponseNotFound(BadRequest):
    code = "previous_response_not_found"

    def __init__(self, response_id: str) -> None:
        super().__init__(
            f"The response {response_id[:80]!r} does not exist here, or one that it went on with is gone: responses are"
            " kept for some days, and with 'store': false not at all. Send the conversation as 'input'.",
            param="previous_response_id",
        )


class ExceedsLimit(BadRequest):
    code = "request_exceeds_limit"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"

    def __init__(
        self, *, prompt_tokens: int, max_tokens: int | None, limit_tokens: int, param: str
    ) -> None:
        room = max(limit_tokens - prompt_tokens, 0)
        self.prompt_tokens, self.limit_tokens = prompt_tokens, limit_tokens
        asked = "" if max_tokens is None else f" and max_tokens is {max_tokens}"
        cure = f" or set max_tokens to {room} or less" if max_tokens is not None and room else ""
        super().__init__(
            f"The prompt is {prompt_tokens} tokens{asked}; this model holds {limit_tokens}."
            f" Shorten the prompt{cure}.",
            param=param,
        )


class ContentRefused(BadRequest):
    """Knows the review that it waits for, where a human is to decide."""

    code = "content_policy_violation"

    def __init__(
        self, message: str, *, param: str | None = None, review_id: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.review_id = review_id


class Unauthenticated(LlmhostError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(LlmhostError):
    status = 403
    type = "permission_error"
    code = "permission_denied"


class FilesFull(Forbidden):
    code = "file_storage_exceeded"


class ModelNotAllowed(Forbidden):
    code = "model_not_allowed"

    def __init__(self, model: str) -> None:
        super().__init__(f"This API key may not use the model {model!r}.", param="model")


class ModelNotPriced(Forbidden):
    code = "model_not_priced"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model {model!r} has no price, and this key has a budget to keep. Ask the operator for a price"
            " (it may be 0), or use another model.",
            param="model",
        )


class NotFound(LlmhostError):
    status = 404
    type = "invalid_request_error"


class UnknownModel(NotFound):
    code = "model_not_found"

    def __init__(self, model: str, *, nearest: str | None = None) -> None:
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        super().__init__(
            f"The model {model!r} does not exist here.{hint} GET /v1/models lists what does.",
            param="model",
        )


class NoGuardModel(NotFound):
    """A request for moderation names no model, and there is none to take for it."""

    code = "model_not_found"

    def __init__(self) -> None:
        super().__init__(
            "No 'model' is named, and this server declares none that judges texts, or none that this key may use. Name"
            " one, or ask the operator to declare one with `guard` in models.toml.",
            param="model",
        )


class MethodNotAllowed(LlmhostError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: tuple[str, ...] = ("POST",)) -> None:
        super().__init__(message)
        self.allowed = allowed
        """Methods that the route knows."""


class RequestTimeout(LlmhostError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Conflict(LlmhostError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"


class FileInUse(Conflict):
    code = "file_in_use"

    def __init__(self, file_id: str) -> None:
        super().__init__(
            f"The file {file_id} is the input of a batch that has not ended. Cancel the batch or wait for it, and"
            " delete the file then."
        )


class IdempotencyKeyInUse(Conflict):
    code = "idempotency_key_in_use"

    def __init__(self, *, retry_after_s: float) -> None:
        super().__init__(
            "The request with this Idempotency-Key still runs, and its answer has become too large to share."
            " Ask again when it has ended: it is not kept, and the request runs anew.",
            param="Idempotency-Key",
            retry_after_s=retry_after_s,
        )


class RequestTooLarge(LlmhostError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class HeadersTooLarge(LlmhostError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class IdempotencyKeyReused(LlmhostError):
    """422, as the IETF's draft has it. OpenAI's clients send again by themselves what met a 409."""

    status = 422
    type = "invalid_request_error"
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key came with another body before. Send that body again, byte by byte, to get its answer,"
            " or a new key to ask something else.",
            param="Idempotency-Key",
        )


class RateLimited(LlmhostError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QuotaExhausted(LlmhostError):
    """Knows whose budget it was, for metrics and logs, and what is left in it, for callers."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(
        self, message: str, *, level: str, budget_id: str, remaining_nano: int = 0
    ) -> None:
        super().__init__(message)
        self.level = level
        """run, key, team or org."""
        self.budget_id = budget_id
        self.remaining_nano = remaining_nano


class CreditsExhausted(QuotaExhausted):
    code = "credit_balance_exhausted"


class TeamBudgetExhausted(QuotaExhausted):
    """OpenAI calls a project what is a team here."""

    code = "project_spend_limit_exceeded"


class OrgBudgetExhausted(QuotaExhausted):
    code = "organization_spend_limit_exceeded"


class Overloaded(LlmhostError):
    status = 503
    type = "service_unavailable_error"
    code = "server_is_overloaded"


class ShuttingDown(Overloaded):
    """Its answer closes the connection, so that the next try is a new one, which a balancer sends elsewhere."""


class PluginFailed(LlmhostError):
    status = 503
    type = "service_unavailable_error"
    code = "plugin_failed"


class SafetyUnavailable(PluginFailed):
    code = "safety_unavailable"


class ModelUnavailable(LlmhostError):
    status = 503
    type = "service_unavailable_error"
    code = "model_unavailable"


class DoesNotFit(ModelUnavailable):
    code = "model_does_not_fit"


class EngineFailed(LlmhostError):
    code = "engine_failed"


class FormTooComplex(EngineFailed):
    """Amid an answer: nothing that its form allows could be found in the time that there is for it."""

    status = 400
    type = "invalid_request_error"
    code = "form_too_complex"


class OutOfMemory(EngineFailed):
    """Raised by a runner whose step did not fit on the device; the same rows in smaller steps may."""

    code = "engine_out_of_memory"

    def __init__(self, device: str) -> None:
        super().__init__(
            f"The device {device} has too little memory for this answer, even in the smallest step."
            " Ask for a shorter one, or try again later."
        )


class DeadlineExceeded(LlmhostError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"

    @classmethod
    def after(cls, timeout_ms: int) -> "DeadlineExceeded":
        """As a caller hears it, who named the time."""
        return cls(
            f"The answer had not ended after the {timeout_ms} ms of 'timeout_ms'. What was computed until then is"
            " billed. Give it more time, or ask for fewer tokens.",
            param="timeout_ms",
        )

    @classmethod
    def unjudged(cls, timeout_ms: int) -> "DeadlineExceeded":
        """Of a prompt that a guard was still judging."""
        return cls(
            f"The prompt had not been judged after the {timeout_ms} ms of 'timeout_ms', so it is not answered, and"
            " nothing is billed. Give it more time.",
            param="timeout_ms",
        )


class CacheMiss(LlmhostError):
    """504, as HTTP has it for `only-if-cached`."""

    status = 504
    type = "timeout_error"
    code = "cache_miss"

    def __init__(self) -> None:
        super().__init__(
            "No answer to this request is kept for you, and it asks for no other. Send it without"
            " 'x-llmhost-cache: only' to have one made."
        )


class ConfigError(LlmhostError):
    code = "config_error"


class AlreadyRunning(LlmhostError):
    code = "already_running"

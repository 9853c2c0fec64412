"""[limits] and [models.NAME.limits]: how much at once a key, a run or all callers of a model may ask for."""

from llmhost.config.schema.section import Count, Positive, Seconds, Section


class LimitSettings(Section, frozen=True):
    """[limits]: what a key may ask for when the key itself says nothing else."""

    requests_per_minute: Positive | None = None
    """Default request rate per key; no limit when absent. A key made with --rpm has its own."""
    burst_requests: Positive | None = None
    """Requests that may come at once before the rate bites; a minute's worth when absent."""
    input_tokens_per_minute: Positive | None = None
    """Default rate of prompt tokens per key; no limit when absent."""
    output_tokens_per_minute: Positive | None = None
    """Default rate of generated tokens per key; no limit when absent."""
    max_concurrency: Positive | None = None
    """Default number of requests of a key that may run at once; no limit when absent."""
    queue_size: Count = 16
    """Requests of one key that may wait while `max_concurrency` of its key, team, organisation or model is reached."""
    queue_wait_s: Seconds = 10.0
    """Longest wait of such a request; then, or when none may wait, it is refused with 429."""
    run_requests_per_minute: Positive | None = None
    """Request rate of each run, which a caller names in the header `x-llmhost-run`; no limit when absent."""
    run_input_tokens_per_minute: Positive | None = None
    """Rate of prompt tokens of each run; no limit when absent."""
    run_output_tokens_per_minute: Positive | None = None
    """Rate of generated tokens of each run; no limit when absent."""
    run_max_concurrency: Positive | None = None
    """Requests of each run that may run at once; no limit when absent."""
    failed_auth_per_minute: Count = 30
    """Calls without a valid key that one address may make; more are refused unread. 0 switches it off."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose `x-forwarded-for` is believed; "unix" for one on the unix socket."""


class ModelLimitSettings(Section, frozen=True):
    """[models.NAME.limits]: what all callers of the model together may ask for, beside their own limits."""

    requests_per_minute: Positive | None = None
    """Requests for this model, of all keys together; no limit when absent."""
    input_tokens_per_minute: Positive | None = None
    """Prompt tokens of all keys together; no limit when absent."""
    output_tokens_per_minute: Positive | None = None
    """Generated tokens of all keys together; no limit when absent."""
    max_concurrency: Positive | None = None
    """Requests that may run at once; more wait in the queues of their keys. No limit when absent."""

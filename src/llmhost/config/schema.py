"""Every key of models.toml. Frozen; units end the names; a default is what a newcomer would want.

Unknown keys are refused by `config.load`, which also names the nearest key. The attribute docstrings are the
documentation of each key: `docs/config.md` and `models.toml` are checked against them.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


ToolFormat = Literal[
    "auto",
    "none",
    "deepseek_v3",
    "deepseek_v31",
    "glm",
    "granite",
    "harmony",
    "hermes",
    "kimi_k2",
    "lfm2",
    "llama3_json",
    "llama4_pythonic",
    "minimax",
    "mistral",
    "olmo3",
    "phi4_mini",
    "pythonic",
    "qwen3_coder",
    "response_template",
    "seed_oss",
]
"""Formats of tool calls, as `text/calls/families.py` has them, and the one that a model's own files tell."""

GuardForm = Literal[
    "auto",
    "chat",
    "classifier",
    "granite-guardian",
    "llama-guard-3",
    "llama-guard-4",
    "qwen3guard",
    "shieldgemma",
]
"""Ways to ask a model what is harmful in a text, as `safety/guards/` has them."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of models.toml."""


class ServerSettings(Section, frozen=True):
    """[server]: the process and its HTTP door."""

    host: str = "127.0.0.1"
    """Address to listen on. Any address but a loopback one requires an API key to exist."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """TCP port; 0 takes a free one, which `server.json` in the data dir names."""
    unix_socket: str | None = None
    """A path to listen on, in place of host and port."""
    unix_socket_mode: Literal["600", "660", "666"] = "600"
    """Who may connect there: this user, its group too, or everybody on this machine."""
    tls_cert: str | None = None
    """File with the certificate and those of its issuers, PEM; with `tls_key` the server speaks HTTPS alone."""
    tls_key: str | None = None
    """File with its key, PEM, without a password. When one of both files changes, new connections have the new one."""
    root_path: str = ""
    """Path under which a proxy serves it, such as "/llm": requests may begin with it, and need not."""
    data_dir: str = "~/.llmhost"
    """Where keys, ledger, analytics and downloaded models live. One process at a time."""
    drain_timeout_s: Seconds = 30.0
    """How long running answers may go on after SIGTERM or Ctrl-C before they are cut."""
    heartbeat_s: Annotated[float, Meta(gt=0)] = 10.0
    """A comment line is sent on a stream that has been silent for this long."""
    write_share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Part of a core that writing streams may take; beyond it, pieces are joined. Its first piece never waits."""
    keep_alive_s: Annotated[int, Meta(ge=1, le=86_400)] = 75
    """How long a connection may be idle between two requests; behind a proxy, longer than the proxy keeps its own."""
    max_body_bytes: Positive = 16 * 2**20
    """Larger request bodies are refused with 413."""
    cors_origins: tuple[str, ...] = ()
    """Origins of browsers that may call /v1 and /api; "*" allows all. Loopback always may; admin routes answer none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log line that is written."""
    log_format: Literal["text", "json"] = "text"
    """`text` for people, `json` for collectors: one object a line."""


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


class BillingSettings(Section, frozen=True):
    """[billing]: how budgets are held and what is paid for answers that fail."""

    slice_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """Tokens of each answer that a budget must afford beside the prompt before it begins, and again each time."""
    failed_answers: Literal["free", "delivered"] = "free"
    """What callers pay for an answer that the server broke off: nothing, or the prompt and what had come of it."""
    budget_metrics: bool = False
    """Whether `/metrics`, which needs no key, names organisations and says how their budgets stand."""


class IdempotencySettings(Section, frozen=True):
    """[idempotency]: requests with the header `Idempotency-Key`, which run once however often they are sent."""

    kept_s: Annotated[float, Meta(ge=0, le=31_622_400)] = 86400.0
    """How long a finished answer is kept, on disk, for whoever sends its key again."""
    grace_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    """How long such a request goes on when nobody reads its answer any more; then it is cancelled."""
    max_answer_bytes: Positive = 8 * 2**20
    """Answers beyond this are not kept, and while one runs its key is refused with 409."""
    max_kept_bytes: Positive = 2**30
    """All answers that are kept together; beyond it the oldest are forgotten."""


class StateSettings(Section, frozen=True):
    """[state]: what callers have the server keep for them, such as responses and conversations."""

    keep_days: Annotated[int, Meta(ge=1, le=36_500)] = 30
    """Days after which it is forgotten, unless its caller deletes it before."""
    chat_bytes_per_org: Positive = 2**28
    """Stored chats of one organisation together; beyond it its oldest are forgotten."""
    response_bytes_per_team: Positive = 2**30
    """Responses and conversations of a team, or of a key without one; beyond it its oldest responses are forgotten."""


class FileSettings(Section, frozen=True):
    """[files]: what callers upload to `/v1/files`, and what batches make."""

    max_file_bytes: Positive = 512 * 2**20
    """Larger files are refused with 413."""
    max_files_per_team: Positive = 1000
    """Files that a team may have; more are refused with 403."""
    max_bytes_per_team: Positive = 20 * 2**30
    """All files of a team together."""
    keep_free_bytes: Count = 2**30
    """So much of the disk uploads leave free: the ledger needs room, too."""
    batch_days: Annotated[int, Meta(ge=1, le=36_500)] = 30
    """Days after which files of batches are forgotten where nobody says otherwise; other files stay."""


class BatchSettings(Section, frozen=True):
    """[batches]: many requests in one file, which run when there is room and cost less."""

    price_factor: str = "0.5"
    """What a line costs of the price of the same request; "1" is all of it."""
    priority: Annotated[int, Meta(ge=-1000, le=1_000_000)] = 1000
    """Of lines in the scheduler; smaller runs first, and requests that name none have 0."""
    max_in_flight: Positive = 16
    """Lines of all batches that run at once on this node."""
    max_in_flight_per_batch: Positive = 8
    """Lines of one batch that run at once."""
    busy_share: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """Part of the time that lines may run while others ask, so that most of those meet none; 1 is all of it."""
    max_lines: Positive = 50_000
    """Lines that a batch may have."""
    max_live_per_team: Positive = 100
    """Batches of a team that have not ended; more are refused with 429."""
    grace_s: Seconds = 600.0
    """How long lines that run may go on when their batch is cancelled or its time is over; then they are dropped."""


CacheUse = Literal["off", "asked", "deterministic", "all"]
CacheScope = Literal["key", "team", "org", "public"]


class CacheSettings(Section, frozen=True):
    """[cache]: complete answers that are kept for whoever asks the same again."""

    use: CacheUse = "asked"
    """For which requests: `asked` by header, all with temperature 0 or a seed (`deterministic`), `all`, or none."""
    ttl_s: Seconds = 3600.0
    """How long an answer is given again, where no learned policy says otherwise."""
    stale_s: Seconds = 0.0
    """How long after that it still is, while a fresh one is made in the background."""
    max_ttl_s: Seconds = 86_400.0
    """The longest that a learned policy or a model's own time may say: no answer that is older is given."""
    price_factor: str = "0"
    """What a kept answer costs of the price of the same tokens; "0" is nothing, "1" all of it."""
    memory_bytes: Count = 64 * 2**20
    """Answers in memory; the least recently used make room."""
    disk_bytes: Count = 2**30
    """Answers on disk, which outlive the process; the oldest make room. 0 keeps none on disk."""
    max_answer_bytes: Positive = 2**20
    """Larger answers are not kept."""
    learn: bool = True
    """Find out which kinds of requests repeat, and give each the time that saves most."""
    min_hit_potential: Annotated[float, Meta(ge=0, le=1)] = 0.3
    """The share of repeated requests beyond which a kind of requests gets a policy of its own."""


class SafetySettings(Section, frozen=True):
    """[safety]: rules on text, in and out. Plugins are asked after them."""

    block: tuple[str, ...] = ()
    """Categories and rules of the pack that refuse a prompt and end an answer: "secret", "pii.card", "injection"."""
    redact: tuple[str, ...] = ()
    """Those whose finds are replaced by the rule's name, such as [card], before the model or the client sees them."""
    warn: tuple[str, ...] = ()
    """Those whose finds pass, and are told in a header and written down."""
    review: tuple[str, ...] = ()
    """Those whose finds wait for a human, as with `block` until one approves them."""
    blocked_words: tuple[str, ...] = ()
    """Whole words, whatever their case, that end a request with an error or an answer with content_filter."""
    blocked_patterns: tuple[str, ...] = ()
    """Regular expressions with the same effect. Matched against each message, and against a window of the answer."""
    max_prompt_chars: Positive | None = None
    """Longer prompts are refused before they are tokenised; any length passes when absent."""
    check_output: bool = True
    """Also apply the rules to answers. Off, only prompts are checked."""
    window_chars: Annotated[int, Meta(ge=16, le=65536)] = 256
    """While rules or plugins judge answers, text is held back until this much of it is judged at once."""
    guard: str | None = None
    """Name of a model of [models] that judges beside the rules; what it finds blocks unless a list above has it."""
    guard_directions: tuple[Literal["input", "output"], ...] = ("input", "output")
    """What it judges: prompts, answers, or both."""
    guard_timeout_ms: Annotated[int, Meta(ge=1, le=600_000)] = 2_000
    """How long its verdict may take."""
    guard_fails_open: bool = False
    """Let text pass that it could not judge in time; off, such text is refused."""
    guard_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """How sure it has to be to have found something."""
    keep_prompts: Literal["never", "found", "all"] = "never"
    """Prompts that the audit log keeps, encrypted: none, those in which something was found, or all."""
    prompt_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """Days until a kept prompt is erased."""
    keep_fails_open: bool = False
    """Let text pass whose prompt the disk takes too long for, with a row that says so; off, such text is refused."""


class ReviewSettings(Section, frozen=True):
    """[reviews]: texts that policies leave to humans."""

    due_minutes: Positive = 60
    """When somebody should have decided: who comes later is overdue."""
    expire_hours: Annotated[int, Meta(ge=1, le=8760)] = 72
    """When a text that nobody decided on expires, which refuses it."""
    claim_minutes: Annotated[int, Meta(ge=1, le=1440)] = 15
    """How long a reviewer's claim keeps others away."""
    four_eyes: bool = False
    """Two different reviewers have to agree; where they don't, the operator or an admin decides."""
    ruling_hours: Annotated[int, Meta(ge=1, le=8760)] = 168
    """How long a decision holds for exactly the same text of the same organisation."""
    sample_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Part of the texts that is looked at afterwards where the policy's mode is `release`."""
    original_days: Annotated[int, Meta(ge=1, le=3650)] = 7
    """Days until the encrypted original is erased, and with it what was held: calls and answers."""
    redacted_days: Annotated[int, Meta(ge=1, le=3650)] = 90
    """Days until the redacted text is erased, too. What was decided stays, without a text."""
    max_pending: Positive = 10_000
    """Texts that may wait at the same time; while they do, more are refused with 503."""
    retry_after_s: Positive = 30
    """When callers are told to ask again for what is held."""
    webhook: str | None = None
    """URL to which events of reviews are posted, signed: "https://example.com/reviews"."""
    webhook_private: bool = False
    """Post to loopback and private addresses, too; off, only to those of the Internet."""
    webhook_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10.0
    """How long one try may take."""


class AuditSettings(Section, frozen=True):
    """[audit]: the record of what was screened, and of what operators and admins did."""

    keep_days: Annotated[int, Meta(ge=1, le=36_500)] = 400
    """Days after which rows are deleted, unless their organisation's policy says otherwise; the chain stays whole."""
    each_allowed: bool = False
    """Write down each text that nobody objected to; off, such texts are counted by the minute."""


class PluginSettings(Section, frozen=True):
    """[plugins]: drop-in files and installed packages."""

    dir: str | None = None
    """Folder of drop-in *.py plugins; `plugins` in the data dir when absent."""
    disabled: tuple[str, ...] = ()
    """Names of plugins not to load."""
    timeout_s: Annotated[float, Meta(gt=0)] = 2.0
    """How long one call of an asked hook may take before its rule decides."""


class DeviceSettings(Section, frozen=True):
    """[devices]: memory that models may use."""

    cpu_memory: str | None = None
    """Ceiling on weights and KV memory on the CPU, such as "8GiB"; 80% of what is free at start when absent."""
    gpu_memory_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Share of each GPU's memory that models may use."""


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


class CostSettings(Section, frozen=True):
    """[costs]: what this node costs its operator, in dollars as strings; where it says nothing, all costs nothing."""

    gpu_per_hour: str = "0"
    """Rent or depreciation of each GPU."""
    cpu_per_hour: str = "0"
    """The same of the CPU, for models that run on it."""
    power_watts: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """What each GPU draws, on the average."""
    price_per_kwh: str = "0"
    """Electricity for `power_watts`."""
    host_per_hour: str = "0"
    """The machine around the devices, shared by the requests that are in flight."""
    egress_per_gib: str = "0"
    """Bytes that are sent, shared likewise."""
    requests_per_load: Positive = 1000
    """Requests over which the cost of loading a model is spread, until it is unloaded and they are counted."""
    shown_to_callers: bool = True
    """Tell callers who ask for it what their request has cost. Off, only operators see costs."""


class PriceSettings(Section, frozen=True):
    """[models.NAME.price]: dollars per million tokens, as strings, so that no float touches money."""

    input: str = "0"
    """Prompt tokens that had to be computed."""
    cached_input: str | None = None
    """Prompt tokens that a cache saved; the input price when absent."""
    output: str = "0"
    """Generated tokens."""
    reasoning: str | None = None
    """Generated tokens that are thoughts; the output price when absent."""
    embedding: str | None = None
    """Tokens of texts for /v1/embeddings; the input price when absent."""
    request: str = "0"
    """Dollars for each request, beside its tokens."""


class ModelCacheSettings(Section, frozen=True):
    """[models.NAME.cache]: what is different for this model from [cache]."""

    use: CacheUse | None = None
    """For which requests; as [cache] says when absent."""
    scope: CacheScope = "team"
    """Who shares answers: without a team, the organisation."""
    ttl_s: Seconds | None = None
    """How long an answer is given again; as [cache] says when absent."""
    stale_s: Seconds | None = None
    """How long after that; as [cache] says when absent."""
    embedder: str | None = None
    """A model of [models] that makes vectors; with one, requests can ask for answers to questions that are alike."""
    min_similarity: Annotated[float, Meta(ge=0.5, le=1)] = 0.92
    """The least cosine of two such questions; it rises by itself where checks say so."""
    check_share: Annotated[float, Meta(ge=0.01, le=1)] = 0.05
    """The share of such hits that the model answers as well, to see whether both answers agree; of the first, all."""
    max_false_share: Annotated[float, Meta(ge=0, le=0.5)] = 0.01
    """More answers than this that do not agree, and questions have to be more alike."""


class SpeculationSettings(Section, frozen=True):
    """[models.NAME.speculation]: guess tokens ahead, and check several in one step. It changes no answer."""

    method: Literal["auto", "off", "ngram", "draft"] = "auto"
    """`ngram` repeats what followed the same words before, `draft` asks a smaller model; `auto`: `ngram` for torch."""
    draft: str | None = None
    """The smaller model of method "draft", which has the same tokenizer: `builtin:NAME`, a folder, or `hf:ORG/NAME`."""
    max_tokens: Annotated[int, Meta(ge=1, le=16)] = 5
    """Most guesses for one sequence in a step. Fewer are made, or none, where they have not paid so far."""
    max_sequences: Annotated[int, Meta(ge=1, le=256)] = 16
    """With more sequences in a step nothing is guessed."""
    kv_memory: str | None = None
    """Memory for the smaller model's KV cache, such as "256MiB"; enough for `max_sequences` when absent."""


class FakeOptions(Section, frozen=True):
    """[models.NAME.options] of engine "fake"."""

    prefill_delay_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time that each step with a new prompt in it takes."""
    token_delay_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time that every step takes."""
    fail_after_tokens: Count | None = None
    """Each sequence fails after this many generated tokens; none does when absent."""
    vocab: Annotated[int, Meta(ge=16, le=1_000_000)] = 4096
    """Number of different words."""
    task: Literal["generate", "embed", "classify"] = "generate"
    """What it stands in for: a model that generates text, that embeds it, or that classifies it."""
    labels: tuple[str, ...] = ("relevant",)
    """What it tells apart when it classifies; with a single label it scores pairs of texts."""


class TorchOptions(Section, frozen=True):
    """[models.NAME.options] of engine "torch"."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Computation type; `auto` is float32 on the CPU and the checkpoint's own on a GPU."""
    device: str = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, or `cuda:N`."""
    threads: Positive | None = None
    """CPU threads of the forward pass; torch's own choice when absent. One number for the whole process."""
    trust_remote_code: bool = False
    """Run modelling code that comes with the checkpoint. Only for checkpoints that you trust like a program."""
    task: Literal["auto", "generate", "embed", "classify"] = "auto"
    """What the model is for; `auto` asks its architecture and the files of sentence-transformers beside it."""
    pooling: Literal["mean", "cls", "last", "max"] | None = None
    """Which tokens' vectors become a text's, for models that embed; when absent, as the checkpoint says."""
    normalize: bool | None = None
    """Scale embeddings to length 1; when absent, as the checkpoint says."""
    weights: Literal["auto", "fp8", "int4"] = "auto"
    """Bits of a weight on a GPU: `fp8` has 8 and `int4` 4, which saves memory and changes answers; or as loaded."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """What the KV cache keeps: `fp8` holds twice the tokens that 16 bits do, and changes answers; or as computed."""


class LlamaOptions(Section, frozen=True):
    """[models.NAME.options] of engine "llama"."""

    threads: Positive | None = None
    """CPU threads of the forward pass; as many as there are cores when absent."""
    gpu_layers: Annotated[int, Meta(ge=0, le=10_000)] = 0
    """Layers whose weights go to the GPU, where llama-cpp-python was built for one."""
    kv_dtype: Literal["auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = "auto"
    """What the KV cache keeps; `auto` is f16. The q-types take a half to a quarter of that and change answers."""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    """The quicker way to compute attention; `auto` where the device has it. The KV types that begin with q need it."""
    kv_layout: Literal["auto", "unified", "partitioned"] = "auto"
    """KV in one buffer for all, or one for each: quicker for many unlike short texts. `auto` goes by what runs."""
    mmap: bool = True
    """Map the file instead of reading it: loads at once, and pages that are not used can leave memory."""
    mlock: bool = False
    """Keep the weights from being swapped out, as far as the process may lock memory."""
    task: Literal["auto", "generate", "embed", "classify"] = "auto"
    """What the model is for; `auto` asks the file, which says how the model pools a text if it is made for that."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """Which tokens' vectors become a text's, for models that embed; when absent, as the file says."""


class ModelSpec(Section, frozen=True):
    """[models.NAME]: one model that the server offers under that name."""

    engine: str = "torch"
    """`torch` for transformers checkpoints, `llama` for GGUF files (then it can go unsaid), `fake`, or a plugin's."""
    source: str = "builtin:tiny"
    """`builtin:NAME`, a folder, a .gguf file, or `hf:ORG/NAME[@REVISION][:FILE]`. Not used by engine "fake"."""
    aliases: tuple[str, ...] = ()
    """Other names that callers may use."""
    load: Literal["start", "request"] = "start"
    """Load when the server starts, or on the first request."""
    max_batch_size: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Most sequences in one step."""
    max_tokens_per_batch: Annotated[int, Meta(ge=1)] = 1024
    """Most tokens in one step, prompts and answers together; long prompts are computed in chunks of at most this."""
    max_sequence_length: Positive | None = None
    """Most tokens in prompt and answer together; the model's own limit when absent, and never above it."""
    target_itl_ms: Annotated[float, Meta(gt=0)] | None = None
    """Milliseconds that a step with a prompt in it may take while answers are written; 50 or more when absent."""
    prefix_cache: bool = True
    """Keep the computed beginnings of prompts, and compute only what comes after them in later prompts."""
    cache_scope: Literal["key", "team", "org", "public"] = "team"
    """Who shares computed beginnings, which can be noticed by the speed: without a team, the organisation."""
    max_queue: Positive = 1024
    """Sequences that may wait; more are refused with 503 and a retry-after."""
    step_timeout_s: Annotated[float, Meta(gt=0)] = 120.0
    """Seconds after which a step counts as hung and `/health` fails, naming the model; five times that at first."""
    kv_memory: str | None = None
    """Memory for the KV cache, such as "2GiB"; enough for a full batch, within what is free, when absent."""
    kv_host_memory: str | None = None
    """Memory of the host, such as "8GiB", for blocks that have to leave the KV cache; none when absent."""
    block_tokens: Literal[8, 16, 32, 64] = 16
    """Tokens in one KV block."""
    adapters: dict[str, str] = msgspec.field(default_factory=dict)
    """LoRA adapters: NAME = a folder of PEFT's, `hf:ORG/NAME`, or a GGUF model's .gguf file; callers say MODEL:NAME."""
    max_adapters: Annotated[int, Meta(ge=1, le=1024)] = 8
    """Adapters in memory at once; the least recently used one that nobody uses makes room."""
    tool_format: ToolFormat = "auto"
    """How the model writes tool calls that it decides upon; `auto` finds it in its files."""
    guard: GuardForm | None = None
    """How it is asked to judge texts, which makes it one that `/v1/moderations` may pick; `auto` finds that out."""
    guard_labels: dict[str, str] = msgspec.field(default_factory=dict)
    """Of a classifier: LABEL = the category that it means, "" for harmless; labels that say it themselves need none."""
    price: PriceSettings | None = None
    """What callers pay. Absent, requests are metered and cost nothing."""
    limits: ModelLimitSettings = ModelLimitSettings()
    """Rates and concurrency of the model itself, whoever asks."""
    cache: ModelCacheSettings = ModelCacheSettings()
    """Which answers are kept for whoever asks again, and for how long."""
    speculation: SpeculationSettings = SpeculationSettings()
    """Guessing ahead, which is quicker where it pays and off where it does not."""
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    """Settings of the engine itself; checked against the engine's own table when the file is read."""


MODEL_TABLES: dict[str, type[Section]] = {
    "price": PriceSettings,
    "limits": ModelLimitSettings,
    "cache": ModelCacheSettings,
    "speculation": SpeculationSettings,
}
"""Tables below a model's own."""

ENGINE_OPTIONS: dict[str, type[Section]] = {
    "torch": TorchOptions,
    "llama": LlamaOptions,
    "fake": FakeOptions,
}


class Settings(Section, frozen=True):
    """The whole file, after environment and flags."""

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    state: StateSettings = StateSettings()
    files: FileSettings = FileSettings()
    batches: BatchSettings = BatchSettings()
    cache: CacheSettings = CacheSettings()
    safety: SafetySettings = SafetySettings()
    reviews: ReviewSettings = ReviewSettings()
    audit: AuditSettings = AuditSettings()
    plugins: PluginSettings = PluginSettings()
    devices: DeviceSettings = DeviceSettings()
    costs: CostSettings = CostSettings()
    billing: BillingSettings = BillingSettings()
    models: dict[str, ModelSpec] = msgspec.field(default_factory=dict)

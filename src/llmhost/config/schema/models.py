"""[models.NAME] and the tables below it that are no other module's subject: a model that the server offers."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmhost.config.schema.cache import ModelCacheSettings
from llmhost.config.schema.limits import ModelLimitSettings
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.safety import GuardForm
from llmhost.config.schema.section import Positive, Section

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

"""What types cannot say: rules over several keys, and texts that must parse. Pure; says which key is wrong and why."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import CostSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.config.sources import BUILTIN, BUILTIN_GGUF, FORMS, is_gguf_source, is_hub_source
from llmhost.core.units import parse_bytes

_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_HUB_WITHOUT_SCHEME = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SCHEME = re.compile(r"([a-z][a-z0-9+.]+):", re.IGNORECASE)
_DOLLARS = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", re.ASCII)
_ROOT = re.compile(r"(/[A-Za-z0-9._~-]+)*", re.ASCII)
_DEVICE = re.compile(r"auto|cpu|cuda:\d+", re.ASCII)

Problem = tuple[str, str]
"""A dotted key such as `models.tiny.price.input`, and what is wrong with its value."""


def problems(settings: Settings) -> Iterator[Problem]:
    """Everything that is wrong, in the order of the file's tables."""
    yield from _server(settings)
    if settings.limits.burst_requests and not settings.limits.requests_per_minute:
        yield (
            "limits.burst_requests",
            "has no effect without requests_per_minute; set both or neither",
        )
    for text in settings.limits.trusted_proxies:
        if text != "unix" and not _is_network(text):
            yield (
                "limits.trusted_proxies",
                f"has {text!r}, which is no address or network such as '10.0.0.0/8', nor 'unix'",
            )
    if settings.idempotency.max_answer_bytes > settings.idempotency.max_kept_bytes:
        yield (
            "idempotency.max_answer_bytes",
            "is more than max_kept_bytes, so the largest answers could not be kept; lower it, or raise that",
        )
    yield from _price("cache.price_factor", settings.cache.price_factor, "a factor")
    yield from _price("cache.price_per_hit", settings.cache.price_per_hit, "dollars for an answer")
    yield from _price("batches.price_factor", settings.batches.price_factor, "a factor")
    yield from _webhook(settings.reviews.webhook)
    yield from _safety(settings.safety)
    guard = settings.safety.guard
    if guard is not None and guard not in _all_names(settings.models):
        yield "safety.guard", f"is {guard!r}, which is no model of [models]"
    yield from _size("devices.cpu_memory", settings.devices.cpu_memory)
    yield from _costs(settings.costs)
    for name, spec in settings.models.items():
        yield from _model(name, spec)
        if spec.cache.embedder is not None and spec.cache.embedder not in settings.models:
            yield (
                f"models.{name}.cache.embedder",
                f"is {spec.cache.embedder!r}, which is no model of [models]",
            )
    yield from _names(settings.models)


def _webhook(url: str | None) -> Iterator[Problem]:
    if url is None:
        return
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_plain = url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        is_one = is_plain = False
    if not (is_one and is_plain) or "@" in parts.netloc or parts.fragment:
        yield (
            "reviews.webhook",
            "is no URL such as 'https://example.com/reviews', without a user and a fragment",
        )


def _all_names(models: Mapping[str, ModelSpec]) -> set[str]:
    return {name for model, spec in models.items() for name in (model, *spec.aliases)}


def _server(settings: Settings) -> Iterator[Problem]:
    if not settings.server.host.strip():
        yield "server.host", "is empty; 127.0.0.1 serves this machine, 0.0.0.0 every network"
    if not settings.server.data_dir.strip():
        yield "server.data_dir", "is empty; it must be a folder"
    for origin in settings.server.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            yield (
                "server.cors_origins",
                f"has {origin!r}, which is not an origin such as 'https://chat.example' or '*'",
            )
    yield from _tls(settings)
    if settings.server.unix_socket is not None and not settings.server.unix_socket.strip():
        yield "server.unix_socket", "is empty; it must be a path"
    if not _ROOT.fullmatch(settings.server.root_path):
        yield (
            "server.root_path",
            f"is {settings.server.root_path!r}, which is no path such as '/llm', without a slash at its end",
        )


def _tls(settings: Settings) -> Iterator[Problem]:
    given = {"tls_cert": settings.server.tls_cert, "tls_key": settings.server.tls_key}
    for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if given[name] is not None and given[other] is None:
            yield f"server.{name}", f"has no effect without {other}; set both or neither"


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _safety(safety: SafetySettings) -> Iterator[Problem]:
    for word in safety.blocked_words:
        if not word.strip():
            yield "safety.blocked_words", f"has {word!r}, which is no word"
    for pattern in safety.blocked_patterns:
        try:
            matches_nothing = re.compile(pattern).search("") is not None
        except re.error as error:
            yield "safety.blocked_patterns", f"has {pattern!r}, no regular expression: {error}"
        else:
            if matches_nothing:
                yield (
                    "safety.blocked_patterns",
                    f"has {pattern!r}, which also matches no text at all and would refuse every request",
                )


def _costs(costs: CostSettings) -> Iterator[Problem]:
    for key in ("gpu_per_hour", "cpu_per_hour", "price_per_kwh", "host_per_hour", "egress_per_gib"):
        yield from _price(f"costs.{key}", getattr(costs, key), "dollars")
    if costs.power_watts and not costs.price_per_kwh.strip("0."):
        yield "costs.power_watts", "has no effect without price_per_kwh; set both or neither"


def _model(name: str, spec: ModelSpec) -> Iterator[Problem]:
    key = f"models.{name}"
    if spec.engine in ("torch", "llama"):
        yield from _source(f"{key}.source", spec.source)
        yield from _engine(f"{key}.engine", spec)
    yield from _size(f"{key}.kv_memory", spec.kv_memory)
    yield from _size(f"{key}.kv_host_memory", spec.kv_host_memory)
    if spec.max_tokens_per_batch < spec.max_batch_size:
        yield (
            f"{key}.max_tokens_per_batch",
            f"is {spec.max_tokens_per_batch}, but each of max_batch_size = {spec.max_batch_size} sequences"
            " needs a token in every step",
        )
    yield from _adapters(f"{key}.adapters", spec)
    if spec.price is not None:
        for field in spec.price.__struct_fields__:
            yield from _price(f"{key}.price.{field}", getattr(spec.price, field))
    yield from _speculation(f"{key}.speculation", spec)
    yield from _device(f"{key}.options.device", spec.options.get("device"))
    if spec.engine == "llama":
        yield from _kv_types(f"{key}.options.kv_dtype", spec)
    if spec.engine == "torch":
        yield from _weights(f"{key}.options.weights", spec)


def _adapters(key: str, spec: ModelSpec) -> Iterator[Problem]:
    if spec.adapters and spec.engine == "fake":
        yield key, "has no effect: the engine 'fake' has no weights to adapt"
    for name, source in spec.adapters.items():
        if not is_adapter_name(name):
            yield key, f"has the name {name!r}; it may have letters, digits, '.', '_', '-' and '/'"
        for _, what in _source(key, source):
            yield key, f"{name} {what}"


def is_model_name(name: str) -> bool:
    """Whether a model could have it; not whether one has."""
    return _NAME.fullmatch(name) is not None


def is_adapter_name(name: str) -> bool:
    """Callers write it after the model's name and a colon."""
    return re.fullmatch(r"[A-Za-z0-9_][\w./-]*", name, re.ASCII) is not None


def _source(key: str, source: str) -> Iterator[Problem]:
    scheme = _SCHEME.match(source)
    if not source.strip():
        yield key, f"is empty; it must be {FORMS}"
    elif source.startswith("builtin:"):
        if not BUILTIN.fullmatch(source):
            yield key, f"is {source!r}, but a built-in model is named like 'builtin:tiny'"
    elif source.startswith("hf:"):
        if not is_hub_source(source):
            yield (
                key,
                f"is {source!r}, but a hub model is named like 'hf:ORG/NAME', 'hf:ORG/NAME@REVISION', or, with one"
                " of its GGUF files, 'hf:ORG/NAME:Q4_K_M'",
            )
    elif scheme is not None:
        yield (
            key,
            f"is {source!r}; of the form NAME: only builtin: and hf: are known, all else is a path",
        )


def _engine(key: str, spec: ModelSpec) -> Iterator[Problem]:
    """The two engines that read weights read other files."""
    if spec.engine == "torch" and is_gguf_source(spec.source):
        yield key, f"is 'torch', which reads no GGUF files; for {spec.source!r} leave it away"
    is_built_in = spec.source.startswith("builtin:")
    if spec.engine == "llama" and is_built_in and not spec.source.endswith(BUILTIN_GGUF):
        known = f"builtin:tiny{BUILTIN_GGUF}"
        yield key, f"is 'llama', which reads GGUF files; {spec.source!r} is none, {known!r} is"


def _speculation(key: str, spec: ModelSpec) -> Iterator[Problem]:
    speculation = spec.speculation
    if speculation.draft is not None:
        if spec.engine == "torch":
            yield from _source(f"{key}.draft", speculation.draft)
    elif speculation.method == "draft":
        yield f"{key}.method", "is 'draft', which needs a smaller model; name it with draft"
    yield from _size(f"{key}.kv_memory", speculation.kv_memory)


def _size(key: str, text: str | None) -> Iterator[Problem]:
    if text is None:
        return
    try:
        count = parse_bytes(text)
    except ValueError as error:
        yield key, f"must be a size, but {error}"
    else:
        if count == 0:
            yield key, f"is {text!r}, which leaves no memory"


def _price(
    key: str, text: str | None, what: str = "dollars per million tokens"
) -> Iterator[Problem]:
    if text is not None and not _DOLLARS.fullmatch(text):
        yield (
            key,
            f"is {text!r}, not {what} such as '0.10' (at most nine decimal places)",
        )


def _device(key: str, device: Any) -> Iterator[Problem]:
    if device is not None and not _DEVICE.fullmatch(str(device)):
        yield key, f"is {device!r} but must be 'auto', 'cpu', or 'cuda:N' such as 'cuda:0'"


def _kv_types(key: str, spec: ModelSpec) -> Iterator[Problem]:
    kind = str(spec.options.get("kv_dtype", "auto"))
    if kind.startswith("q") and spec.options.get("flash_attention") == "off":
        yield key, f"is {kind!r}, which needs flash attention, and that is 'off'"


def _weights(key: str, spec: ModelSpec) -> Iterator[Problem]:
    kind = spec.options.get("weights", "auto")
    if kind != "auto" and spec.adapters:
        yield (
            key,
            f"is {kind!r}, and LoRA adapters need weights as they are loaded; drop one of them",
        )
    if kind != "auto" and spec.options.get("device") == "cpu":
        yield key, f"is {kind!r}, which needs a GPU, and options.device is 'cpu'"


def _names(models: dict[str, ModelSpec]) -> Iterator[Problem]:
    """No two models answer to one name."""
    form = "1 to 128 letters, digits or any of . _ : / -"
    for name in models:
        if not _NAME.fullmatch(name):
            yield f"models.{name}", f"cannot be a model's name; names are {form}"
    owners = {name: name for name in models}
    for name, spec in models.items():
        key = f"models.{name}.aliases"
        for alias in spec.aliases:
            if not _NAME.fullmatch(alias):
                yield key, f"has {alias!r}; names are {form}"
            elif alias not in owners:
                owners[alias] = name
            elif owners[alias] == name:
                twice = "which is the model's own name" if alias == name else "twice"
                yield (
                    key,
                    f"has {alias!r} {twice}" if twice == "twice" else f"has {alias!r}, {twice}",
                )
            elif alias in models:
                yield key, f"has {alias!r}, which is another model's name"
            else:
                yield key, f"has {alias!r}, which is an alias of [models.{owners[alias]}] already"


def looks_like_a_hub_name(source: str) -> bool:
    return _HUB_WITHOUT_SCHEME.fullmatch(source) is not None

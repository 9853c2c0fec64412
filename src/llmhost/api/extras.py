"""Parameters of OpenAI and of other servers that would change an answer, and that this server refuses by name.

Every field of `ChatExtras` and `CompletionExtras` is refused unless it asks for what happens anyway. What would change
nothing is no field of any body: it is skipped like every unknown name. `docs/parameters.md` lists both, and why.
A parameter that comes to be honoured moves from here to `bodies`.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import msgspec

from llmhost.api.loose import NULL, Raw
from llmhost.core.errors import UnsupportedParameter

NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
"""What asks for nothing, where `FINE` says no other."""
LONGEST_FINE = 100


class GenerationExtras(msgspec.Struct, frozen=True, kw_only=True):
    """On both routes that generate: vLLM's first, then llama-server's."""

    ec_transfer_params: Raw = NULL
    kv_transfer_params: Raw = NULL
    length_penalty: Raw = NULL
    logits_processors: Raw = NULL
    logprob_token_ids: Raw = NULL
    repetition_detection: Raw = NULL
    return_prompt_text: Raw = NULL
    return_tokens_as_token_ids: Raw = NULL
    thinking_token_budget: Raw = NULL
    truncation_side: Raw = NULL
    use_beam_search: Raw = NULL
    vllm_xargs: Raw = NULL
    watermarking: Raw = NULL
    dry_multiplier: Raw = NULL
    dynatemp_range: Raw = NULL
    grammar: Raw = NULL
    json_schema: Raw = NULL
    lora: Raw = NULL
    min_keep: Raw = NULL
    mirostat: Raw = NULL
    n_cmpl: Raw = NULL
    n_indent: Raw = NULL
    n_predict: Raw = NULL
    n_probs: Raw = NULL
    post_sampling_probs: Raw = NULL
    repeat_penalty: Raw = NULL
    response_fields: Raw = NULL
    return_tokens: Raw = NULL
    samplers: Raw = NULL
    t_max_predict_ms: Raw = NULL
    top_n_sigma: Raw = NULL
    typical_p: Raw = NULL
    xtc_probability: Raw = NULL


OF_CHATS = (
    *("audio", "modalities", "moderation", "web_search_options"),
    *("chat_template", "parse_tool_calls", "reasoning_format"),
)
"""Fields of a chat's body that are refused likewise: OpenAI's, vLLM's, llama-server's."""

FINE: Mapping[str, tuple[Any, ...]] = {
    "embd_normalize": (None, 2),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "native", "little"),
    "length_penalty": (None, 1),
    "modalities": (None, [], ["text"]),
    "n_cmpl": (None, 0, 1),
    "n_predict": (None, -1),
    "parse_tool_calls": (None, True),
    "reasoning_format": (None, "auto", "deepseek"),
    "repeat_penalty": (None, 1),
    "t_max_predict_ms": (None, 0, -1),
    "top_n_sigma": (None, -1),
    "truncation_side": (None, "left"),
    "typical_p": (None, 1),
    "web_search_options": (None,),  # an empty object asks for a search as well
}
"""What asks for what happens anyway."""

INSTEAD: Mapping[str, str] = {
    "grammar": "send 'structured_outputs' with a 'grammar'",
    "json_schema": "send 'response_format'",
    "kv_transfer_params": "leave it out: this server computes prompts itself",
    "logprob_token_ids": "send 'top_logprobs'",
    "lora": "name the adapter in 'model', as MODEL:ADAPTER",
    "n_cmpl": "send 'n'",
    "n_predict": "send 'max_tokens'",
    "n_probs": "send 'logprobs'",
    "repeat_penalty": "send 'repetition_penalty'",
    "return_tokens": "send 'return_token_ids'",
    "return_tokens_as_token_ids": "send 'return_token_ids'",
    "t_max_predict_ms": "send 'timeout_ms'",
    "truncation_side": "leave it out: the beginning of a prompt is what is cut",
}


class Refusals:
    """The fields of one kind of body that are refused."""

    def __init__(self, shape: type[msgspec.Struct], names: tuple[str, ...]) -> None:
        self._names = names
        self._of = attrgetter(*names)
        self._none = self._of(shape())

    def check(self, body: msgspec.Struct) -> None:
        """Raises UnsupportedParameter for the first that is asked for."""
        given = self._of(body)
        if given == self._none:  # as most are
            return
        for name, raw in zip(self._names, given, strict=True):
            if raw is not NULL and not _is_fine(raw, FINE.get(name, NOTHING)):
                raise unsupported(name)


def unsupported(name: str) -> UnsupportedParameter:
    """Says what to send in its place, where there is something."""
    cure = f" Please {INSTEAD[name]}." if name in INSTEAD else ""
    return UnsupportedParameter(
        f"The parameter '{name}' is not supported by this version of the server.{cure}", param=name
    )


def _is_fine(raw: Raw, fine: tuple[Any, ...]) -> bool:
    if len(bytes(raw)) > LONGEST_FINE:
        return False
    try:
        return msgspec.json.decode(raw) in fine
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False

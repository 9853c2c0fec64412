"""The families of guards by name."""

from collections.abc import Mapping

from llmhost.safety.guards.chat import ChatGuard
from llmhost.safety.guards.form import Form
from llmhost.safety.guards.llama_guard import LlamaGuard
from llmhost.safety.guards.qwen_guard import QwenGuard
from llmhost.safety.guards.yes_or_no import GraniteGuardian, ShieldGemma

FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        LlamaGuard("llama-guard-3"),
        LlamaGuard("llama-guard-4"),
        QwenGuard(),
        ShieldGemma(),
        GraniteGuardian(),
        ChatGuard(),
    )
}

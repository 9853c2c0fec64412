"""vLLM's routes that add and remove LoRA adapters, for tools that speak them. They need the admin token."""

import msgspec
from litestar import post
from litestar.types import ControllerRouterHandler

from llmhost.api.admin import Admin, NewAdapter
from llmhost.api.admin_access import guard_by
from llmhost.api.params import JSONBody


class LoadLora(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's body. What it has besides is not needed here."""

    lora_name: str
    lora_path: str
    base_model_name: str | None = None


class UnloadLora(msgspec.Struct, frozen=True, kw_only=True):
    lora_name: str


def lora_routes(admin: Admin, token: str, *, drain_s: float) -> list[ControllerRouterHandler]:
    """The routes, guarded by `token`."""
    guards = [guard_by(token, admin.tenants.access_of)]

    @post("/v1/load_lora_adapter", guards=guards, tags=["admin"], status_code=200)
    async def load_lora_adapter(data: JSONBody[LoadLora]) -> str:
        """Add an adapter to a model: `lora_name` is MODEL:NAME, or NAME beside `base_model_name`."""
        model = data.base_model_name
        name = data.lora_name if model is None else f"{model}:{data.lora_name}"
        row = await admin.load_adapter(NewAdapter(adapter=name, source=data.lora_path))
        return f"Success: LoRA adapter {row['adapter']!r} added successfully."

    @post("/v1/unload_lora_adapter", guards=guards, tags=["admin"], status_code=200)
    async def unload_lora_adapter(data: JSONBody[UnloadLora]) -> str:
        """Drop an adapter when nobody uses it."""
        row = await admin.unload_adapter(data.lora_name, drain_s=drain_s)
        return f"Success: LoRA adapter {row['adapter']!r} removed successfully."

    return [load_lora_adapter, unload_lora_adapter]

"""The models that a caller may use, as OpenAI's, vLLM's and Anthropic's clients list them."""

from datetime import UTC, datetime
from typing import Any

from litestar import Response, get
from litestar.types import ControllerRouterHandler

from llmhost.api.creating import AnyRequest
from llmhost.api.files.routes import CallerOf
from llmhost.api.params import FromPath
from llmhost.core.errors import ModelNotAllowed
from llmhost.core.ids import new_request_id
from llmhost.deploy.catalogue import Catalogue, ModelEntry, Served
from llmhost.deploy.manager import Deployments


def model_routes(
    catalogue: Catalogue, deployments: Deployments, caller_of: CallerOf
) -> list[ControllerRouterHandler]:
    def described(served: Served, name: str) -> dict[str, Any]:
        return model_object(served, name, _most_tokens(served.entry, deployments))

    @get("/v1/models", tags=["models"])
    async def list_models(request: AnyRequest) -> Response[dict[str, Any]]:
        """The models that this caller may use."""
        caller = await caller_of(request)
        data = [
            described(Served(entry), name)
            for entry in catalogue.entries()
            for name in (entry.name, *entry.spec.aliases)
            if entry.may_be_used_by(caller)
        ]
        adapters = catalogue.adapters()
        data += [described(one, one.name) for one in adapters if one.may_be_used_by(caller)]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return _stamped({"object": "list", "data": data, "has_more": False, **ends})

    @get("/v1/models/{model:path}", tags=["models"])
    async def read_model(request: AnyRequest, model: FromPath[str]) -> Response[dict[str, Any]]:
        """One model, by name or alias."""
        caller, name = await caller_of(request), model.strip("/")
        served = catalogue.locate(name)
        if not served.may_be_used_by(caller):
            raise ModelNotAllowed(name)
        return _stamped(described(served, name))

    return [list_models, read_model]


def model_object(served: Served, name: str, most_tokens: int | None) -> dict[str, Any]:
    """OpenAI's model object, with the names that vLLM's and Anthropic's clients read beside. An adapter's `parent` is
    its model. `most_tokens` are those of a prompt and its answer together, where they are known."""
    entry = served.entry
    created = datetime.fromtimestamp(entry.created_s, UTC)
    return {
        "id": name,
        "object": "model",
        "created": entry.created_s,
        "owned_by": "llmhost",
        "root": entry.name,
        "version": entry.ref.version,
        "parent": entry.name if served.adapter is not None else None,
        "type": "model",
        "display_name": name,
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_model_len": most_tokens,
        "max_input_tokens": most_tokens,
    }


def _most_tokens(entry: ModelEntry, deployments: Deployments) -> int | None:
    """Clients list models often, so no model's files are read for it."""
    held = deployments.find(entry.name).held
    return entry.spec.max_sequence_length if held is None else held.plan.max_sequence_length


def _stamped(body: dict[str, Any]) -> Response[dict[str, Any]]:
    return Response(body, headers={"x-request-id": new_request_id()})

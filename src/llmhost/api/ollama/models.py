"""What Ollama's clients ask about models: which there are, what one is, and which are loaded. And what they may not do.

Sizes are those of the weights, where they are known without fetching anything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from typing import Any

from litestar import Request, Response, delete, get, head, post
from litestar.types import ControllerRouterHandler

from llmhost.api.door import bearer
from llmhost.api.gatekeeper import Identify, vouch
from llmhost.api.ollama.bodies import OllamaPull, OllamaShow
from llmhost.api.ollama.frames import iso
from llmhost.api.ollama.wire import LATEST
from llmhost.api.params import FromPath, JSONBody
from llmhost.core.caller import Caller
from llmhost.core.errors import (
    Forbidden,
    LlmhostError,
    MissingParameter,
    ModelNotAllowed,
    NotFound,
    UnknownModel,
)
from llmhost.core.ids import new_request_id
from llmhost.core.ports import RunnerFacts
from llmhost.deploy.catalogue import Served
from llmhost.deploy.deployment import Deployment
from llmhost.deploy.manager import Deployments

VERSION = "0.14.2"
"""Of Ollama, whose API this is like: clients look whether it is new enough for them. Codex wants responses, which came
with 0.13.4, and others Anthropic's messages, which came with 0.14."""
FOR_EVER = "9999-12-31T23:59:59Z"
"""Models stay until an operator unloads them."""
PULLED = b'{"status":"success"}\n'
"""With the line's end it is a stream of one line, too."""

AnyRequest = Request[Any, Any, Any]
Table = dict[str, Any]
Ask = Callable[[AnyRequest], Awaitable[Caller]]


def model_routes(deployments: Deployments, identify: Identify) -> list[ControllerRouterHandler]:
    """Handlers of all routes that ask no model."""

    async def caller_of(request: AnyRequest) -> Caller:
        caller = await identify(bearer(request.scope), dict(request.headers))
        vouch(request.scope)
        return caller

    @get("/api/tags", tags=["ollama"])
    async def tags(request: AnyRequest) -> Response[Table]:
        """The models that this caller may use."""
        caller = await caller_of(request)
        return _stamped(
            {"models": [await _row(deployments, *one) for one in _names(deployments, caller)]}
        )

    @get("/api/ps", tags=["ollama"])
    async def ps(request: AnyRequest) -> Response[Table]:
        """The loaded ones of them."""
        caller = await caller_of(request)
        rows = [
            await _loaded(deployments, deployment)
            for deployment in deployments.all()
            if deployment.held is not None and deployment.entry.may_be_used_by(caller)
        ]
        return _stamped({"models": rows})

    @post("/api/show", tags=["ollama"], status_code=200)
    async def show(request: AnyRequest, data: JSONBody[OllamaShow]) -> Response[Table]:
        """One model."""
        caller = await caller_of(request)
        name = data.model or data.name
        if not name:
            raise MissingParameter("model")
        served = deployments.catalogue.locate(name.removesuffix(LATEST))
        if not served.may_be_used_by(caller):
            raise ModelNotAllowed(name)
        return _stamped(await _shown(deployments, served))

    @post("/api/pull", tags=["ollama"], status_code=200)
    async def pull(request: AnyRequest, data: JSONBody[OllamaPull]) -> Response[bytes]:
        """A model that is here has nothing to be fetched. Others are refused."""
        caller = await caller_of(request)
        name = data.model or data.name or ""
        try:
            is_here = deployments.catalogue.locate(name).may_be_used_by(caller)
        except UnknownModel:
            is_here = False
        if not is_here:
            raise _operators("pulled")
        headers = {"x-request-id": new_request_id()}
        return Response(PULLED, media_type="application/json", headers=headers)

    return [tags, ps, show, pull, *_looks(caller_of), *_refusals(caller_of)]


def _looks(caller_of: Ask) -> tuple[ControllerRouterHandler, ...]:
    """What clients ask to see whether anybody is there."""

    @get("/api/version", tags=["ollama"])
    async def version() -> Table:
        """Which version of Ollama's API this is like."""
        return {"version": VERSION}

    @get("/", tags=["ollama"], media_type="text/plain")
    async def running() -> str:
        """Clients look whether anybody is there."""
        return "Ollama is running"

    @head(["/", "/api/version"], include_in_schema=False)
    async def is_running() -> None:
        """The same, without reading it."""

    @head("/api/tags", include_in_schema=False)
    async def has_tags(request: AnyRequest) -> None:
        """Whether the key is good."""
        await caller_of(request)

    return version, running, is_running, has_tags


def _refusals(caller_of: Ask) -> Iterator[ControllerRouterHandler]:
    """Models are the operator's: what would change them is refused, and says who can."""

    async def refuse(request: AnyRequest, what: str) -> None:
        await caller_of(request)
        raise _operators(what)

    @post("/api/push", tags=["ollama"])
    async def push(request: AnyRequest) -> None:
        """Refused."""
        await refuse(request, "pushed")

    @post("/api/create", tags=["ollama"])
    async def create(request: AnyRequest) -> None:
        """Refused."""
        await refuse(request, "created")

    @post("/api/copy", tags=["ollama"])
    async def copy(request: AnyRequest) -> None:
        """Refused: another name is an alias in models.toml."""
        await refuse(request, "copied")

    @delete("/api/delete", tags=["ollama"], status_code=200)
    async def remove(request: AnyRequest) -> None:
        """Refused."""
        await refuse(request, "deleted")

    @post("/api/blobs/{digest:str}", tags=["ollama"])
    async def upload(request: AnyRequest, digest: FromPath[str]) -> None:
        """Refused."""
        await refuse(request, "uploaded")

    @head("/api/blobs/{digest:str}", include_in_schema=False)
    async def blob(request: AnyRequest, digest: FromPath[str]) -> None:
        """There are none."""
        await caller_of(request)
        raise NotFound("This server keeps no blobs.")

    yield from (push, create, copy, remove, upload, blob)


def _operators(what: str) -> Forbidden:
    return Forbidden(
        f"Models can't be {what} over this API: they are declared in models.toml, and `llmhost pull` fetches their"
        " files. Ask the operator of this server."
    )


def _names(deployments: Deployments, caller: Caller) -> Iterator[tuple[str, Served]]:
    """Every name that a caller may use, and what it stands for."""
    catalogue = deployments.catalogue
    for entry in catalogue.entries():
        if entry.may_be_used_by(caller):
            yield from ((name, Served(entry)) for name in (entry.name, *entry.spec.aliases))
    yield from ((one.name, one) for one in catalogue.adapters() if one.may_be_used_by(caller))


async def _facts(deployments: Deployments, deployment: Deployment) -> RunnerFacts | None:
    """None where they would have to be fetched first."""
    try:
        if deployment.held is None:
            files = await asyncio.to_thread(deployments.files, deployment)
            if files not in (None, "present"):
                return None
        return await deployments.facts(deployment)
    except LlmhostError:
        return None


async def _row(deployments: Deployments, name: str, served: Served) -> Table:
    facts = await _facts(deployments, deployments.find(served.entry.name))
    return {
        "name": _tagged(name),
        "model": _tagged(name),
        "modified_at": iso(served.entry.created_s * 1_000_000_000),
        "size": 0 if facts is None else facts.weights_bytes,
        "digest": _digest(served),
        "details": _details(served),
    }


async def _loaded(deployments: Deployments, deployment: Deployment) -> Table:
    held, served = deployment.held, Served(deployment.entry)
    assert held is not None
    size = held.plan.weights_bytes + held.plan.kv_bytes
    is_on_host = held.facts.device.startswith(("cpu", "none")) or deployment.asleep is not None
    row = await _row(deployments, served.name, served)
    del row["modified_at"]
    return {
        **row,
        "size": size,
        "size_vram": 0 if is_on_host else size,
        "context_length": held.plan.max_sequence_length,
        "expires_at": FOR_EVER,
    }


async def _shown(deployments: Deployments, served: Served) -> Table:
    deployment = deployments.find(served.entry.name)
    facts = await _facts(deployments, deployment)
    about: Table = {"general.architecture": "llmhost", "general.basename": served.name}
    capabilities: list[str] = []
    if facts is not None:
        about["llmhost.context_length"] = await deployments.longest_tokens(deployment)
        about["llmhost.vocab_size"] = facts.vocab_size
        if facts.pooled_size:
            about["llmhost.embedding_length"] = facts.pooled_size
        capabilities = await _capabilities(deployments, deployment, facts)
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(served),
        "model_info": about,
        "capabilities": capabilities,
        "modified_at": iso(served.entry.created_s * 1_000_000_000),
    }


async def _capabilities(
    deployments: Deployments, deployment: Deployment, facts: RunnerFacts
) -> list[str]:
    if facts.task != "generate":
        return ["embedding"] if facts.task == "embed" else []
    marks = (await deployments.tokenizer(deployment)).marks
    calls = marks.call_format is not None or deployment.entry.spec.tool_format != "auto"
    thinks = marks.thoughts is not None or marks.thought_ids is not None
    may = {"completion": True, "tools": calls, "thinking": thinks}
    return [name for name, can in may.items() if can]


def _tagged(name: str) -> str:
    """Ollama's names have a tag; adapters' have one already."""
    return name if ":" in name else f"{name}{LATEST}"


def _digest(served: Served) -> str:
    """Of what a name stands for, so that two names of one model have one."""
    return sha256(f"{served.entry.ref}\0{served.adapter or ''}".encode()).hexdigest()


def _details(served: Served) -> Table:
    parent = served.entry.name if served.adapter is not None else ""
    kind = "gguf" if served.entry.spec.source.endswith(".gguf") else "safetensors"
    return {
        "parent_model": parent,
        "format": kind,
        "family": served.entry.name,
        "families": [served.entry.name],
        "parameter_size": "",
        "quantization_level": "",
    }


def _stamped(body: Table) -> Response[Table]:
    return Response(body, headers={"x-request-id": new_request_id()})

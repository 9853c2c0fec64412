"""What `serve` prints: where it listens, what it offers, how much memory that takes, and a first request to try."""

import json
import shlex
import sys
import time
from typing import Any

import psutil

from llmhost import __version__
from llmhost.core.units import show_bytes
from llmhost.deploy.deployment import Deployment, State
from llmhost.host.wiring import Host


def print_start(url: str, *, as_json: bool) -> None:
    """The node listens; `as_json` is one object a line, for programs that start it."""
    if as_json:
        _say(json.dumps({"event": "listening", "url": url, "version": __version__}))
    else:
        _say(f"llmhost {__version__} on {url} (loading models; Ctrl-C stops)")


def print_ready(host: Host, url: str, *, as_json: bool) -> None:
    """The state of every model, and a request for the first one that is ready."""
    if as_json:
        _say(json.dumps({"event": "ready", "url": url, **_figures(host)}))
    else:
        _print_ready(host, url)


def _figures(host: Host) -> dict[str, Any]:
    return {
        "took_s": round(_age_s(), 3),
        "rss_bytes": psutil.Process().memory_info().rss,
        "models": [
            {
                "model": str(deployment.entry.ref),
                "aliases": list(deployment.entry.spec.aliases),
                "state": deployment.state.value,
                "reason": deployment.reason,
                "weights_bytes": sum(r.plan.weights_bytes for r in deployment.replicas),
                "kv_bytes": sum(r.plan.kv_bytes for r in deployment.replicas),
            }
            for deployment in host.deployments.all()
        ],
    }


def _age_s() -> float:
    started_s: float = psutil.Process().create_time()
    return time.time() - started_s


def _print_ready(host: Host, url: str) -> None:
    for deployment in host.deployments.all():
        _say(f"  {_line(deployment)}")
    for memory in host.devices.all():
        if memory.leased_bytes:
            _say(
                f"  {memory.device}: {show_bytes(memory.leased_bytes)} of"
                f" {show_bytes(memory.capacity_bytes)} leased to models"
            )
    rss = show_bytes(psutil.Process().memory_info().rss)
    ready = [d for d in host.deployments.all() if d.state is not State.FAILED]
    ready.sort(key=_pools)
    if not ready:
        _say("No model could be loaded; the reasons are above.")
        return
    _say(f"Ready after {_age_s():.1f} s, {rss} resident. Try:")
    _say(
        _first_request(
            url, ready[0].entry.name, needs_key=host.books.keys.has_keys, pools=_pools(ready[0])
        )
    )


def _pools(deployment: Deployment) -> bool:
    """It is loaded, and makes vectors or scores."""
    return any(replica.facts.task != "generate" for replica in deployment.replicas)


def _line(deployment: Deployment) -> str:
    entry = deployment.entry
    source = entry.spec.source if entry.spec.engine != "fake" else ""
    aliases = f", also as {', '.join(entry.spec.aliases)}" if entry.spec.aliases else ""
    state = deployment.state.value
    if deployment.state is State.FAILED:
        state = f"failed: {deployment.reason}"
    elif deployment.state is State.ABSENT:
        state = "loads on first request"
    elif deployment.replicas:
        plan = deployment.replicas[0].plan
        state = (
            f"ready ({show_bytes(plan.weights_bytes)} weights, {show_bytes(plan.kv_bytes)} KV cache,"
            f" up to {plan.max_sequence_length} tokens a sequence)"
        )
    return f"{entry.ref} [{entry.spec.engine} {source}".rstrip() + f"]{aliases}: {state}"


def _first_request(url: str, model: str, *, needs_key: bool, pools: bool = False) -> str:
    path = "embeddings" if pools else "chat/completions"
    body: dict[str, Any] = {"model": model, "input": "What is llmhost?"}
    if not pools:
        messages = [{"role": "user", "content": "What is llmhost?"}]
        body = {"model": model, "stream": True, "messages": messages}
    key = " -H 'authorization: Bearer YOUR_KEY'" if needs_key else ""
    socket = url.removeprefix("unix:")
    if socket != url:
        url = f"--unix-socket {shlex.quote(socket)} http://localhost"
    return (
        f"  curl -N {url}/v1/{path}{key} -H 'content-type: application/json' \\\n"
        f"    -d '{json.dumps(body)}'"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()

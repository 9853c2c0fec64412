"""What a gateway is measured against: a litestar handler that parses the same body and answers as many bytes, and a
loop that sends the same events. Nobody is identified, limited, screened or billed.

Serves on a port of loopback, under the settings of uvicorn that the node has, and prints that port:
`python tests/bench/bare_app.py ANSWER EVENTS STEP_S` with two files, the whole answer's JSON and one stream's bytes,
and how long `/paced` waits before each event; `/stream` sends them as fast as it can.
"""

import asyncio
import json
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from litestar import Litestar, asgi, post
from litestar.types import Receive, Scope, Send

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


def bare_app(answer: dict[str, Any], events: list[bytes], step_s: float) -> Litestar:
    @post("/v1/chat/completions", status_code=200)
    async def whole(data: dict[str, Any]) -> dict[str, Any]:
        return answer

    @asgi("/stream", copy_scope=False)
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await sent(receive, send, 0)  # streams take turns, as they do where something makes tokens

    @asgi("/paced", copy_scope=False)
    async def paced(scope: Scope, receive: Receive, send: Send) -> None:
        await sent(receive, send, step_s)

    async def sent(receive: Receive, send: Send, pause_s: float) -> None:
        while (await receive()).get("more_body"):  # type: ignore[union-attr]
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(pause_s)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return Litestar([whole, stream, paced], openapi_config=None, logging_config=None)


def main() -> None:
    answer = json.loads(Path(sys.argv[1]).read_bytes())
    events = [event + b"\n\n" for event in Path(sys.argv[2]).read_bytes().split(b"\n\n") if event]
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server = uvicorn.Server(
        uvicorn.Config(
            bare_app(answer, events, float(sys.argv[3])),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
        )
    )
    uvloop.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()

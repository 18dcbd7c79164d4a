"""Workers that compute nothing, and the proxy before two pools of them."""

import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from inferlab.lab.disaggregated_proxy import Proxy

WAIT_S = 30.0
WHERE = {"do_remote_prefill": True, "remote_block_ids": [[7]], "remote_port": 5600}
Answerer = Callable[[dict[str, Any], Request], Awaitable[Response]]


@contextmanager
def serving(*apps: FastAPI) -> Iterator[list[str]]:
    """The URLs of `apps` on free ports."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in apps]
    servers = [
        uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0))
        for app in apps
    ]
    threads = [
        threading.Thread(target=server.run, args=([listener],), daemon=True)
        for server, listener in zip(servers, listeners)
    ]
    for thread in threads:
        thread.start()
    try:
        while not all(server.started for server in servers):
            time.sleep(0.01)
        yield [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    finally:
        for server in servers:
            server.should_exit = True
        for thread in threads:
            thread.join()


@dataclass
class Worker:
    """A server that answers as `answerer` does, and remembers what it was asked."""

    answerer: Answerer
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    @property
    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/{path:path}")
        async def generate(body: dict[str, Any], http: Request) -> Response:
            self.bodies.append(body)
            self.paths.append(http.url.path)
            self.ids.append(http.headers["x-request-id"])
            return await self.answerer(body, http)

        @app.get("/health")
        async def health() -> Response:
            return Response()

        return app


async def hand_over(body: dict[str, Any], http: Request) -> Response:
    """What a prefill server with NIXL answers."""
    return JSONResponse({"choices": [{"text": "a"}], "kv_transfer_params": WHERE})


async def two_chunks(body: dict[str, Any], http: Request) -> Response:
    """What a decode server streams."""

    async def chunks() -> AsyncIterator[str]:
        yield 'data: {"choices":[{"text":"a"}]}\n\n'
        yield "data: [DONE]\n\n"

    return StreamingResponse(chunks(), media_type="text/event-stream")


@dataclass
class Pair:
    """Workers behind a proxy, and a client of it."""

    prefill: Worker
    decode: Worker
    client: httpx.Client

    def ask(self, path: str = "/v1/completions", **body: Any) -> httpx.Response:
        return self.client.post(path, json={"prompt": "once", "stream": True, **body})


@contextmanager
def pair(prefill: Answerer = hand_over, decode: Answerer = two_chunks) -> Iterator[Pair]:
    workers = Worker(prefill), Worker(decode)
    with (
        serving(*(worker.app for worker in workers)) as (first, second),
        serving(Proxy([first], [second]).app) as (proxy,),
        client_of(proxy) as client,
    ):
        yield Pair(*workers, client)


def client_of(url: str) -> httpx.Client:
    # Certificates take long to load, and there is nothing here to verify.
    return httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False, verify=False)

"""A proxy before two pools of vLLM servers, one that prefills and one that decodes.

`python -m inferlab.lab.disaggregated_proxy --prefill URL... --decode URL... --port N`

A prefill server computes the prompt and says where its KV lies; the request then goes, with that,
to a decode server, whose answer is passed on as it comes. Built in week 16; mirrors
tests/v1/kv_connector/nixl_integration/toy_proxy_server.py of vLLM. SGLang's router cannot do it:
it sends a request to both servers at once, where vLLM's decode server must come second.
"""

import argparse
import asyncio
import itertools
import json
import sys
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from inferlab.engine.server import ApiError, error_body, on_error

PATHS = ("/v1/completions", "/v1/chat/completions")
HEALTH_LIMIT_S = 5.0
Result = TypeVar("Result")


class Pool:
    """Servers with the same task, asked in turn; one that is dead still has its turn."""

    def __init__(self, task: str, urls: Sequence[str]) -> None:
        self.task = task
        self.urls = urls
        self.turns = itertools.cycle(urls)


class Answer:
    """The beginning of what one server answers; its body has not been read."""

    def __init__(self, server: str, response: httpx.Response) -> None:
        self.server = server
        self.response = response

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            ApiError: if the server ends before it is complete.
        """
        try:
            return await self.response.aread()
        except httpx.HTTPError as error:
            raise ApiError(502, self.broken_off(error)) from None

    def broken_off(self, error: httpx.HTTPError) -> str:
        return f"{self.server} broke off its answer: {reason(error)}."


def reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def error_message(body: bytes) -> str:
    """The sentence in an error as OpenAI writes it, or else all of it."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


class Relay(StreamingResponse):
    """A server's answer, passed on piece by piece.

    Invariant: however this ends, and even if it never begins, the server is told that it has.
    """

    def __init__(self, answer: Answer, request_id: str) -> None:
        self._answer = answer
        kind = answer.response.headers.get("content-type", "application/json")
        self._is_stream = kind.startswith("text/event-stream")
        headers = {"content-type": kind, "x-request-id": request_id}
        StreamingResponse.__init__(self, answer.response.aiter_bytes(), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await StreamingResponse.__call__(self, scope, receive, send)
        except httpx.HTTPError as error:
            message = self._answer.broken_off(error)
            print(message, file=sys.stderr, flush=True)
            if self._is_stream:
                event = f"data: {json.dumps(error_body(502, message))}\n\n".encode()
                await send({"type": "http.response.body", "body": event, "more_body": True})
            # Returning without the last piece breaks the connection: `vllm bench serve` looks at
            # no error event, and would count a complete stream as a success.
        finally:
            await self._answer.response.aclose()


class Proxy:
    """The routes, and one HTTP client for all servers, which lives as long as `app` runs."""

    def __init__(self, prefill: Sequence[str], decode: Sequence[str]) -> None:
        self._prefill, self._decode = Pool("prefill", prefill), Pool("decode", decode)
        self._client: httpx.AsyncClient
        self.app = app = FastAPI(lifespan=self._open_client, openapi_url=None)
        for path in PATHS:
            app.post(path)(self.generate)
        app.get("/health")(self.health)
        for error in (ApiError, RequestValidationError):
            app.add_exception_handler(error, on_error)

    @asynccontextmanager
    async def _open_client(self, _: FastAPI) -> AsyncIterator[None]:
        # The default of 100 connections would make the proxy a queue that no server sees. A
        # connection is given up before uvicorn does, after five seconds: a request sent on one
        # that is just being closed is lost.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        # A request may wait for long in a server's queue; that there is none shows at once.
        timeout = httpx.Timeout(None, connect=HEALTH_LIMIT_S)
        async with httpx.AsyncClient(trust_env=False, limits=limits, timeout=timeout) as client:
            self._client = client
            yield

    async def generate(self, body: dict[str, Any], http: Request) -> Response:
        """The decode server's answer to `body`, or an error that says which server failed."""
        refuse_several_sequences(body)
        request_id = http.headers.get("x-request-id") or str(uuid.uuid4())
        answer = await unless_gone(http, self._both_legs(http.url.path, body, request_id))
        return Relay(answer, request_id)

    async def _both_legs(self, path: str, body: dict[str, Any], request_id: str) -> Answer:
        prefilled = await self._ask(self._prefill, path, prefill_request(body), request_id)
        # NIXL's: where the blocks lie. A connector that looks the prompt up by itself sends none.
        where = json.loads(await prefilled.read()).get("kv_transfer_params")
        with_kv = {**body, "kv_transfer_params": where} if where else body
        return await self._ask(self._decode, path, with_kv, request_id)

    async def _ask(self, pool: Pool, path: str, body: dict[str, Any], request_id: str) -> Answer:
        url = next(pool.turns)
        server = f"The {pool.task} server at {url}"
        headers = {"x-request-id": request_id}
        request = self._client.build_request("POST", url + path, json=body, headers=headers)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise ApiError(502, f"{server} does not answer: {reason(error)}.") from None
        answer = Answer(server, response)
        if response.status_code != 200:
            status, refusal = response.status_code, error_message(await answer.read())
            raise ApiError(status, f"{server} answered {status}: {refusal}")
        return answer

    async def health(self) -> Response:
        """200 if every server of both pools is healthy."""
        servers = [(pool.task, url) for pool in (self._prefill, self._decode) for url in pool.urls]
        healthy = await asyncio.gather(*(self._is_healthy(url) for _, url in servers))
        dead = [f"{task} at {url}" for (task, url), alive in zip(servers, healthy) if not alive]
        if dead:
            raise ApiError(503, f"These servers are not ready: {', '.join(dead)}.")
        return Response()

    async def _is_healthy(self, url: str) -> bool:
        try:
            response = await self._client.get(f"{url}/health", timeout=HEALTH_LIMIT_S)
        except httpx.HTTPError:
            return False
        return response.status_code == 200


def prefill_request(body: dict[str, Any]) -> dict[str, Any]:
    """The first leg: one token, at once, and the KV kept for whoever comes for it."""
    kept = {k: v for k, v in body.items() if k not in ("min_tokens", "stream_options")}
    limits = {"max_tokens": 1}
    # A chat's newer name for the same; where both are given, it is the one that counts.
    if "max_completion_tokens" in body:
        limits["max_completion_tokens"] = 1
    hand_over = {"do_remote_decode": True, "do_remote_prefill": False}
    return {**kept, **limits, "stream": False, "kv_transfer_params": hand_over}


def refuse_several_sequences(body: dict[str, Any]) -> None:
    """What the prefill server hands over is the KV of one sequence."""
    prompt = body.get("prompt")
    is_list_of_prompts = isinstance(prompt, list) and any(isinstance(p, str | list) for p in prompt)
    if body.get("n") not in (None, 1) or (is_list_of_prompts and len(prompt or []) != 1):
        raise ApiError(400, "The proxy takes one prompt and n=1: send several requests instead.")


async def unless_gone(http: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; it is cancelled, and the servers stop, if the client leaves."""

    async def wait_until_gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(wait_until_gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client has left.")
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


def main() -> int:
    """Serve until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser("python -m inferlab.lab.disaggregated_proxy")
    parser.add_argument("--prefill", nargs="+", required=True, metavar="URL")
    parser.add_argument("--decode", nargs="+", required=True, metavar="URL")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    app = Proxy(options.prefill, options.decode).app
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""An OpenAI-compatible server: `python -m inferlab.engine.server --model FOLDER`.

Holds the routes, the error bodies and the command line. Built in week 1; mirrors
vllm/entrypoints/launchers/api_server and vllm/entrypoints/openai.
"""

import argparse
import asyncio
import inspect
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from jinja2 import Template
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from inferlab.engine.async_llm import AsyncLLM, Call, EngineDeadError
from inferlab.engine.llm import LLM
from inferlab.engine.openai_api import (
    Answer,
    ApiRequest,
    ChatAnswer,
    ChatRequest,
    CompletionRequest,
    load_chat_template,
)


class EventStream(StreamingResponse):
    """A call's outputs as server-sent events.

    Invariant: however the response ends, and even if it never begins, nothing of the call goes on.
    """

    def __init__(self, engine: AsyncLLM, call: Call, answer: Answer, with_usage: bool) -> None:
        self._engine, self._call, self._answer, self._with_usage = engine, call, answer, with_usage
        StreamingResponse.__init__(self, self._events(), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await StreamingResponse.__call__(self, scope, receive, send)
        finally:
            self._engine.abort(self._call)

    async def _events(self) -> AsyncIterator[str]:
        no_usage = {"usage": None} if self._with_usage else {}
        try:
            async for outputs in self._call:
                yield "".join(_event({**self._answer.chunk([o]), **no_usage}) for o in outputs)
        except EngineDeadError as error:
            yield _event(error_body(503, str(error)))
            return
        if self._with_usage:
            yield _event({**self._answer.chunk([]), "usage": self._answer.usage()})
        yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI writes it, from which its clients make their exceptions."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def first_problem(error: ValidationError | RequestValidationError) -> str:
    """What is wrong with the first field that is, in one sentence."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"] if part != "body")
    message = problem["msg"].removeprefix("Value error, ").removesuffix(".")
    return f"{place}: {message}." if place else f"{message}."


class ApiError(Exception):
    """A refusal, with its HTTP status; the arguments are the sentence and OpenAI's error code."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        Exception.__init__(self, message)
        self.status, self.code = status, code


async def on_error(_: Request, error: Exception) -> Response:
    """Any refusal or failure as an error body."""
    status, message, code = 503, str(error), None
    if isinstance(error, ApiError):
        status, code = error.status, error.code
    elif isinstance(error, RequestValidationError):
        status, message = 400, first_problem(error)
    elif isinstance(error, HTTPException):
        status, message = error.status_code, f"{error.detail}."
    return JSONResponse(error_body(status, message, code), status)


class Server:
    """The routes of one engine, whose thread lives as long as `app` runs."""

    def __init__(self, llm: LLM, template: Template, model_name: str, address: str) -> None:
        self.llm, self.model_name = llm, model_name
        self.engine: AsyncLLM
        self._template, self._address = template, address
        manager = llm.scheduler.kv_cache_manager
        self._max_model_len = min(llm.scheduler.max_model_len, manager.capacity)
        self.app = app = FastAPI(lifespan=self._run_engine, openapi_url=None)
        app.post("/v1/completions")(self.completions)
        app.post("/v1/chat/completions")(self.chat_completions)
        app.get("/v1/models")(self.models)
        app.get("/health")(self.health)
        app.get("/metrics")(self.metrics)
        for error in (ApiError, EngineDeadError, HTTPException, RequestValidationError):
            app.add_exception_handler(error, on_error)

    @asynccontextmanager
    async def _run_engine(self, _: FastAPI) -> AsyncIterator[None]:
        self.engine = AsyncLLM(self.llm, asyncio.get_running_loop())
        print(f"Serving {self.model_name} at {self._address}/v1", flush=True)
        yield
        self.engine.close()

    async def completions(self, body: CompletionRequest, http: Request) -> Response:
        return await self._answer(http, body, lambda: body.prompt, Answer)

    async def chat_completions(self, body: ChatRequest, http: Request) -> Response:
        return await self._answer(http, body, lambda: [body.prompt(self._template)], ChatAnswer)

    async def _answer(
        self,
        http: Request,
        body: ApiRequest,
        prompts: Callable[[], Sequence[str | list[int]]],
        answer_type: type[Answer],
    ) -> Response:
        """The answer to `body`; `prompts` may raise what makes it a bad request."""
        if body.model not in (None, self.model_name):
            message = f"There is no model {body.model!r} here; this server has {self.model_name!r}."
            raise ApiError(404, message, "model_not_found")
        try:
            token_ids = [await self._token_ids(prompt) for prompt in prompts()]
            requests = [
                (ids, body.sampling_params(choice, self._max_model_len - len(ids) + 1))
                for ids in token_ids
                for choice in range(body.n)
            ]
            call = await self.engine.submit(requests)
        except ValidationError as error:
            raise ApiError(400, first_problem(error)) from None
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        answer = answer_type(self.model_name, self.llm.tokenizer, sum(map(len, token_ids)), body.n)
        if body.stream:
            return EventStream(self.engine, call, answer, body.stream_options.include_usage)
        watch = asyncio.create_task(self._abort_when_gone(http, call))
        try:
            outputs = [output async for step in call for output in step]
        finally:
            watch.cancel()
        return JSONResponse(answer.body(outputs))

    async def _token_ids(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"The prompt is no Unicode text: {error}.") from None
        # On another thread: a long text takes milliseconds, in which no stream could go on.
        ids: list[int] = (await asyncio.to_thread(self.llm.tokenizer.encode, prompt)).ids
        return ids

    async def _abort_when_gone(self, http: Request, call: Call) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self.engine.abort(call)

    async def models(self) -> dict[str, Any]:
        card = {"id": self.model_name, "object": "model", "created": 0, "owned_by": "inferlab"}
        return {"object": "list", "data": [{**card, "max_model_len": self._max_model_len}]}

    async def health(self) -> Response:
        if self.engine.error is not None:
            raise self.engine.error
        return Response()

    async def metrics(self) -> Response:
        return PlainTextResponse(self.engine.metrics.render())


def listen(host: str, port: int) -> socket.socket:
    """A socket whose connections send each token at once.

    asyncio sees to that only for sockets that it made itself. Otherwise the kernel keeps a small
    message until the one before it is acknowledged, which a client may put off for 40 ms: the first
    token came late, and in one piece with the next ten.
    """
    listener = socket.create_server((host, port), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def main() -> int:
    """Serve until Ctrl-C; returns the exit status."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser("python -m inferlab.engine.server", formatter_class=formatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--served-model-name", help="if it is not to be the folder's name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port")
    # Every number, name and switch that `LLM` takes is an option, under vLLM's spelling.
    defaults = {name: p.default for name, p in inspect.signature(LLM).parameters.items()}
    defaults = {name: d for name, d in defaults.items() if isinstance(d, bool | int | str)}
    for name, default in defaults.items():
        is_switch = isinstance(default, bool)
        kind = {"action": argparse.BooleanOptionalAction} if is_switch else {"type": type(default)}
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, **kind)
    options = parser.parse_args()
    try:
        listener = listen(options.host, options.port)
    except OSError as error:
        place, reason = f"{options.host}:{options.port}", str(error.strerror).partition(" (")[0]
        print(f"Cannot listen on {place} ({reason}); choose another --port.", file=sys.stderr)
        return 1
    try:
        llm = LLM(options.model, **{name: getattr(options, name) for name in defaults})
        template = load_chat_template(options.model)
    except (OSError, ValueError) as error:
        print(f"Cannot serve {options.model}: {error}", file=sys.stderr)
        return 1
    address = f"http://{options.host}:{listener.getsockname()[1]}"
    name = options.served_model_name or options.model.resolve().name
    server = Server(llm, template, name, address)
    config = uvicorn.Config(server.app, log_level="warning", timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):  # uvicorn has shut down by then, and raises it once more
        uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())

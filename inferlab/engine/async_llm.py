"""The engine on a thread of its own, and calls that wait for its tokens on an asyncio loop.

Only the thread touches the engine: commands reach it through a queue that it empties between two
steps, and a step's tokens come back with one wake-up of the loop. Built in week 1; mirrors
vllm/v1/engine/async_llm.py:AsyncLLM, where the engine is a process of its own.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

from inferlab.engine.llm import LLM
from inferlab.engine.metrics import Metrics
from inferlab.engine.request import FINISH_REASONS, Request, SamplingParams, TokenLogprobs

Prompt = tuple[Sequence[int], SamplingParams]


class EngineDeadError(RuntimeError):
    """A step of the engine failed; it serves nobody any more."""


class Output(NamedTuple):
    """What was added to one request of a call."""

    choice: int  # which request of its call
    is_first: bool  # of the outputs of its request
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]  # one for each token, if they were asked for
    num_cached_tokens: int  # prompt tokens from the prefix cache, told with the first tokens
    finish_reason: str | None


class Call:
    """The requests of one API call; iterating gives, step by step, what is new in any of them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[list[Output] | Exception] = asyncio.Queue()
        self.requests: list[Request] = []

    async def __aiter__(self) -> AsyncIterator[list[Output]]:
        num_unfinished = len(self.requests)
        while num_unfinished:
            outputs = await self.receive()
            num_unfinished -= sum(output.finish_reason is not None for output in outputs)
            yield outputs

    async def receive(self) -> list[Output]:
        message = await self.queue.get()
        if isinstance(message, Exception):
            raise message
        return message


@dataclass
class Stream:
    """An unfinished request, and how many of its tokens its call has been given."""

    call: Call
    choice: int
    request: Request
    num_sent: int = 0

    def read(self) -> Output | None:
        """What is new, or None."""
        request, first = self.request, self.num_sent
        tokens, finished = request.output_token_ids[first:], request.status.is_finished
        if not tokens and not finished:
            return None
        self.num_sent += len(tokens)
        assert request.detokenizer is not None
        return Output(
            choice=self.choice,
            is_first=first == 0,
            text=request.detokenizer.read(finished),
            token_ids=tokens,
            logprobs=request.logprobs[first : self.num_sent],
            num_cached_tokens=0 if first else request.num_cached_tokens,
            finish_reason=FINISH_REASONS[request.status] if finished else None,
        )


class AsyncLLM:
    """Steps an `LLM` for the calls of an asyncio loop, until `close`.

    Invariants:
      - an engine without work sleeps until a command comes; it does not poll;
      - a refused call leaves none of its requests behind and touches no other call;
      - a step that fails ends every call, and each later one, with `EngineDeadError`.
    """

    def __init__(self, llm: LLM, loop: asyncio.AbstractEventLoop) -> None:
        self.llm, self.metrics = llm, Metrics(llm)
        self.error: EngineDeadError | None = None
        self._loop = loop
        self._streams: dict[str, Stream] = {}
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, prompts: Sequence[Prompt]) -> Call:
        """Queue all the prompts of a call, or none.

        Raises:
            ValueError: if the engine refuses one of them.
            EngineDeadError: if the engine has failed.
        """
        call = Call()
        self._commands.put(lambda: self._add(call, prompts))
        try:
            await call.receive()
        except asyncio.CancelledError:
            self.abort(call)
            raise
        return call

    def abort(self, call: Call) -> None:
        """End what is unfinished of `call` before the next step; its blocks are free then."""
        self._commands.put(lambda: self._abort(call))

    def close(self) -> None:
        """Stop the engine's thread after its current step."""
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            while self._is_idle() or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                command()
            try:
                self.llm.step()
                self._send_outputs()
            except Exception as error:
                self.error = EngineDeadError(f"The engine failed ({error!r}); restart the server.")
                for call in {stream.call for stream in self._streams.values()}:
                    self._send(call, self.error)

    def _is_idle(self) -> bool:
        return self.error is not None or not self.llm.scheduler.has_unfinished_requests()

    def _add(self, call: Call, prompts: Sequence[Prompt]) -> None:
        try:
            if self.error is not None:
                raise self.error
            for choice, (token_ids, params) in enumerate(prompts):
                request = self.llm.add_request(token_ids, params)
                self._streams[request.request_id] = Stream(call, choice, request)
                call.requests.append(request)
            self._send(call, [])
        except Exception as error:
            self._send(call, error)
            self._abort(call)

    def _abort(self, call: Call) -> None:
        for request in call.requests:
            if not request.status.is_finished and self.error is None:
                self.llm.abort(request.request_id)
        self._send_outputs()

    def _send(self, call: Call, message: list[Output] | Exception) -> None:
        self._loop.call_soon_threadsafe(call.queue.put_nowait, message)

    def _send_outputs(self) -> None:
        """Give each call what is new in its requests."""
        outputs = defaultdict(list)
        for request_id, stream in list(self._streams.items()):
            output = stream.read()
            if output is not None:
                outputs[stream.call].append(output)
                self.metrics.observe_tokens(stream.request, len(output.token_ids))
                if output.finish_reason is not None:
                    del self._streams[request_id]
        if outputs:  # waking the loop is a system call: once for all
            self._loop.call_soon_threadsafe(_deliver, outputs)


def _deliver(outputs: Mapping[Call, list[Output]]) -> None:
    for call, new in outputs.items():
        call.queue.put_nowait(new)

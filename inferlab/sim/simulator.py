"""The engine's own scheduler on a virtual clock: who is served when, without computing a token.

What a step holds is decided by the scheduler that it is given, ours or a reader's; how long it takes
by a function of what it holds. Nothing else of the engine is needed.
"""

import heapq
from array import array
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import numpy as np

from inferlab.analysis.operators import StepShape
from inferlab.analysis.serving_metrics import Answer
from inferlab.engine.policy import fcfs
from inferlab.engine.request import Request, SamplingParams
from inferlab.engine.scheduler import Scheduler, SchedulerOutput
from inferlab.sim.clients import Clients, Prompt
from inferlab.sim.drafts import Drafts

OUTPUT_TOKEN = 1

# Seconds that a step takes; an array of them for a shape of arrays.
StepTime = Callable[[StepShape], Any]


class Served(NamedTuple):
    """One request and what became of it."""

    prompt: Prompt
    answer: Answer
    cached_tokens: int
    num_preemptions: int


class Step(NamedTuple):
    """One step, or `repeats` in a row that differ in nothing but the length of the contexts."""

    start_s: float
    end_s: float
    repeats: int
    prefill_tokens: int
    decode_tokens: int
    num_waiting: int
    num_free_blocks: int


class _Open(NamedTuple):
    """A request that is being served."""

    request: Request
    prompt: Prompt
    sent_s: float
    token_s: "array[float]"


class Simulation:
    """Serves the requests of `clients` with `scheduler`; `served` and `steps` say how.

    Invariant: who is served when is what the scheduler decides, step by step. Steps in which it
    could decide nothing else are taken together (`_leap`), which spares only time.

    Args:
        scheduler: made for this simulation alone.
        step_time: what a step of a given shape takes, in seconds.
        clients: who sends what when.
        frontend_s: what HTTP and tokenizer take before the scheduler hears of a request.
        drafts: how many tokens are drafted and how many accepted, with speculative decoding.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        step_time: StepTime,
        clients: Clients,
        *,
        frontend_s: float = 0.0,
        drafts: Drafts | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.step_time = step_time
        self.clients = clients
        self.frontend_s = frontend_s
        self.drafts = drafts
        self.now_s = 0.0
        self.served: list[Served] = []
        self.steps: list[Step] = []
        self._open: dict[str, _Open] = {}
        self._on_their_way: list[tuple[float, int]] = []  # arrival and number of what was sent

    def run(self) -> "Simulation":
        """Serve every request.

        Raises:
            ValueError: if one could never be served, as `Scheduler.add_request` says.
        """
        while self._has_work():
            if self._step():
                self._leap()
        return self

    @property
    def next_arrival_s(self) -> float:
        """When the scheduler hears of another request, at the earliest."""
        arrival_s = self._on_their_way[0][0] if self._on_their_way else inf
        return min(arrival_s, self.clients.next_s + self.frontend_s)

    def _has_work(self) -> bool:
        """Hand over what has arrived, or wait for it; False once everything is served."""
        while True:
            while self.clients.next_s <= self.now_s < inf:
                self._send(*self.clients.send())
            while self._on_their_way and self._on_their_way[0][0] <= self.now_s:
                _, number = heapq.heappop(self._on_their_way)
                self.scheduler.add_request(self._open[str(number)].request)
            if self.scheduler.has_unfinished_requests() or self.now_s == inf:
                return self.now_s < inf
            self.now_s = self.next_arrival_s

    def _send(self, prompt: Prompt, sent_s: float) -> None:
        number = len(self._open) + len(self.served)
        # A request's own tokens are all the same odd number, a prefix's the same even one.
        own, shared = 2 * number + 1, 2 * (prompt.prefix or 0)
        tokens = [shared] * prompt.prefix_tokens
        tokens += [own] * (prompt.prompt_tokens - len(tokens))
        params = SamplingParams(max_tokens=prompt.output_tokens, ignore_eos=True)
        request = Request(
            str(number), tokens, params, arrival_time=sent_s, priority=prompt.priority
        )
        self._open[request.request_id] = _Open(request, prompt, sent_s, array("d"))
        arrival_s = sent_s + self.frontend_s + prompt.loading_s
        heapq.heappush(self._on_their_way, (arrival_s, number))
        if prompt.received_tokens:
            self.scheduler.kv_cache_manager.expect(request, prompt.received_tokens)

    def _step(self) -> bool:
        """Take one step; True if the next is as this one was, but for the length of contexts."""
        scheduler = self.scheduler
        output = scheduler.schedule()
        shape = shape_of(output)
        self._pass(np.atleast_1d(self.step_time(shape)), shape)
        sampled = {}
        for entry in output.scheduled:
            if entry.samples:
                accepted = self.drafts.accepted(entry.num_draft_tokens) if self.drafts else 0
                sampled[entry.request.request_id] = [OUTPUT_TOKEN] * (accepted + 1)
        finished = scheduler.update_from_output(output, sampled)
        for request_id, tokens in sampled.items():
            opened = self._open[request_id]
            kept = opened.request.num_output_tokens - len(opened.token_s)
            opened.token_s.extend([self.now_s] * kept)
        for request in finished:
            self._finish(request)
        if self.drafts:
            self.drafts.propose(entry.request for entry in output.scheduled)
        all_decode = len(scheduler.running) == len(output.scheduled) == shape.decode_tokens
        return all_decode and not output.preempted and self._admits_nobody()

    def _admits_nobody(self) -> bool:
        """Whether who waits now, or comes later, goes on waiting until a running request ends."""
        scheduler = self.scheduler
        is_full = len(scheduler.running) >= scheduler.max_num_seqs
        # Whoever is first in the queue did not find room, and what is free only becomes less.
        is_blocked = bool(scheduler.waiting) and scheduler.policy is fcfs
        return is_full or is_blocked or not scheduler.waiting

    def _leap(self) -> None:
        """Take all steps at once in which each running request computes one more token.

        They end before a request does, before the cache is full, and, if it could be admitted, with
        the step during which the next request arrives.
        """
        if self.drafts or not (running := self.scheduler.running):
            return
        count = min(r.sampling_params.max_tokens - r.num_output_tokens for r in running) - 1
        while count > 0 and not self._fits(count):
            count //= 2
        context = sum(request.num_tokens for request in running)
        durations = np.atleast_1d(
            self.step_time(StepShape.decode(len(running), context + len(running) * np.arange(count)))
        )
        if not self.scheduler.waiting and len(running) < self.scheduler.max_num_seqs:
            starts = self.now_s + np.cumsum(durations) - durations
            count = int(np.searchsorted(starts, self.next_arrival_s))
        if count < 1:
            return
        ends = self._pass(durations[:count], StepShape.decode(len(running), context))
        for request in running:
            request.output_token_ids.extend([OUTPUT_TOKEN] * count)
            self.scheduler.kv_cache_manager.allocate_slots(request, count)
            request.num_computed_tokens += count
            self._open[request.request_id].token_s.extend(ends)

    def _fits(self, num_tokens: int) -> bool:
        """Whether each running request finds room for so many tokens more."""
        manager = self.scheduler.kv_cache_manager
        size = manager.block_size
        needed = sum(
            -(-(request.num_computed_tokens + num_tokens) // size)
            - -(-request.num_computed_tokens // size)
            for request in self.scheduler.running
        )
        return needed <= manager.num_free_blocks

    def _pass(self, durations_s: np.ndarray, shape: StepShape) -> "array[float]":
        """Let the time of one or several steps pass; the times at which each of them ends."""
        start_s = self.now_s
        ends = array("d", (start_s + np.cumsum(durations_s)).tolist())
        self.now_s = ends[-1]
        self.steps.append(
            Step(
                start_s,
                self.now_s,
                len(ends),
                shape.prefill_tokens,
                shape.decode_tokens,
                len(self.scheduler.waiting),
                self.scheduler.kv_cache_manager.num_free_blocks,
            )
        )
        return ends

    def _finish(self, request: Request) -> None:
        _, prompt, sent_s, token_s = self._open.pop(request.request_id)
        answer = Answer(sent_s, token_s, prompt.prompt_tokens)
        self.served.append(
            Served(prompt, answer, request.num_cached_tokens, request.num_preemptions)
        )
        self.clients.take_answer(self.now_s)


def shape_of(output: SchedulerOutput) -> StepShape:
    """What a step holds: a request that computes more than its newest token counts as a prefill."""
    return StepShape.of(
        (
            tokens,
            request.num_computed_tokens + tokens,
            request.num_computed_tokens < request.num_tokens - 1,
        )
        for request, tokens in output.scheduled
    )

"""The engine's own scheduler on a virtual clock: who is served when, without computing a token.

What a step holds is decided by the scheduler that it is given, ours or a reader's; how long it
takes by a function of what it holds. Nothing else of the engine is needed.
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
from inferlab.engine.scheduler import ScheduledRequest, Scheduler, SchedulerOutput
from inferlab.sim.clients import Clients, Prompt
from inferlab.sim.drafts import Drafts
from inferlab.sim.kv_tiers import TieredKVCacheManager
from inferlab.sim.outcome import Served, Step
from inferlab.sim.received_kv import ReceivingKVCacheManager

OUTPUT_TOKEN = 1

# Seconds that a step takes; an array of them for a shape of arrays.
StepTime = Callable[[StepShape], Any]


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
        self._until_s = inf
        self.served: list[Served] = []
        self.steps: list[Step] = []
        self._open: dict[str, _Open] = {}
        self._on_their_way: list[tuple[float, int]] = []  # arrival and number of what was sent
        self._is_refused = False  # whether who is first in the queue waits for a request to end

    def run(self, until_s: float = inf) -> "Simulation":
        """Serve every request, or until a time: the step in which that falls is finished.

        Raises:
            ValueError: if one could never be served, as `Scheduler.add_request` says.
        """
        self._until_s = until_s
        while self._has_work():
            if not (self._is_settled() and self._leap()):
                self._step()
        return self

    @property
    def next_arrival_s(self) -> float:
        """When the scheduler hears of another request, at the earliest; `run` may end before."""
        arrival_s = self._on_their_way[0][0] if self._on_their_way else inf
        return min(arrival_s, self.clients.next_s + self.frontend_s, self._until_s)

    def _has_work(self) -> bool:
        """Hand over what has arrived, or wait for it; False once there is no more to do."""
        while self.now_s < self._until_s:
            while self.clients.next_s <= self.now_s:
                self._send(*self.clients.send())
            while self._on_their_way and self._on_their_way[0][0] <= self.now_s:
                _, number = heapq.heappop(self._on_their_way)
                self.scheduler.add_request(self._open[str(number)].request)
            if self.scheduler.has_unfinished_requests():
                return True
            if self.next_arrival_s == inf:
                return False
            self.now_s = self.next_arrival_s
        return False

    def _send(self, prompt: Prompt, sent_s: float) -> None:
        number = len(self._open) + len(self.served)
        params = SamplingParams(max_tokens=prompt.output_tokens, ignore_eos=True)
        request = Request(
            str(number),
            tokens_of(prompt, number),
            params,
            arrival_time=sent_s,
            priority=prompt.priority,
        )
        self._open[request.request_id] = _Open(request, prompt, sent_s, array("d"))
        arrival_s = sent_s + self.frontend_s + prompt.loading_s
        heapq.heappush(self._on_their_way, (arrival_s, number))
        manager = self.scheduler.kv_cache_manager
        if isinstance(manager, ReceivingKVCacheManager):
            manager.expect(request, prompt.received_tokens)

    def _step(self) -> None:
        """Take one step as the scheduler decides."""
        scheduler = self.scheduler
        output = scheduler.schedule()
        shape = shape_of(output)
        seconds = self.step_time(shape)
        if isinstance(scheduler.kv_cache_manager, TieredKVCacheManager):
            seconds = seconds + scheduler.kv_cache_manager.take_loading_s()
        self._pass(np.atleast_1d(seconds), shape)
        sampled = {}
        for entry in output.scheduled:
            if entry.samples:
                accepted = self.drafts.accepted(entry.num_draft_tokens) if self.drafts else 0
                sampled[entry.request.request_id] = [OUTPUT_TOKEN] * (accepted + 1)
        finished = scheduler.update_from_output(output, sampled)
        for request_id in sampled:
            opened = self._open[request_id]
            new = opened.request.num_output_tokens - len(opened.token_s)
            opened.token_s.extend([self.now_s] * new)
        if self.drafts:
            self.drafts.propose(entry.request for entry in output.scheduled)
        # The first in the queue found no room, with tokens of the step to spare.
        was_tried = not output.preempted and shape.tokens < scheduler.max_num_batched_tokens
        # A radix tree holds a prompt only after the step that computes it.
        was_tried = was_tried and not shape.prefill_tokens
        self._is_refused = was_tried and scheduler.policy is fcfs and bool(scheduler.waiting)
        self._finish(finished)

    def _is_settled(self) -> bool:
        """Whether the next step can only be one token for each running request."""
        scheduler = self.scheduler
        if self.drafts or len(scheduler.running) > scheduler.max_num_batched_tokens:
            return False
        is_full = len(scheduler.running) >= scheduler.max_num_seqs
        # What is free only becomes less, until a request ends.
        nobody_is_admitted = not scheduler.waiting or is_full or self._is_refused
        return nobody_is_admitted and all(
            request.num_computed_tokens == request.num_tokens - 1 for request in scheduler.running
        )

    def _leap(self) -> bool:
        """Take all steps at once that are settled; False if there is no room for one.

        The last of them is the one in which a request ends, or in which one arrives that could be
        admitted after it.
        """
        running, manager = self.scheduler.running, self.scheduler.kv_cache_manager
        count = min(_tokens_left(request) for request in running)
        while not self._fits(count):
            if count == 1:
                return False
            count //= 2
        size, context = len(running), sum(request.num_tokens for request in running)
        durations = np.broadcast_to(
            self.step_time(StepShape.decode(size, context + size * np.arange(count))), count
        )
        if not self.scheduler.waiting and size < self.scheduler.max_num_seqs:
            starts = self.now_s + np.cumsum(durations) - durations
            durations = durations[: int(np.searchsorted(starts, self.next_arrival_s))]
        ends = self._pass(durations, StepShape.decode(size, context))
        ending = []
        for request in running:
            self._open[request.request_id].token_s.extend(ends)
            # The last token of a request is the scheduler's to append, which ends it.
            if is_ending := _tokens_left(request) == len(ends):
                ending.append(ScheduledRequest(request, 1))
            request.output_token_ids.extend([OUTPUT_TOKEN] * (len(ends) - is_ending))
            if _touches_a_block(request.num_computed_tokens, len(ends), manager.block_size):
                manager.allocate_slots(request, len(ends))
            request.num_computed_tokens += len(ends) - is_ending
        sampled = {request.request_id: [OUTPUT_TOKEN] for request, _ in ending}
        self._finish(self.scheduler.update_from_output(SchedulerOutput(ending), sampled))
        return True

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

    def _finish(self, finished: list[Request]) -> None:
        for request in finished:
            _, prompt, sent_s, token_s = self._open.pop(request.request_id)
            answer = Answer(sent_s, token_s, prompt.prompt_tokens)
            self.served.append(
                Served(prompt, answer, request.num_cached_tokens, request.num_preemptions)
            )
            self.clients.take_answer(self.now_s)
            self._is_refused = False


def tokens_of(prompt: Prompt, number: int) -> list[int]:
    """Token ids of the prompt that is sent as the request of that number, from 0 on.

    A request's own tokens are all the same odd number, a prefix's the same even one.
    """
    shared = [2 * (prompt.prefix or 0)] * prompt.prefix_tokens
    return shared + [2 * number + 1] * (prompt.prompt_tokens - len(shared))


def _touches_a_block(start: int, num_tokens: int, block_size: int) -> bool:
    """Whether so many tokens more begin a block or fill one."""
    return start % block_size == 0 or start % block_size + num_tokens >= block_size


def _tokens_left(request: Request) -> int:
    return request.sampling_params.max_tokens - request.num_output_tokens


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

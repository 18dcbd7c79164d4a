"""Which tokens of which requests each step computes."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from inferlab.engine.kv_cache import KVCacheManager
from inferlab.engine.request import Request, RequestStatus


class ScheduledRequest(NamedTuple):
    """A request's share of a step."""

    request: Request
    num_tokens: int  # tokens computed in this step, from position request.num_computed_tokens on

    @property
    def samples(self) -> bool:
        """Whether the step reaches the request's last token, whose logits give the next one."""
        return self.request.num_computed_tokens + self.num_tokens == self.request.num_tokens


@dataclass
class SchedulerOutput:
    """The composition of one step."""

    scheduled: list[ScheduledRequest] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    @property
    def num_scheduled_tokens(self) -> dict[str, int]:
        return {entry.request.request_id: entry.num_tokens for entry in self.scheduled}

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(entry.num_tokens for entry in self.scheduled)


class Scheduler:
    """One token budget per step, spent on running requests first and on waiting ones after.

    Chunked prefill, continuous batching and prefix caching are not features on top of this rule:
    they are what it does with `num_tokens - num_computed_tokens` of each request.

    Invariants:
      - an unfinished request is in exactly one of `waiting` and `running`;
      - a step schedules at most `max_num_batched_tokens` tokens of at most `max_num_seqs` requests;
      - a request samples exactly when its computed tokens catch up with its tokens;
      - a preempted request gives back all its blocks, keeps its output, and waits at the front;
      - nothing is admitted in a step that preempted: the blocks freed belong to the requests
        already running.

    Source: vllm/v1/core/sched/scheduler.py:Scheduler. One difference on purpose: vLLM advances
    `num_computed_tokens` when it schedules, this class when the step's result comes back.
    """

    def __init__(
        self,
        kv_cache_manager: KVCacheManager,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        long_prefill_token_threshold: int = 0,
        max_model_len: int | None = None,
    ) -> None:
        self.kv_cache_manager = kv_cache_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.long_prefill_token_threshold = long_prefill_token_threshold
        self.max_model_len = max_model_len or kv_cache_manager.capacity
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: if the request could never finish, even alone. Left in the queue it would
                be preempted and admitted again without end.
        """
        limit = min(self.max_model_len, self.kv_cache_manager.capacity)
        if request.max_num_tokens > limit:
            raise ValueError(
                f"Request {request.request_id!r} may need the K and V of {request.max_num_tokens} "
                f"tokens (prompt {request.num_prompt_tokens}, "
                f"max_tokens {request.sampling_params.max_tokens}), and the cache can hold "
                f"{limit} for one request; shorten it or give the cache more blocks."
            )
        self.waiting.append(request)

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting or self.running)

    def schedule(self) -> SchedulerOutput:
        """Choose the tokens of the next step and allocate their slots."""
        output = SchedulerOutput()
        budget = self._schedule_running(output, self.max_num_batched_tokens)
        if not output.preempted:
            self._admit_waiting(output, budget)
        return output

    def _schedule_running(self, output: SchedulerOutput, budget: int) -> int:
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            num_tokens = self._num_new_tokens(request, budget)
            if not self._allocate_or_preempt(request, num_tokens, output):
                break  # the request preempted itself: it was the last one running
            output.scheduled.append(ScheduledRequest(request, num_tokens))
            budget -= num_tokens
            index += 1
        return budget

    def _allocate_or_preempt(
        self, request: Request, num_tokens: int, output: SchedulerOutput
    ) -> bool:
        """Get slots for a running request, preempting from the back of the queue until they fit."""
        while self.kv_cache_manager.allocate_slots(request, num_tokens) is None:
            victim = self.running.pop()
            self._preempt(victim)
            output.preempted.append(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.kv_cache_manager.free(request)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.waiting.appendleft(request)

    def _admit_waiting(self, output: SchedulerOutput, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            hit = self.kv_cache_manager.get_computed_blocks(request)
            num_tokens = self._num_new_tokens(request, budget, hit.num_tokens)
            blocks = self.kv_cache_manager.allocate_slots(
                request, num_tokens, hit.blocks, full_sequence_must_fit=True
            )
            if blocks is None:
                break  # first come, first served: nobody overtakes the head of the queue
            self.waiting.popleft()
            self.running.append(request)
            request.status = RequestStatus.RUNNING
            request.num_computed_tokens = request.num_cached_tokens = hit.num_tokens
            output.scheduled.append(ScheduledRequest(request, num_tokens))
            budget -= num_tokens

    def _num_new_tokens(self, request: Request, budget: int, num_cached_tokens: int = 0) -> int:
        remaining = request.num_tokens - request.num_computed_tokens - num_cached_tokens
        if self.long_prefill_token_threshold:
            remaining = min(remaining, self.long_prefill_token_threshold)
        return min(remaining, budget)

    def update_from_output(
        self, output: SchedulerOutput, sampled: Mapping[str, int]
    ) -> list[Request]:
        """Advance the counters by what the step computed, and append the sampled tokens.

        Args:
            sampled: token id by request id, for exactly the entries of `output` that sample.

        Returns:
            The requests that finished; their blocks are free again.
        """
        finished = []
        for entry in output.scheduled:
            request, samples = entry.request, entry.samples
            request.num_computed_tokens += entry.num_tokens
            if not samples:
                continue
            request.append_output_token(sampled[request.request_id])
            if request.status.is_finished:
                finished.append(request)
        for request in finished:
            self.running.remove(request)
            self.kv_cache_manager.free(request)
        return finished

    def abort(self, request: Request) -> None:
        """Take an unfinished request out, wherever it is, and free what it holds."""
        if request.status.is_finished:
            return
        queue = self.running if request.status is RequestStatus.RUNNING else self.waiting
        queue.remove(request)
        self.kv_cache_manager.free(request)
        request.status = RequestStatus.FINISHED_ABORTED

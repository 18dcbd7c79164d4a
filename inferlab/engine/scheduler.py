"""Which tokens of which requests each step computes."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from inferlab.engine.kv_cache import CacheManager
from inferlab.engine.policy import Policy, fcfs, priority, urgency
from inferlab.engine.request import Request, RequestStatus


class ScheduledRequest(NamedTuple):
    """A request's share of a step."""

    request: Request
    num_tokens: int  # tokens computed in this step, from position request.num_computed_tokens on

    @property
    def samples(self) -> bool:
        """Whether the step reaches the request's last token, whose logits give the next one."""
        return self.request.num_computed_tokens + self.num_tokens >= self.request.num_tokens

    @property
    def num_draft_tokens(self) -> int:
        """How many of the tokens are drafts to verify: they lie beyond the sequence."""
        reached = self.request.num_computed_tokens + self.num_tokens
        return max(0, reached - self.request.num_tokens)


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
      - a preempted request gives back all its blocks, keeps its output, and waits at the front,
        or where `policy` puts it;
      - nothing is admitted in a step that preempted: the blocks freed belong to the requests
        already running.

    Source: vllm/v1/core/sched/scheduler.py:Scheduler. One difference on purpose: vLLM advances
    `num_computed_tokens` when it schedules, this class when the step's result comes back.
    """

    def __init__(
        self,
        kv_cache_manager: CacheManager,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        long_prefill_token_threshold: int = 0,
        max_model_len: int | None = None,
        num_lookahead_tokens: int = 0,
        policy: Policy = fcfs,
    ) -> None:
        self.kv_cache_manager = kv_cache_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.long_prefill_token_threshold = long_prefill_token_threshold
        self.max_model_len = max_model_len or kv_cache_manager.capacity
        self.num_lookahead_tokens = num_lookahead_tokens
        self.policy = policy
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
        # What is scheduled are the first ones running, also when a victim has left both lists.
        while len(output.scheduled) < len(self.running) and budget > 0:
            request = self.running[len(output.scheduled)]
            num_tokens = self._num_new_tokens(request, budget)
            num_slots = num_tokens + self._num_lookahead(request, num_tokens)
            budget += self._make_room(request, num_slots, output)
            if request.status is RequestStatus.PREEMPTED:
                break  # it was the first to go, and those after it wait for room as well
            output.scheduled.append(ScheduledRequest(request, num_tokens))
            budget -= num_tokens
        return budget

    def _make_room(self, request: Request, num_slots: int, output: SchedulerOutput) -> int:
        """Get slots for a running request, preempting until they fit or it is preempted itself.

        The victim is the last one running or, under `priority`, the least urgent, which may have
        been scheduled already. Returns the tokens of the step that such victims give back.
        """
        num_returned = 0
        while self.kv_cache_manager.allocate_slots(request, num_slots) is None:
            place = len(self.running) - 1
            if self.policy is priority:
                place = max(range(len(self.running)), key=lambda i: urgency(self.running[i]))
            if place < len(output.scheduled):
                num_returned += output.scheduled.pop(place).num_tokens
            victim = self.running.pop(place)
            self._preempt(victim)
            output.preempted.append(victim)
            if victim is request:
                break
        return num_returned

    def _preempt(self, request: Request) -> None:
        self.kv_cache_manager.free(request)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = 0
        request.draft_token_ids = []
        request.num_preemptions += 1
        self.waiting.appendleft(request)

    def _admit_waiting(self, output: SchedulerOutput, budget: int) -> None:
        if self.policy is not fcfs and len(self.running) < self.max_num_seqs:
            self.waiting = deque(self.policy(self.waiting, self.kv_cache_manager))
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            hit = self.kv_cache_manager.get_computed_blocks(request)
            num_tokens = self._num_new_tokens(request, budget, hit.num_tokens)
            num_slots = num_tokens + self._num_lookahead(request, num_tokens, hit.num_tokens)
            blocks = self.kv_cache_manager.allocate_slots(
                request, num_slots, hit.blocks, full_sequence_must_fit=True
            )
            if blocks is None:
                break  # nobody overtakes the head of the queue, or large requests would starve
            self.waiting.popleft()
            self.running.append(request)
            request.status = RequestStatus.RUNNING
            request.num_computed_tokens = request.num_cached_tokens = hit.num_tokens
            output.scheduled.append(ScheduledRequest(request, num_tokens))
            budget -= num_tokens

    def _num_new_tokens(self, request: Request, budget: int, num_cached_tokens: int = 0) -> int:
        remaining = request.num_tokens - request.num_computed_tokens - num_cached_tokens
        if request.draft_token_ids:
            remaining += min(len(request.draft_token_ids), request.max_draft_tokens)
        if self.long_prefill_token_threshold:
            remaining = min(remaining, self.long_prefill_token_threshold)
        return min(remaining, budget)

    def _num_lookahead(self, request: Request, num_tokens: int, num_cached_tokens: int = 0) -> int:
        """Slots that a proposer writes to behind the step's tokens, if the step samples."""
        if not self.num_lookahead_tokens:
            return 0
        end = request.num_computed_tokens + num_cached_tokens + num_tokens
        samples = end >= request.num_tokens
        return min(self.num_lookahead_tokens, request.max_num_tokens - end) if samples else 0

    def update_from_output(
        self, output: SchedulerOutput, sampled: Mapping[str, Sequence[int]]
    ) -> list[Request]:
        """Advance the counters by what the step computed, and append the sampled tokens.

        Of the drafts only those accepted count as computed: that is the rollback. A token that
        stops the request ends it there, also in the middle of an accepted run.

        Args:
            sampled: the new tokens by request id, for exactly the entries of `output` that sample:
                one, and before it the drafts that were accepted.

        Returns:
            The requests that finished; their blocks are free again.
        """
        finished = []
        for entry in output.scheduled:
            request, num_tokens = entry
            num_drafts = request.num_computed_tokens + num_tokens - request.num_tokens
            if num_drafts < 0:  # the sequence is not computed to its end, so it does not sample
                request.num_computed_tokens += num_tokens
                continue
            for token_id in sampled[request.request_id]:
                request.append_output_token(token_id)
                if request.status.is_finished:
                    finished.append(request)
                    del request.logprobs[request.num_output_tokens :]  # of tokens behind the end
                    break
            if num_drafts or self.num_lookahead_tokens:
                self.kv_cache_manager.settle(request)
            request.num_computed_tokens = request.num_tokens - 1
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

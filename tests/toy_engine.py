"""The scheduler with a memory in place of a model: it notices a slot that is reused wrongly."""

from collections.abc import Sequence

import hypothesis.strategies as st

from inferlab.engine import Request, SamplingParams, Scheduler, SchedulerOutput

# Few tokens and short lists, so that prompts share prefixes of every length.
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=14)


class ToyEngine:
    """Writes into each slot which sequence its token ends, and samples from what it reads there.

    So a slot that was overwritten, or found under a wrong prefix, or never computed, is an error at
    once; and a request's tokens depend on its own sequence alone.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.memory: dict[int, int] = {}
        self.steps: list[SchedulerOutput] = []

    def step(self) -> SchedulerOutput:
        output = self.scheduler.schedule()
        assert output.total_num_scheduled_tokens <= self.scheduler.max_num_batched_tokens
        for request, num_tokens in output.scheduled:
            assert num_tokens > 0
            slots, start = self._slots(request), request.num_computed_tokens
            for position in range(start, start + num_tokens):
                self.memory[slots[position]] = prefix(request, position)
        sampled = {}
        for entry in output.scheduled:
            request = entry.request
            slots, stop = self._slots(request), request.num_computed_tokens + entry.num_tokens
            for position in range(stop):
                assert self.memory.get(slots[position]) == prefix(request, position), (
                    f"Slot {slots[position]} does not hold token {position} of {request}."
                )
            if entry.samples:
                sampled[request.request_id] = [self.memory[slots[stop - 1]] % 3]
        self.scheduler.update_from_output(output, sampled)
        self.steps.append(output)
        return output

    def run(self, requests: Sequence[Request], limit: int = 3000) -> list[list[int]]:
        """Serve the requests that can fit to the end; returns their output tokens."""
        capacity = self.scheduler.kv_cache_manager.capacity
        served = [request for request in requests if request.max_num_tokens <= capacity]
        for request in served:
            self.scheduler.add_request(request)
        while self.scheduler.has_unfinished_requests():
            assert len(self.steps) < limit, "The scheduler makes no progress: a livelock."
            self.step()
        assert all(r.num_output_tokens == r.sampling_params.max_tokens for r in served)
        return [request.output_token_ids for request in served]

    @property
    def num_preemptions(self) -> int:
        return sum(len(step.preempted) for step in self.steps)

    @property
    def num_computed_tokens(self) -> int:
        return sum(step.total_num_scheduled_tokens for step in self.steps)

    def _slots(self, request: Request) -> list[int]:
        manager = self.scheduler.kv_cache_manager
        table, size = manager.block_table(request.request_id), manager.block_size
        return [block * size + offset for block in table for offset in range(size)]


def prefix(request: Request, position: int) -> int:
    """A number for the sequence that ends at `position`: what K and V depend on."""
    return hash((request.cache_salt, tuple(request.token_ids(0, position + 1))))


def make_request(name: str, prompt: Sequence[int], max_tokens: int, **fields: object) -> Request:
    params = SamplingParams(max_tokens=max_tokens)
    return Request(name, list(prompt), params, **fields)  # type: ignore[arg-type]

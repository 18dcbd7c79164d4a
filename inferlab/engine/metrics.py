"""What the server tells Prometheus, under the names that vLLM's `/metrics` has.

Read in week 1 and whenever hits or preemptions matter; mirrors vllm/v1/metrics/loggers.py.
"""

import time

from inferlab.engine.llm import LLM
from inferlab.engine.request import FINISH_REASONS, Request
from inferlab.engine.scheduler import SchedulerOutput

# Listed, because a counter that appears only when it first grows has no rate before.
TOTALS = (
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "iteration_tokens_total_sum",
    "iteration_tokens_total_count",
    "request_queue_time_seconds_sum",
    "request_params_max_tokens_sum",
    *(f'request_success_total{{finished_reason="{reason}"}}' for reason in FINISH_REASONS.values()),
)


class Metrics:
    """Totals of an engine since its start; its thread writes them, and any other may read."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._totals = dict.fromkeys(TOTALS, 0.0)
        llm.on_schedule = self.observe_step

    def observe_step(self, output: SchedulerOutput) -> None:
        """Count a step that is about to be computed."""
        self._totals["iteration_tokens_total_sum"] += output.total_num_scheduled_tokens
        self._totals["iteration_tokens_total_count"] += 1
        self._totals["num_preemptions_total"] += len(output.preempted)
        for request, _ in output.scheduled:
            if (
                request.num_computed_tokens == request.num_cached_tokens
                and not request.num_preemptions
            ):
                # Its first chunk: like vLLM's, the hit rate leaves re-admissions out.
                self._totals["prefix_cache_queries_total"] += request.num_prompt_tokens
                self._totals["prefix_cache_hits_total"] += request.num_cached_tokens
                waited = time.monotonic() - request.arrival_time
                self._totals["request_queue_time_seconds_sum"] += waited

    def observe_tokens(self, request: Request, num_new_tokens: int) -> None:
        """Count the new tokens of a request, and the request itself once it has finished."""
        self._totals["generation_tokens_total"] += num_new_tokens
        if num_new_tokens == request.num_output_tokens:
            self._totals["prompt_tokens_total"] += request.num_prompt_tokens
        if request.status.is_finished:
            reason = FINISH_REASONS[request.status]
            self._totals[f'request_success_total{{finished_reason="{reason}"}}'] += 1
            self._totals["request_params_max_tokens_sum"] += request.sampling_params.max_tokens

    def render(self) -> str:
        """The metrics in Prometheus's text format."""
        scheduler = self._llm.scheduler
        manager = scheduler.kv_cache_manager
        facts = f'block_size="{manager.block_size}",num_gpu_blocks="{manager.num_blocks}"'
        samples = {
            "num_requests_running": len(scheduler.running),
            "num_requests_waiting": len(scheduler.waiting),
            "kv_cache_usage_perc": 1
            - manager.num_free_blocks * manager.block_size / manager.capacity,
            f"cache_config_info{{{facts}}}": 1,
            **self._totals,
        }
        return "".join(f"vllm:{name} {value}\n" for name, value in samples.items())

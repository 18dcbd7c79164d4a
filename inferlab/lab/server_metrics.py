"""Reads vLLM's `/metrics` (Prometheus text): what a run added, and what the cache is."""

import re
from dataclasses import dataclass

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# Counters and sums of histograms: their difference over a run belongs to that run alone.
COUNTERS = {
    "vllm:num_preemptions_total": "num_preemptions",
    "vllm:prompt_tokens_total": "server_prompt_tokens",
    "vllm:generation_tokens_total": "server_generation_tokens",
    "vllm:request_params_max_tokens_sum": "requested_output_tokens",
    "vllm:prefix_cache_queries_total": "prefix_cache_queries_tokens",
    "vllm:prefix_cache_hits_total": "prefix_cache_hits_tokens",
    "vllm:iteration_tokens_total_count": "engine_steps",
    "vllm:iteration_tokens_total_sum": "step_tokens",
    "vllm:request_queue_time_seconds_sum": "queue_time_sum_s",
    "vllm:request_success_total": "server_finished_requests",
}
# Gauges: their highest value during the run.
PEAKS = {
    "vllm:kv_cache_usage_perc": "kv_cache_usage_peak",
    "vllm:num_requests_running": "num_requests_running_peak",
    "vllm:num_requests_waiting": "num_requests_waiting_peak",
}
CACHE_FACTS = {
    "num_gpu_blocks": "num_gpu_blocks",
    "block_size": "kv_block_size_tokens",
}


@dataclass(frozen=True)
class Snapshot:
    """One reading: each metric summed over its label sets, and the labels of the cache's info."""

    values: dict[str, float]
    cache: dict[str, str]


def parse_metrics(text: str) -> Snapshot:
    """The metrics in `text`, which is in Prometheus exposition format."""
    values: dict[str, float] = {}
    cache: dict[str, str] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else SAMPLE.match(line)
        if match is None:
            continue
        name, labels, value = match.groups()
        values[name] = values.get(name, 0.0) + float(value)
        if name == "vllm:cache_config_info":
            cache = dict(LABEL.findall(labels))
    return Snapshot(values, cache)


def run_metrics(before: Snapshot, after: Snapshot, peaks: dict[str, float]) -> dict[str, float]:
    """What the server counted between two snapshots, under names that carry their units."""
    metrics = {
        name: after.values[metric] - before.values.get(metric, 0.0)
        for metric, name in COUNTERS.items()
        if metric in after.values
    }
    metrics |= {name: peaks[metric] for metric, name in PEAKS.items()}
    metrics |= {name: float(after.cache[label]) for label, name in CACHE_FACTS.items()}
    metrics["kv_cache_size_tokens"] = metrics["num_gpu_blocks"] * metrics["kv_block_size_tokens"]
    finished = metrics.pop("server_finished_requests")
    queue_time = metrics.pop("queue_time_sum_s")
    metrics["queue_time_mean_ms"] = 1000 * queue_time / finished if finished else 0.0
    step_tokens, steps = metrics.pop("step_tokens"), metrics["engine_steps"]
    metrics["tokens_per_step_mean"] = step_tokens / steps if steps else 0.0
    return metrics

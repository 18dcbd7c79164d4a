"""Reads an engine's `/metrics` (Prometheus text): what a run added, and what the cache is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# Their names → ours. Counters, and sums of histograms: the difference over a run is that run's.
COUNTERS = {
    "vllm:num_preemptions_total": "num_preemptions",
    "vllm:prompt_tokens_total": "server_prompt_tokens",
    "vllm:generation_tokens_total": "server_generation_tokens",
    "vllm:request_params_max_tokens_sum": "requested_output_tokens",
    "vllm:prefix_cache_queries_total": "prefix_cache_queries_tokens",
    "vllm:prefix_cache_hits_total": "prefix_cache_hits_tokens",
    # From a KV store, or from the server that prefills.
    "vllm:external_prefix_cache_queries_total": "external_queries_tokens",
    "vllm:external_prefix_cache_hits_total": "external_hits_tokens",
    "vllm:iteration_tokens_total_count": "engine_steps",
    "vllm:iteration_tokens_total_sum": "step_tokens",
    "vllm:request_queue_time_seconds_sum": "queue_time_sum_s",
    "vllm:request_success_total": "server_finished_requests",
    "sglang:num_retracted_requests_total": "num_preemptions",
    "sglang:prompt_tokens_total": "server_prompt_tokens",
    "sglang:generation_tokens_total": "server_generation_tokens",
    "sglang:cached_tokens_total": "prefix_cache_hits_tokens",
    "sglang:cuda_graph_passes_total": "engine_steps",  # without graphs it counts the passes too
    "sglang:queue_time_seconds_sum": "queue_time_sum_s",
    "sglang:num_requests_total": "server_finished_requests",
}
# These count only where there is speculation, `--enable-mfu-metrics` or a transfer of K and V.
# Where they have never grown, nothing was counted, which is not the same as a count of nothing.
OPTIONAL_COUNTERS = {
    "vllm:spec_decode_num_drafts_total": "drafts",
    "vllm:spec_decode_num_draft_tokens_total": "draft_tokens",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted_draft_tokens",
    "vllm:estimated_flops_per_gpu_total": "estimated_flop",
    "vllm:estimated_read_bytes_per_gpu_total": "estimated_read_bytes",
    "vllm:estimated_write_bytes_per_gpu_total": "estimated_written_bytes",
    "vllm:nixl_bytes_transferred_sum": "transferred_bytes",
    "vllm:nixl_bytes_transferred_count": "transfers",
    "vllm:nixl_xfer_time_seconds_sum": "transfer_time_sum_s",
    "vllm:nixl_num_failed_transfers_total": "failed_transfers",
}
# Accepted tokens of drafts, by their place in the draft from 0 on.
ACCEPTED_AT = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
# Gauges: their highest value during the run.
PEAKS = {
    "vllm:kv_cache_usage_perc": "kv_cache_usage_peak",
    "vllm:num_requests_running": "num_requests_running_peak",
    "vllm:num_requests_waiting": "num_requests_waiting_peak",
    "sglang:token_usage": "kv_cache_usage_peak",
    "sglang:num_running_reqs": "num_requests_running_peak",
    "sglang:num_queue_reqs": "num_requests_waiting_peak",
}
# Labels of vLLM's one line on its cache, and gauges of SGLang's.
CACHE_LABELS = {"num_gpu_blocks": "num_gpu_blocks", "block_size": "kv_block_size_tokens"}
CACHE_GAUGES = {"sglang:num_pages": "num_gpu_blocks", "sglang:page_size": "kv_block_size_tokens"}


@dataclass(frozen=True)
class Snapshot:
    """One reading: each metric summed over its label sets, and what the cache is made of."""

    values: dict[str, float]
    cache: dict[str, float]


def parse_metrics(text: str) -> Snapshot:
    """The metrics in `text`, which is in Prometheus exposition format."""
    values: dict[str, float] = {}
    cache: dict[str, float] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else SAMPLE.match(line)
        if match is None:
            continue
        name, labels, value = match.groups()
        if name == ACCEPTED_AT:
            name += dict(LABEL.findall(labels))["position"]
        values[name] = values.get(name, 0.0) + float(value)
        if name == "vllm:cache_config_info":
            found = dict(LABEL.findall(labels))
            cache = {ours: float(found[label]) for label, ours in CACHE_LABELS.items()}
    cache |= {ours: values[name] for name, ours in CACHE_GAUGES.items() if name in values}
    return Snapshot(values, cache)


def together(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum over servers that are alike; the usage of their caches is a share, so its mean."""
    found = list(snapshots)
    names = dict.fromkeys(name for snapshot in found for name in snapshot.values)
    values = {name: sum(one.values.get(name, 0.0) for one in found) for name in names}
    for name in ("vllm:kv_cache_usage_perc", "sglang:token_usage"):
        if name in values:
            values[name] /= len(found)
    cache = {**found[0].cache}
    if "num_gpu_blocks" in cache:
        cache["num_gpu_blocks"] *= len(found)
    return Snapshot(values, cache)


def run_metrics(before: Snapshot, after: Snapshot, peaks: dict[str, float]) -> dict[str, float]:
    """What the servers counted between two snapshots, under names that carry their units."""
    engines = {name.partition(":")[0] for name in after.values}
    metrics = {
        # SGLang shows some counters only once they have grown.
        name: after.values.get(metric, 0.0) - before.values.get(metric, 0.0)
        for metric, name in COUNTERS.items()
        if metric.partition(":")[0] in engines
    }
    metrics |= {
        name: after.values[metric] - before.values.get(metric, 0.0)
        for metric, name in OPTIONAL_COUNTERS.items()
        if after.values.get(metric)
    }
    metrics |= speculation(before, after)
    metrics |= {
        name: peaks[metric] for metric, name in PEAKS.items() if metric.partition(":")[0] in engines
    }
    metrics |= after.cache
    metrics["kv_cache_size_tokens"] = metrics["num_gpu_blocks"] * metrics["kv_block_size_tokens"]
    if "prefix_cache_queries_tokens" not in metrics:
        # SGLang looks up every prompt.
        metrics["prefix_cache_queries_tokens"] = metrics["server_prompt_tokens"]
    queries, hits = metrics["prefix_cache_queries_tokens"], metrics["prefix_cache_hits_tokens"]
    metrics["prefix_hit_share"] = hits / queries if queries else 0.0
    finished = metrics.pop("server_finished_requests")
    queue_time = metrics.pop("queue_time_sum_s")
    metrics["queue_time_mean_ms"] = 1000 * queue_time / finished if finished else 0.0
    steps = metrics["engine_steps"]
    if "step_tokens" in metrics:
        metrics["tokens_per_step_mean"] = metrics.pop("step_tokens") / steps if steps else 0.0
    return metrics


def speculation(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """What became of the drafts between two snapshots; nothing without speculation.

    `accepted_at_1_share` is the share of drafts whose first token was accepted, and so on.
    """

    def grown(name: str) -> float:
        return after.values.get(name, 0.0) - before.values.get(name, 0.0)

    places = [name for name in after.values if name.startswith(ACCEPTED_AT)]
    if not places:
        return {}
    # A lookup may find nothing to draft.
    drafts = grown("vllm:spec_decode_num_drafts_total") or 1.0
    tokens = grown("vllm:spec_decode_num_draft_tokens_total") or 1.0
    accepted = grown("vllm:spec_decode_num_accepted_tokens_total")
    return {
        "acceptance_share": accepted / tokens,
        "accepted_per_draft_mean": accepted / drafts,
        **{
            f"accepted_at_{1 + int(place.removeprefix(ACCEPTED_AT))}_share": grown(place) / drafts
            for place in places
        },
    }


def estimated_rates(metrics: Mapping[str, float]) -> dict[str, float]:
    """vLLM's own estimate of its arithmetic and traffic, per second; nothing without one."""
    if not metrics.get("estimated_flop"):
        return {}
    moved = metrics["estimated_read_bytes"] + metrics["estimated_written_bytes"]
    return {
        "estimated_gflop_per_s": metrics["estimated_flop"] / metrics["duration_s"] / 1e9,
        "estimated_gb_per_s": moved / metrics["duration_s"] / 1e9,
        "estimated_flop_per_byte": metrics["estimated_flop"] / moved,
    }

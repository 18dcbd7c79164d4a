"""Refuses rows that no machine can have produced.

Each check is a function of one repeat's metrics and of `Ceilings`; it returns a sentence about what
is impossible, or None. `violations` runs them all. The ceilings come from the profile, never from
the result that is checked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inferlab.lab.plan import Plan, Point

# Rates come from one clock and percentiles from another reading of it: they agree to this share.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Ceilings:
    """What the hardware, the model and the workload allow.

    `max_num_seqs` is the batch limit of the server; `max_concurrency` (None: all at once) is the
    workload's; `exact_lengths` is true where end-of-text is ignored.
    """

    decode_weight_bytes: int
    kv_bytes_per_token: int
    bandwidth_bytes_per_s: float
    memory_bytes: int
    max_num_seqs: int
    max_concurrency: int | None
    exact_lengths: bool


Metrics = Mapping[str, float]


def decode_floor(metrics: Metrics, ceilings: Ceilings) -> str | None:
    """A decode step reads every weight once, and gives each sequence at most one token."""
    floor_ms = 1000 * ceilings.decode_weight_bytes / ceilings.bandwidth_bytes_per_s
    step = metrics.get("tpot_mean_ms")
    if step is not None and step < floor_ms:
        return (
            f"A mean TPOT of {step:.3g} ms is below the {floor_ms:.3g} ms that reading the "
            f"weights takes."
        )
    fastest = 1000 * ceilings.max_num_seqs / floor_ms
    rate = metrics["output_tokens_per_s"]
    if rate > fastest:
        return (
            f"{rate:.0f} output tokens/s exceed the {fastest:.0f} that {ceilings.max_num_seqs} "
            f"sequences can make when each step reads the weights."
        )
    return None


def kv_memory(metrics: Metrics, ceilings: Ceilings) -> str | None:
    """The KV cache fits in memory, beside the weights."""
    if "kv_cache_size_tokens" not in metrics:
        return None
    cache = metrics["kv_cache_size_tokens"] * ceilings.kv_bytes_per_token
    room = ceilings.memory_bytes - ceilings.decode_weight_bytes
    if cache > room:
        return (
            f"A KV cache of {cache:.3g} bytes does not fit in the {room:.3g} bytes beside the "
            f"weights."
        )
    return None


def littles_law(metrics: Metrics, ceilings: Ceilings) -> str | None:
    """Throughput times mean latency is the mean number of requests in flight."""
    in_flight = metrics["requests_per_s"] * metrics["e2e_mean_ms"] / 1000
    most = metrics["num_requests"]
    if ceilings.max_concurrency is not None:
        most = min(most, ceilings.max_concurrency)
    if in_flight > most * (1 + TOLERANCE):
        return (
            f"By Little's law {in_flight:.1f} requests were in flight, and at most {most:.0f} "
            f"can be."
        )
    measured = metrics["requests_per_s"] * metrics["duration_s"]
    sent = metrics["num_requests"]
    if abs(measured - sent) > TOLERANCE * sent:
        return (
            f"The rate times the duration gives {measured:.1f} requests, and {sent:.0f} were sent."
        )
    if "tpot_mean_ms" in metrics and not metrics.get("num_preemptions"):
        # While it decodes, a sequence holds a place in the batch: the same law, for decoding only.
        decoding = (
            metrics["requests_per_s"] * (metrics["e2e_mean_ms"] - metrics["ttft_mean_ms"]) / 1000
        )
        if decoding > ceilings.max_num_seqs * (1 + TOLERANCE):
            return (
                f"By Little's law {decoding:.1f} sequences were decoding at once, and the batch "
                f"holds {ceilings.max_num_seqs}."
            )
    return None


def token_counts(metrics: Metrics, ceilings: Ceilings) -> str | None:
    """The client's count, the server's count and the rate agree on the output tokens."""
    made = metrics["output_tokens"]
    by_rate = metrics["output_tokens_per_s"] * metrics["duration_s"]
    if abs(by_rate - made) > TOLERANCE * made:
        return (
            f"The rate times the duration gives {by_rate:.0f} output tokens, and {made:.0f} were "
            f"counted."
        )
    requested = metrics.get("requested_output_tokens", made)
    if ceilings.exact_lengths and made != requested:
        return f"{made:.0f} output tokens were counted and {requested:.0f} were requested."
    served = metrics.get("server_generation_tokens", made)
    if served != made:
        return f"The server made {served:.0f} output tokens and the client counted {made:.0f}."
    return None


def prefix_hits(metrics: Metrics, ceilings: Ceilings) -> str | None:
    """Only whole blocks are cached, and the last token of a prompt is always computed."""
    hits = metrics.get("prefix_cache_hits_tokens", 0.0)
    if hits > metrics.get("prefix_cache_queries_tokens", 0.0):
        return f"{hits:.0f} tokens were prefix hits, more than were looked up."
    block = metrics.get("kv_block_size_tokens")
    # With preemption a request comes back with its output as part of its prompt.
    longest = metrics["input_max_tokens"]
    if hits and block and longest <= block and not metrics.get("num_preemptions"):
        return (
            f"{hits:.0f} tokens were prefix hits, and the longest prompt ({longest:.0f} tokens) "
            f"has no full block of {block:.0f} to hit."
        )
    return None


CHECKS: tuple[Callable[[Metrics, Ceilings], str | None], ...] = (
    decode_floor,
    kv_memory,
    littles_law,
    token_counts,
    prefix_hits,
)


def violations(metrics: Metrics, ceilings: Ceilings) -> list[str]:
    """Every sentence about what is impossible in `metrics`; empty for a possible row."""
    return [sentence for check in CHECKS if (sentence := check(metrics, ceilings))]


def ceilings_of(plan: Plan, point: Point, memory_bytes: int) -> Ceilings:
    """Ceilings of one point of a plan, on a machine with `memory_bytes`."""
    hardware = plan.profile.hardware
    per_server = point.server.get("max-num-seqs") or point.server.get("max-running-requests")
    batch = point.baseline.get("batch-size") or point.workers * int(per_server or 0)
    concurrency = point.client.get("max-concurrency")
    return Ceilings(
        decode_weight_bytes=plan.profile.decode_weight_bytes,
        kv_bytes_per_token=plan.profile.kv_bytes_per_token,
        bandwidth_bytes_per_s=1e9 * hardware.bandwidth_gb_per_s,
        memory_bytes=hardware.memory_bytes or memory_bytes,
        max_num_seqs=int(batch or point.client["num-prompts"]),
        max_concurrency=int(concurrency) if concurrency is not None else None,
        exact_lengths=point.client.get("ignore-eos") is True,
    )

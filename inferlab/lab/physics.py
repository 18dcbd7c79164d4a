"""Refuses rows that no machine can have produced.

Each check is a function of one repeat's metrics and of `Ceilings`; it returns a sentence about what
is impossible, or None. `violations` runs them all. The ceilings come from the profile, never from
the result that is checked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inferlab.lab.plan import Plan
from inferlab.lab.point import Point
from inferlab.lab.specification import load_model_facts

# Rates come from one clock and percentiles from another reading of it: they agree to this share.
TOLERANCE = 0.02
# A client that a busy machine keeps waiting gets several steps' tokens at once: of an answer of few
# steps that is all of it, and its TPOT says nothing.
FEWEST_STEPS = 4


@dataclass(frozen=True)
class Ceilings:
    """What the hardware, the model and the workload allow.

    `max_num_seqs` is the batch limit of the server; `max_concurrency` (None: all at once) is the
    workload's; `tokens_per_step` is what one step can give a sequence, above 1 with speculation;
    `is_served` is false for a program that times no single request; `exact_lengths` is true where
    end-of-text is ignored.
    """

    decode_weight_bytes: int
    kv_bytes_per_token: int
    bandwidth_bytes_per_s: float
    memory_bytes: int
    max_num_seqs: int
    max_concurrency: int | None
    tokens_per_step: int
    is_served: bool
    exact_lengths: bool


Metrics = Mapping[str, float]


def decode_floor(metrics: Metrics, ceilings: Ceilings) -> str | None:
    """A decode step reads every weight once, and gives a sequence one token, or those accepted."""
    read_ms = 1000 * ceilings.decode_weight_bytes / ceilings.bandwidth_bytes_per_s
    floor_ms = read_ms / ceilings.tokens_per_step
    step = metrics.get("tpot_mean_ms")
    if step is not None and step < floor_ms:
        tokens_each = metrics["output_tokens"] / metrics["num_requests"]
        if (tokens_each - 1) / ceilings.tokens_per_step >= FEWEST_STEPS:
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
    if not hits:
        return None
    if hits > metrics.get("prefix_cache_queries_tokens", 0.0):
        return f"{hits:.0f} tokens were prefix hits, more than were looked up."
    block, longest = metrics.get("kv_block_size_tokens", 0.0), metrics["input_max_tokens"]
    # With preemption a request comes back with its output as part of its prompt.
    if longest <= block and not metrics.get("num_preemptions"):
        return (
            f"{hits:.0f} tokens were prefix hits, and the longest prompt ({longest:.0f} tokens) "
            f"has no full block of {block:.0f} to hit."
        )
    return None


def accepted_drafts(metrics: Metrics, ceilings: Ceilings) -> str | None:
    """Only what was drafted can be accepted, and a draft has its length at most."""
    drafts, drafted = metrics.get("drafts", 0.0), metrics.get("draft_tokens", 0.0)
    accepted = metrics.get("accepted_draft_tokens", 0.0)
    if accepted > drafted:
        return f"{accepted:.0f} tokens of drafts were accepted, and {drafted:.0f} were drafted."
    longest = ceilings.tokens_per_step - 1
    if drafted > drafts * longest:
        return (
            f"{drafted:.0f} tokens were drafted in {drafts:.0f} drafts, and each has at most "
            f"{longest}."
        )
    return None


def copy_bandwidth(metrics: Metrics, ceilings: Ceilings) -> str | None:
    """Nothing is copied faster than the fastest memory can be read."""
    ceiling = ceilings.bandwidth_bytes_per_s / 1e9
    copied = metrics.get("copy_gb_per_s", 0.0)
    if copied > ceiling:
        return f"A copy at {copied:.0f} GB/s is above the {ceiling:.0f} GB/s that memory gives."
    return None


CHECKS: tuple[Callable[[Metrics, Ceilings], str | None], ...] = (
    decode_floor,
    kv_memory,
    littles_law,
    token_counts,
    prefix_hits,
    accepted_drafts,
    copy_bandwidth,
)


def violations(metrics: Metrics, ceilings: Ceilings) -> list[str]:
    """Every sentence about what is impossible in `metrics`; empty for a possible row.

    Raises:
        KeyError: if the row of a served load lacks a metric.
    """
    sentences = []
    for check in CHECKS:
        try:
            sentences.append(check(metrics, ceilings))
        except KeyError:
            # A program measures less than a client does, whose row may lack nothing.
            if ceilings.is_served:
                raise
    return [sentence for sentence in sentences if sentence]


def ceilings_of(plan: Plan, point: Point, memory_bytes: int) -> Ceilings:
    """Ceilings of one point of a plan, on a machine with `memory_bytes`."""
    hardware, model = plan.profile.hardware, load_model_facts(point.model or plan.profile.model)
    per_server = point.server.get("max-num-seqs") or point.server.get("max-running-requests")
    batch = point.options.get("batch-size") or point.workers * int(per_server or 0)
    batch = batch or point.client.get("num-prompts", 1)
    concurrency = point.client.get("max-concurrency")
    drafted = point.server.get("speculative-config.num_speculative_tokens", 0)
    return Ceilings(
        decode_weight_bytes=model.decode_weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token,
        bandwidth_bytes_per_s=1e9 * hardware.bandwidth_gb_per_s * hardware.devices,
        memory_bytes=(hardware.memory_bytes or memory_bytes) * hardware.devices,
        max_num_seqs=int(batch),
        max_concurrency=int(concurrency) if concurrency is not None else None,
        tokens_per_step=1 + int(drafted),
        is_served=point.program in (None, "static-batches"),
        exact_lengths=point.client.get("ignore-eos") is True,
    )

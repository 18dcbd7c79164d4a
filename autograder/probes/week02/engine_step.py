"""Probes of the engine step: a model that notes what it is asked, in place of one that computes."""

from typing import Any

import numpy as np

from autograder.probe import probe
from inferlab.engine.kv_cache import KVCacheManager
from inferlab.engine.request import Request, SamplingParams
from inferlab.engine.sampler import Sampler
from inferlab.engine.scheduler import ScheduledRequest, Scheduler, SchedulerOutput

EXERCISE = "week02-engine-step"
VOCABULARY = 23
END = 22


class NotingModel:
    """The next token follows from a token, its position and its slot; every call is noted."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def forward(self, batch: Any, cache: Any) -> np.ndarray:
        rows = np.stack([batch.token_ids, batch.positions, batch.slots], axis=1)
        self.seen.append(["forward", sorted(rows.tolist()), cache])
        return rows.astype(float)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        self.seen.append(["logits", sorted(hidden.astype(int).tolist())])
        next_token = hidden @ np.array([5.0, 3, 0]) % (VOCABULARY - 1)
        return -np.abs(np.arange(VOCABULARY) - next_token[:, None])


def request_of(number: int, entry: dict[str, Any]) -> Request:
    params = SamplingParams(
        max_tokens=entry["max_tokens"],
        temperature=entry.get("temperature", 0.0),
        seed=entry.get("seed"),
        stop_token_ids=tuple(entry.get("stop", ())),
    )
    return Request(f"r{number}", list(entry["prompt"]), params, END)


def engine_of(code: Any, inputs: dict[str, Any]) -> Any:
    """An `LLM` round the noting model; its constructor would read a checkpoint."""
    llm = object.__new__(code.LLM)
    llm.scheduler = Scheduler(
        KVCacheManager(inputs.get("num_blocks", 80), inputs.get("block_size", 4), False),
        max_num_seqs=inputs.get("max_num_seqs", 8),
        max_num_batched_tokens=inputs.get("budget", 512),
        long_prefill_token_threshold=inputs.get("threshold", 0),
    )
    llm.model, llm.kv_cache, llm.sampler = NotingModel(), "cache", Sampler(0)
    llm.proposer = llm.on_schedule = llm.kv_tiers = None
    llm._unfinished = {}
    for number, entry in enumerate(inputs.get("requests", [])):
        add(llm, request_of(number, entry))
    return llm


def add(llm: Any, request: Request) -> None:
    llm.scheduler.add_request(request)
    llm._unfinished[request.request_id] = request


def run(code: Any, inputs: dict[str, Any], most_steps: int = 60) -> list[Any]:
    """What each step asked of the model, whom it finished, and the tokens that there are then."""
    llm = engine_of(code, inputs)
    requests = dict(llm._unfinished)
    seen: list[Any] = []
    while llm.scheduler.has_unfinished_requests() and len(seen) < most_steps:
        finished = llm.step()
        tokens = [request.output_token_ids[-2:] for request in requests.values()]
        seen.append(
            [llm.model.seen, [r.request_id for r in finished], tokens, sorted(llm._unfinished)]
        )
        llm.model.seen = []
    return [seen, [request.output_token_ids for request in requests.values()]]


def prompts(random: np.random.Generator, lengths: list[int], most: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "prompt": random.integers(0, END, length).tolist(),
            "max_tokens": int(random.integers(1, most)),
        }
        for length in lengths
    ]


def ample(random: np.random.Generator) -> dict[str, Any]:
    return {"requests": prompts(random, random.integers(1, 9, 4).tolist())}


@probe(
    title="Several requests whose prompts fit in one step",
    exercise=EXERCISE,
    trials=3,
    inputs=ample,
    message="Each step computes the tokens that were scheduled, at their positions and in the "
    "slots of their own request, and each request gets the token of its own last row.",
)
def everything_fits(code: Any, inputs: Any) -> list[Any]:
    return run(code, inputs)


def tight(random: np.random.Generator) -> dict[str, Any]:
    lengths = [int(random.integers(9, 16)), *random.integers(2, 8, 2).tolist()]
    return {"requests": prompts(random, lengths), "budget": int(random.integers(3, 7))}


@probe(
    title="A token budget that cuts prompts into chunks",
    exercise=EXERCISE,
    trials=4,
    inputs=tight,
    message="A chunk begins where the request's computed tokens end, and takes as many as were "
    "scheduled.",
)
def chunks_under_a_tight_budget(code: Any, inputs: Any) -> list[Any]:
    return run(code, inputs)


def long_prompt(random: np.random.Generator) -> dict[str, Any]:
    return {
        "requests": prompts(random, [int(random.integers(17, 24))], 3),
        "threshold": int(random.integers(3, 6)),
    }


@probe(
    title="Steps in which no request reaches its last token",
    exercise=EXERCISE,
    trials=3,
    inputs=long_prompt,
    message="A chunk in the middle of a prompt is computed and emits no token, also where nothing "
    "else is in the batch.",
)
def middle_of_a_prompt(code: Any, inputs: Any) -> list[Any]:
    return run(code, inputs)


def idle(random: np.random.Generator) -> dict[str, Any]:
    return {"requests": prompts(random, random.integers(1, 5, 2).tolist(), 3)}


@probe(
    title="Nothing to do: before the first request, and after the last",
    exercise=EXERCISE,
    trials=2,
    inputs=idle,
    message="A step whose schedule is empty asks nothing of the model and finishes nobody.",
)
def empty_schedule(code: Any, inputs: Any) -> list[Any]:
    llm = engine_of(code, {})
    schedules: list[int] = []
    llm.on_schedule = lambda output: schedules.append(len(output.scheduled))
    seen: list[Any] = [llm.step(), llm.step(), list(llm.model.seen)]
    for number, entry in enumerate(inputs["requests"]):
        add(llm, request_of(number, entry))
    for _ in range(6):
        seen.append([request.request_id for request in llm.step()])
    return [*seen, llm.model.seen, schedules]


def crowded(random: np.random.Generator) -> dict[str, Any]:
    requests = prompts(random, random.integers(4, 8, 3).tolist())
    for entry in requests:
        entry["max_tokens"] = int(random.integers(4, 8))
    return {"requests": requests, "num_blocks": 8, "block_size": 2, "budget": 16}


@probe(
    title="A memory so small that requests are preempted and computed again",
    exercise=EXERCISE,
    trials=3,
    inputs=crowded,
    message="A request that comes back computes its prompt and the tokens that it had made, in the "
    "blocks that it has now.",
)
def preempted_requests(code: Any, inputs: Any) -> list[Any]:
    return run(code, inputs)


def stops(random: np.random.Generator) -> dict[str, Any]:
    requests = prompts(random, random.integers(1, 7, 5).tolist(), 9)
    for entry in requests[::2]:
        entry["stop"] = random.integers(0, END, 9).tolist()
    return {"requests": requests, "max_num_seqs": 3}


@probe(
    title="Requests that end at different times, and others that take their place",
    exercise=EXERCISE,
    trials=3,
    inputs=stops,
    message="A step returns the requests that it finished, and the engine forgets them.",
)
def requests_that_end(code: Any, inputs: Any) -> list[Any]:
    return run(code, inputs)


def seeds(random: np.random.Generator) -> dict[str, Any]:
    requests = prompts(random, random.integers(1, 9, 4).tolist())
    for entry in requests:
        entry |= {"temperature": 2.0, "seed": int(random.integers(1000))}
    return {"requests": requests, "budget": 9}


@probe(
    title="Sampled tokens beside prompts that are still being read",
    exercise=EXERCISE,
    trials=3,
    inputs=seeds,
    message="Each request that samples draws once a step, from the logits of its own last row.",
)
def drawn_tokens(code: Any, inputs: Any) -> list[Any]:
    return run(code, inputs)


def scheduled_by_hand(random: np.random.Generator) -> dict[str, Any]:
    requests = prompts(random, random.integers(5, 10, 4).tolist())
    return {
        "requests": requests,
        "samples": random.permutation([True, False, True, False]).tolist(),
        "drafts": random.integers(0, END, (4, 2)).tolist(),
    }


@probe(
    title="A schedule written by hand, with drafts behind some of the sequences",
    exercise=EXERCISE,
    trials=3,
    inputs=scheduled_by_hand,
    message="The batch holds the scheduled part of each sequence, and behind a sequence that is "
    "computed to its end as many of its drafts as were scheduled.",
)
def batch_by_hand(code: Any, inputs: Any) -> list[Any]:
    llm = engine_of(code, {})
    manager = llm.scheduler.kv_cache_manager
    output = SchedulerOutput()
    for number, entry in enumerate(inputs["requests"]):
        request = request_of(number, entry)
        manager.allocate_slots(request, request.num_tokens + 2)
        request.num_computed_tokens = 2
        num_tokens = request.num_tokens - 3
        if inputs["samples"][number]:
            request.draft_token_ids = inputs["drafts"][number]
            num_tokens += 1 + number % 3
        output.scheduled.append(ScheduledRequest(request, num_tokens))
    batch = llm._prepare(output)
    rows = np.stack([batch.token_ids, batch.positions, batch.slots], axis=1)
    return [rows, batch.last_rows, batch.num_decodes]


def rows_by_hand(random: np.random.Generator) -> dict[str, Any]:
    return {
        "requests": prompts(random, [3] * 5),
        "samples": random.permutation([True, True, True, False, False]).tolist(),
        "rows": random.permutation(12)[:5].tolist(),
        "hidden": random.integers(0, 50, (12, 3)),
    }


@probe(
    title="Which row belongs to which request",
    exercise=EXERCISE,
    trials=3,
    inputs=rows_by_hand,
    message="The logits are computed of the last rows of the requests that sample and of no "
    "others, and each request gets the token of its own.",
)
def rows_of_requests(code: Any, inputs: Any) -> list[Any]:
    llm = engine_of(code, {})
    output = SchedulerOutput()
    for number, entry in enumerate(inputs["requests"]):
        num_tokens = 3 if inputs["samples"][number] else 2
        output.scheduled.append(ScheduledRequest(request_of(number, entry), num_tokens))
    sampled = llm._sample(output, inputs["hidden"].astype(float), np.array(inputs["rows"]))
    tokens = {name: [int(token) for token in found] for name, found in sampled.items()}
    return [tokens, llm.model.seen]

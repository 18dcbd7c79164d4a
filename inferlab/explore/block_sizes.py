"""Week 4: block size against lengths and memory, with more requests than the memory holds.

A contiguous reservation is a block size too, the longest length that the server accepts: so one
curve goes from small blocks to reservations, and one scheduler serves them all.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from plotly.graph_objects import Figure

from inferlab.analysis.kv_memory import kv_bytes_per_token
from inferlab.engine.request import Request
from inferlab.engine.scheduler import Scheduler, SchedulerOutput
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.explore.steady_state import saturated_rate
from inferlab.sim.clients import Prompt
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "Sequences of 256 tokens on average, with a long tail, in 4 GiB. From blocks of 16 tokens to "
    "blocks of 128, which share of its sequences does the server lose? And from there to "
    "reservations of 8,192?"
)
MODEL, DEVICE = SHAPES["Llama-3.1-8B"], DEVICES["A100-80GB SXM"]
KV_TOKEN = kv_bytes_per_token(MODEL.num_layers, MODEL.num_kv_heads, MODEL.head_dim, 2)
LONGEST = 8192
MAX_NUM_SEQS = 1024
# The profile a100 of the experiment week04/block-size.
EXPERIMENT_SIZES, EXPERIMENT_LENGTHS, EXPERIMENT_REQUESTS = (16, 32, 64, 128), (16, 112), 1024
BLOCK_SIZES = (16, 32, 64, 128, 512, LONGEST)
SPREADS = ("long tail", "uniform", "all equal")


class Run(NamedTuple):
    """What a block size comes to while requests wait."""

    running: float  # sequences, on average
    empty_share: float  # of the slots taken
    tokens_per_s: float
    prompt_share: float  # of the time, in steps that compute prompts
    preemptions: int


def sweep(scheduler_class: type[Scheduler] = Scheduler) -> Sweep:
    """Llama-3.1-8B on an A100, all requests in the queue from the start."""
    return Sweep(
        partial(by_block_size, scheduler_class=scheduler_class),
        [
            Control("spread", "Lengths", list(SPREADS)),
            Control("mean_tokens", "Mean length (tokens)", [256, 384, 512, 1024, 2048]),
            Control("memory_gib", "KV memory (GiB)", [4, 3, 2, 1]),
        ],
        draw,
        in_words,
        {
            "Equal lengths": {"spread": "all equal"},
            "Long documents": {"mean_tokens": 2048},
            "Little memory": {"memory_gib": 1},
        },
    )


def by_block_size(
    spread: str, mean_tokens: int, memory_gib: int, scheduler_class: type[Scheduler] = Scheduler
) -> dict[str, list[float]]:
    """Each field of `Run` at each of `BLOCK_SIZES`, and the entries of a mean block table."""
    prompts = requests(spread, mean_tokens, memory_gib)
    # The null block comes on top, since a reservation has none.
    runs = [serve(prompts, size, slots(memory_gib) + size, scheduler_class) for size in BLOCK_SIZES]
    lengths = np.array([prompt.prompt_tokens + prompt.output_tokens for prompt in prompts])
    entries = [float(np.ceil(lengths / size).mean()) for size in BLOCK_SIZES]
    return {name: [getattr(run, name) for run in runs] for name in Run._fields} | {
        "entries": entries
    }


def requests(spread: str, mean_tokens: int, memory_gib: int) -> list[Prompt]:
    """Two and a half times as many as fit; half of each is prompt, half answer."""
    random = np.random.default_rng(0)
    count = int(np.clip(2.5 * slots(memory_gib) / mean_tokens, 40, 320))
    lengths = {
        "long tail": mean_tokens * random.lognormal(-0.5, 1.0, count),
        "uniform": random.uniform(0, 2 * mean_tokens, count),
        "all equal": np.full(count, mean_tokens),
    }[spread]
    halves = np.clip(lengths / 2, 1, LONGEST // 2).astype(int)
    return [Prompt(0.0, int(half), int(half)) for half in halves]


def slots(memory_gib: int) -> int:
    """Tokens whose K and V that memory holds."""
    return int(memory_gib * 2**30 // KV_TOKEN)


def serve(
    prompts: list[Prompt],
    block_size: int,
    kv_tokens: int,
    scheduler_class: type[Scheduler] = Scheduler,
) -> Run:
    """What becomes of the prompts in a memory of that many slots."""
    seen: list[tuple[int, int, int]] = []

    class Watched(scheduler_class):  # type: ignore[misc, valid-type]
        """Notes what runs, what is held and what is taken in each step."""

        def update_from_output(self, output: SchedulerOutput, sampled: Any) -> list[Request]:
            manager = self.kv_cache_manager
            taken = (manager.num_blocks - 1 - manager.num_free_blocks) * block_size
            held = sum(request.num_computed_tokens for request in self.running)
            seen.append((len(self.running), held + output.total_num_scheduled_tokens, taken))
            finished: list[Request] = super().update_from_output(output, sampled)
            return finished

    server = SimulatedServer(
        MODEL,
        DEVICE,
        kv_tokens=kv_tokens,
        block_size=block_size,
        max_num_seqs=MAX_NUM_SEQS,
        prefix_cache=None,
        scheduler_class=Watched,
    )
    run = server.serve(prompts)
    # One entry for each of `run.steps`, which may stand for many steps in a row.
    waiting_s = [(step.end_s - step.start_s) * bool(step.num_waiting) for step in run.steps]
    weights = waiting_s if any(waiting_s) else [1.0] * len(seen)
    running, held, taken = np.average(seen, axis=0, weights=weights)
    with_prompts = [bool(step.prefill_tokens) for step in run.steps]
    output_tokens = np.mean([prompt.output_tokens for prompt in prompts])
    return Run(
        float(running),
        float(1 - held / taken),
        float(saturated_rate(run) * output_tokens),
        float(np.average(with_prompts, weights=weights)),
        sum(one.num_preemptions for one in run.served),
    )


def experiment_on_an_a100() -> dict[int, Run]:
    """What `week04/block-size` asks of an A100, by block size: short requests, all at once."""
    random = np.random.default_rng(0)
    lengths = random.integers(*EXPERIMENT_LENGTHS, (EXPERIMENT_REQUESTS, 2), endpoint=True)
    prompts = [Prompt(0.0, prompt, output) for prompt, output in lengths.tolist()]
    return {size: serve(prompts, size, slots(4)) for size in EXPERIMENT_SIZES}


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    def panel(title: str, values: list[float], colour: str) -> Panel:
        return Panel(title, [Curve(title, BLOCK_SIZES, values, colour)])

    figure = panels(
        "Block size (tokens)",
        [
            panel(
                "Empty slots of those taken (%)",
                [100 * x for x in found["empty_share"]],
                "vermilion",
            ),
            panel("Entries of a block table", found["entries"], "orange"),
            panel("Sequences that run", found["running"], "blue"),
            panel("Output (tokens/s)", found["tokens_per_s"], "green"),
        ],
        type="log",
        tickvals=list(BLOCK_SIZES),
        ticktext=[*map(str, BLOCK_SIZES[:-1]), "8,192:<br>reserved"],
    )
    return figure.update_layout(showlegend=False)


def in_words(found: dict[str, list[float]], **_: Any) -> str:
    said = []
    for name, size in (("Blocks of 16", 16), ("blocks of 128", 128), ("reservations", LONGEST)):
        i = BLOCK_SIZES.index(size)
        said.append(
            f"{name} run {found['running'][i]:.1f} sequences and make "
            f"{found['tokens_per_s'][i]:,.0f} tokens/s with {found['empty_share'][i]:.0%} of the "
            f"slots taken empty and {found['preemptions'][i]} preemptions"
        )
    return "; ".join(said) + "."

"""Week 4: who holds which slot of the KV memory, step by step, for three ways to hand it out.

A drawing of the principle, small enough to be followed by eye. It does without the engine's block
pool, which the reader has not written yet when it is shown. A preempted request keeps its tokens
and takes one more in every step after it is admitted again: computing them anew costs no step here.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from inferlab.sweep import Control, Sweep
from inferlab.theme import PALETTE

PREDICTION = (
    "Four requests of the longest length fill the memory. While requests wait, which share of the "
    "slots holds tokens on average if each request reserves the longest length, and which if it "
    "takes blocks as it grows?"
)
SLOTS, ROW = 128, 16
LONGEST = 32  # tokens of prompt and answer that the server accepts
BLOCK = 4
STEPS = range(0, 49, 2)
LONGEST_LENGTH, OWN_LIMIT, BLOCKS = (
    "the longest length, reserved",
    "prompt and limit, reserved",
    "blocks of 4, as needed",
)
FREE, EMPTY, NULL = 0, 1, 2  # what a slot can be but a request's token
COLOURS = ("blue", "orange", "green", "sky")


@dataclass
class Request:
    """One request; `limit` is the longest answer that its sender allows, `answer` the real one."""

    name: str
    prompt: int
    answer: int
    limit: int
    tokens: int = 0  # that it has, kept when it is preempted
    colour: int = 0
    places: list[int] = field(default_factory=list)  # its slots, in the order of its tokens


class Moment(NamedTuple):
    """The memory at one step, and what has happened so far."""

    slots: list[int]  # what each slot holds: `FREE`, `EMPTY`, `NULL`, or 3 and more for a request
    names: list[str]  # whose it is
    running: str
    waiting: int
    needed: int | None  # slots that the first in the queue has to have
    largest_gap: int
    finished: int
    preemptions: int

    @property
    def holding(self) -> int:
        return sum(slot > NULL for slot in self.slots)

    @property
    def empty(self) -> int:
        """Slots that are taken and hold no token."""
        return sum(slot in (EMPTY, NULL) for slot in self.slots)

    @property
    def free(self) -> int:
        return self.slots.count(FREE)


def sweep() -> Sweep:
    """Twenty-six requests at once; a token a step for each that runs."""
    return Sweep(
        memory_at,
        [
            Control("way", "Memory is handed out as", [LONGEST_LENGTH, OWN_LIMIT, BLOCKS]),
            Control("answers", "Answers", list(ANSWERS)),
            Control("step", "Decode step", list(STEPS), plays=True),
        ],
        draw,
        in_words,
        {
            "A gap that is no use": {"way": OWN_LIMIT, "step": 46},
            "Blocks": {"way": BLOCKS},
            "Where blocks hardly help": {"way": BLOCKS, "answers": AS_ALLOWED},
        },
    )


OF_ALL_LENGTHS, AS_ALLOWED = "of all lengths", "all as long as allowed"


def of_all_lengths(random: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """Prompt, answer and limit: most answers end well before what their sender allows."""
    while True:
        prompt = int(random.integers(3, 13))
        limit = int(random.integers(4, LONGEST - prompt + 1))
        yield prompt, int(random.integers(1, limit + 1)), limit


def as_allowed(random: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """Every request fills what the server accepts."""
    while True:
        prompt = int(random.integers(3, 13))
        yield prompt, LONGEST - prompt, LONGEST - prompt


ANSWERS = {OF_ALL_LENGTHS: of_all_lengths, AS_ALLOWED: as_allowed}


@lru_cache
def history(way: str, answers: str) -> list[Moment]:
    """Every step from the first to the last of `STEPS`; first come, first served."""
    drawn = ANSWERS[answers](np.random.default_rng(4))
    queue = deque(Request(name, *lengths) for name, lengths in zip(ascii_uppercase, drawn))
    running: list[Request] = []
    finished = preemptions = 0
    found = []
    for _ in range(STEPS[-1] + 1):
        for request in list(running):
            if request not in running:
                continue  # preempted in this very step
            if request.tokens == request.prompt + request.answer:
                running.remove(request)
                finished += 1
                continue
            while request.tokens == len(request.places):
                blocks = free_places(way, running, BLOCK)
                if blocks is not None:
                    request.places += blocks
                    continue
                victim = running.pop()
                victim.places = []
                queue.appendleft(victim)
                preemptions += 1
                if victim is request:
                    break
            if request in running:
                request.tokens += 1
        while queue and (places := free_places(way, running, needed(way, queue[0]))) is not None:
            request = queue.popleft()
            request.places = places
            request.tokens = max(request.tokens, request.prompt)
            in_use = [other.colour for other in running]
            request.colour = min(range(len(COLOURS)), key=in_use.count)
            running.append(request)
        found.append(moment(way, running, queue, finished, preemptions))
    return found


def needed(way: str, request: Request) -> int:
    """Slots without which the request cannot begin."""
    if way == LONGEST_LENGTH:
        return LONGEST
    if way == OWN_LIMIT:
        return request.prompt + request.limit
    return -(-max(request.prompt, request.tokens) // BLOCK) * BLOCK


def free_places(way: str, running: list[Request], count: int) -> list[int] | None:
    """`count` free slots, adjacent unless they come in blocks; None if there are none such."""
    is_free = np.ones(SLOTS, bool)
    is_free[[place for request in running for place in request.places]] = False
    if way == BLOCKS:
        is_free[:BLOCK] = False  # the null block
        places = np.flatnonzero(is_free)[:count].tolist()
        return places if len(places) == count else None
    for start, length in gaps(is_free):
        if length >= count:
            return list(range(start, start + count))
    return None


def gaps(is_free: np.ndarray) -> list[tuple[int, int]]:
    """Start and length of every run of free slots."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_free, [0]]).astype(int)))
    return [(int(start), int(end - start)) for start, end in edges.reshape(-1, 2)]


def moment(
    way: str, running: list[Request], queue: "deque[Request]", finished: int, preemptions: int
) -> Moment:
    slots, names = [FREE] * SLOTS, [""] * SLOTS
    if way == BLOCKS:
        slots[:BLOCK] = [NULL] * BLOCK
    for request in running:
        for number, place in enumerate(request.places):
            holds = number < request.tokens
            slots[place] = NULL + 1 + request.colour if holds else EMPTY
            names[place] = request.name if holds else request.name.lower()
    is_free = np.array(slots) == FREE
    return Moment(
        slots,
        names,
        "".join(request.name for request in running),
        len(queue),
        needed(way, queue[0]) if queue else None,
        max((length for _, length in gaps(is_free)), default=0),
        finished,
        preemptions,
    )


def memory_at(way: str, answers: str, step: int) -> dict[str, Any]:
    """The moment, and how many slots are taken and hold tokens at each of `STEPS`.

    `mean_share` is the share of the slots that hold tokens, over the steps at which requests wait:
    with an empty queue, free memory is nobody's loss.
    """
    run = history(way, answers)
    return {
        "moment": run[step],
        "holding": [run[i].holding for i in STEPS],
        "taken": [run[i].holding + run[i].empty for i in STEPS],
        "mean_share": float(np.mean([one.holding for one in run if one.waiting])) / SLOTS,
    }


def draw(found: dict[str, Any], step: int, **_: Any) -> Figure:
    now: Moment = found["moment"]
    faint, grey = "rgba(128, 135, 145, 0.16)", PALETTE["grey"]
    colours = [faint, grey, PALETTE["purple"], *(PALETTE[name] for name in COLOURS)]
    count = len(colours)
    figure = make_subplots(rows=2, cols=1, row_heights=[0.62, 0.38], vertical_spacing=0.17)
    figure.add_heatmap(
        z=np.reshape(now.slots, (-1, ROW)),
        text=np.reshape(now.names, (-1, ROW)),
        texttemplate="%{text}",
        zmin=-0.5,
        zmax=count - 0.5,
        colorscale=[[(i + end) / count, c] for i, c in enumerate(colours) for end in (0, 1)],
        xgap=2,
        ygap=2,
        showscale=False,
        hoverinfo="skip",
        row=1,
        col=1,
    )
    for name, colour in (
        ("a token of request A, B, …", PALETTE["blue"]),
        ("taken, holds no token", grey),
        ("free", faint),
        ("null block", PALETTE["purple"]),
    ):
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=name,
            marker={"symbol": "square", "size": 11, "color": colour},
            row=1,
            col=1,
        )
    for name, colour in (("taken", "grey"), ("holding", "blue")):
        figure.add_scatter(
            x=list(STEPS),
            y=found[name],
            mode="lines",
            line={"color": PALETTE[colour], "shape": "hv"},
            fill="tozeroy",
            showlegend=False,
            hoverinfo="skip",
            row=2,
            col=1,
        )
    figure.add_scatter(
        x=[step, step],
        y=[0, SLOTS],
        mode="lines",
        line={"color": PALETTE["vermilion"], "width": 2},
        showlegend=False,
        hoverinfo="skip",
        row=2,
        col=1,
    )
    figure.update_xaxes(title="Slot in the row", showline=False, ticks="", row=1, col=1)
    figure.update_yaxes(
        title="Row of 16 slots", autorange="reversed", showline=False, ticks="", row=1, col=1
    )
    figure.update_xaxes(title="Decode step", range=[0, STEPS[-1]], row=2, col=1)
    figure.update_yaxes(title="Slots", range=[0, SLOTS], tickvals=[0, 64, SLOTS], row=2, col=1)
    return figure.update_layout(height=620, legend_y=1.03)


def in_words(found: dict[str, Any], step: int, **_: Any) -> str:
    now: Moment = found["moment"]
    said = (
        f"Step {step}: {len(now.running)} requests run and {now.waiting} wait. Of {SLOTS} slots "
        f"{now.holding} hold tokens, {now.empty} are taken and empty, {now.free} are free. "
    )
    if now.needed is not None and now.needed <= now.free:
        said += (
            f"The next request needs {now.needed} slots side by side; the largest gap has "
            f"{now.largest_gap}, so it waits. "
        )
    elif now.needed is not None:
        said += f"The next request needs {now.needed} slots and waits. "
    return said + (
        f"So far {now.finished} have finished and {now.preemptions} were preempted. While requests "
        f"wait, {found['mean_share']:.0%} of the slots hold tokens on average."
    )

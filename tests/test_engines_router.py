"""Our cache-aware router chooses as SGLang's own does, request by request."""

import asyncio
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from inferlab.engine.router import CacheAware
from inferlab.lab import engines
from inferlab.lab.launch import router_command
from inferlab.lab.server import free_port
from tests.proxy_fixture import WAIT_S, Worker, serving
from tests.test_lab_processes import wait_for

pytestmark = [pytest.mark.engines, pytest.mark.slow]

NUM_WORKERS = 3
FLAGS = {
    "policy": "cache_aware",
    "cache-threshold": 0.5,
    "balance-abs-threshold": 2,
    "balance-rel-threshold": 1.5,
}


@contextmanager
def sglang_router(worker_urls: list[str]) -> Iterator[str]:
    """The address of SGLang's router before these workers, once it knows all of them."""
    port = free_port()
    ports = [int(url.rpartition(":")[2]) for url in worker_urls]
    name, *arguments = router_command(ports, port, free_port(), FLAGS)
    process = subprocess.Popen(
        [engines.command(name), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"

    def knows_all() -> bool:
        try:
            workers = httpx.get(f"{url}/workers").json()["workers"]
        except httpx.HTTPError:
            return False
        return sum(worker["is_healthy"] for worker in workers) == NUM_WORKERS

    try:
        wait_for(knows_all)
        yield url
    finally:
        process.terminate()
        process.wait(WAIT_S)


class HeldWorkers:
    """Workers that answer a request only when it is released."""

    def __init__(self) -> None:
        self.released: set[str] = set()
        self.workers = [Worker(self.answer) for _ in range(NUM_WORKERS)]

    async def answer(self, body: dict[str, Any], http: Request) -> Response:
        while body["user"] not in self.released:
            await asyncio.sleep(0.002)
        return JSONResponse({"choices": [{"text": "done"}]})

    def holder(self, name: str) -> int | None:
        """The worker that was asked, or None as long as no one was."""
        for number, worker in enumerate(self.workers):
            if any(body["user"] == name for body in worker.bodies):
                return number
        return None


async def chosen_by_sglang(url: str, held: HeldWorkers, events: list[Any]) -> list[int]:
    """Who got each prompt; an event is a prompt, or the number of an earlier one that is done."""
    chosen: list[int] = []
    asked: list[asyncio.Task[httpx.Response]] = []
    async with httpx.AsyncClient(timeout=WAIT_S) as client:
        for event in events:
            if isinstance(event, int):
                held.released.add(str(event))
                (await asked[event]).raise_for_status()
                await asyncio.sleep(0.02)  # the router counts it as done a little later
                continue
            name = str(len(asked))
            body = {"model": "m", "prompt": event, "user": name, "max_tokens": 1}
            post = client.post(f"{url}/v1/completions", json=body, headers={"x-request-id": name})
            asked.append(asyncio.create_task(post))
            while (worker := held.holder(name)) is None:
                await asyncio.sleep(0.002)
            chosen.append(worker)
        held.released |= {str(number) for number in range(len(asked))}
        await asyncio.gather(*asked)
    return chosen


class FollowsInTies(CacheAware):
    """Ours, which of two workers that know as much of a prompt takes the one that theirs took."""

    def __init__(self, theirs: list[int]) -> None:
        super().__init__(NUM_WORKERS, 0.5, balance_absolute=2, balance_relative=1.5)
        self.theirs = iter(theirs)
        self.num_ties = self.num_unequal = 0

    def _preferred(self, token_ids: Sequence[int]) -> int:
        ours, theirs = super()._preferred(token_ids), next(self.theirs)
        mine, other = (
            len(self.trees[worker].match_prefix(token_ids).values) for worker in (ours, theirs)
        )
        is_tie = ours != theirs and mine == other > self.cache_threshold * len(token_ids)
        self.num_ties += is_tie
        self.num_unequal += self._is_unequal()
        return theirs if is_tie else ours


def chosen_by_ours(events: list[Any], router: CacheAware) -> list[int]:
    chosen: list[int] = []
    for event in events:
        if isinstance(event, int):
            router.finish(chosen[event])
        else:
            chosen.append(router.route([ord(letter) for letter in event]))
    return chosen


def some_events(seed: int) -> list[Any]:
    """Prompts of some families, one larger than the others; some end before others come.

    The first are unlike each other and none of them ends, so that each worker gets one of them:
    that tells in which order the router counts its workers.
    """
    of = random.Random(seed)
    events: list[Any] = ["xyz"[number] * 5 for number in range(NUM_WORKERS)]
    sent, unfinished = NUM_WORKERS, list(range(NUM_WORKERS))
    for _ in range(120):
        if unfinished and of.random() < 0.45:
            events.append(unfinished.pop(of.randrange(len(unfinished))))
            continue
        head = of.choice("aaaaaaaabcd") * of.choice([20, 40])
        events.append(head + f" {of.random()}"[: of.choice([8, 16])])
        unfinished.append(sent)
        sent += 1
    return events


@pytest.mark.parametrize("seed", range(3))
def test_the_same_requests_go_to_the_same_workers(seed: int) -> None:
    held, events = HeldWorkers(), some_events(seed)
    with serving(*(worker.app for worker in held.workers)) as urls, sglang_router(urls) as url:
        theirs = asyncio.run(chosen_by_sglang(url, held, events))
    order = theirs[:NUM_WORKERS]
    assert sorted(order) == list(range(NUM_WORKERS))
    theirs = [order.index(worker) for worker in theirs]
    router = FollowsInTies(theirs)
    assert chosen_by_ours(events, router) == theirs
    assert router.num_ties < len(theirs) / 5
    assert router.num_unequal > 0, "the loads were never unequal"
    # The control: one that ignores prefixes chooses otherwise.
    assert chosen_by_ours(events, CacheAware(NUM_WORKERS, cache_threshold=1.0)) != theirs

"""Several simulated servers behind a router, all on one clock."""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from inferlab.engine.router import Router
from inferlab.sim.clients import Prompt
from inferlab.sim.outcome import Served
from inferlab.sim.server import SimulatedServer
from inferlab.sim.simulator import Simulation, tokens_of


class Fleet(NamedTuple):
    """What became of each request, and which server got how many."""

    served: list[Served]
    requests: list[int]


def serve_behind(router: Router, server: SimulatedServer, prompts: Sequence[Prompt]) -> Fleet:
    """Serve `prompts`, an open loop, with as many servers like `server` as `router` has workers.

    The router sees a server's load as it is when the request arrives.

    Raises:
        ValueError: if the model does not fit, or a request is too long.
    """
    servers = {worker: server.waiting_for(prompts) for worker in router.loads}
    answered = dict.fromkeys(servers, 0)
    for number, prompt in enumerate(sorted(prompts, key=lambda prompt: prompt.due_s)):
        for worker, simulation in servers.items():
            simulation.run(until_s=prompt.due_s)
            for _ in range(len(simulation.served) - answered[worker]):
                router.finish(worker)
            answered[worker] = len(simulation.served)
        servers[router.route(tokens_of(prompt, number))].clients.add(prompt)
    runs: list[Simulation] = [simulation.run(until_s=inf) for simulation in servers.values()]
    return Fleet([one for run in runs for one in run.served], [len(run.served) for run in runs])

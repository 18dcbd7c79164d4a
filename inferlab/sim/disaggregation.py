"""Servers that prefill and servers that decode, and the link between them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inferlab.sim.clients import Prompt
from inferlab.sim.outcome import Served
from inferlab.sim.received_kv import send_over
from inferlab.sim.server import SimulatedServer
from inferlab.sim.simulator import Simulation


@dataclass(frozen=True)
class Pools:
    """`num_prefill` and `num_decode` servers alike; each request goes to one of either in turn."""

    server: SimulatedServer
    num_prefill: int
    num_decode: int
    link_bytes_per_s: float  # from each prefill server, one way

    def serve(self, prompts: Sequence[Prompt]) -> list[Served]:
        """What became of each request, as its client saw it; an open loop.

        A prefill server computes a prompt and its first token, of which only K and V are used: as
        in vLLM, the decode server samples every token.

        Raises:
            ValueError: if the model does not fit, or a request is too long.
        """
        received = []
        for share in divided(prompts, self.num_prefill):
            only_prefill = [replace(prompt, output_tokens=1) for prompt in share]
            ready = {
                id(one.prompt): one.answer.token_s[-1]
                for one in self.server.serve(only_prefill).served
            }
            received += send_over(
                share,
                [ready[id(prompt)] for prompt in only_prefill],
                self.server.kv_bytes_per_token,
                self.link_bytes_per_s,
            )
        received.sort(key=lambda prompt: prompt.due_s)
        return [
            one
            for share in divided(received, self.num_decode)
            for one in self.server.receive(share).served
        ]


def divided(prompts: Sequence[Prompt], count: int) -> list[list[Prompt]]:
    """The prompts dealt out to `count` servers, one after another as they come."""
    ordered = sorted(prompts, key=lambda prompt: prompt.due_s)
    return [ordered[number::count] for number in range(count)]


def colocated(server: SimulatedServer, prompts: Sequence[Prompt], count: int) -> list[Served]:
    """The same requests on `count` servers that each do both: what to compare pools with."""
    runs: list[Simulation] = [server.serve(share) for share in divided(prompts, count)]
    return [one for run in runs for one in run.served]

"""K and V that a server does not compute but gets: from a prefill server, or from a tier."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from inferlab.engine.kv_cache import KVCacheManager, PrefixHit
from inferlab.engine.request import Request
from inferlab.sim.clients import Prompt


class ReceivingKVCacheManager(KVCacheManager):
    """Admits a request with the K and V that came with it, in whole blocks.

    What is preempted has lost them and is computed anew, as in vLLM
    (vllm/v1/core/sched/scheduler.py:Scheduler._preempt_request).
    """

    def __init__(self, num_blocks: int, block_size: int = 16, enable_caching: bool = True) -> None:
        KVCacheManager.__init__(self, num_blocks, block_size, enable_caching)
        self._expected: dict[str, int] = {}

    def expect(self, request: Request, num_tokens: int) -> None:
        """The first `num_tokens` tokens of `request` will be here when it is scheduled.

        The last token's logits are needed, so at least that one is computed here.
        """
        kept = min(num_tokens, request.num_tokens - 1)
        self._expected[request.request_id] = kept // self.block_size * self.block_size

    def get_computed_blocks(self, request: Request) -> PrefixHit:
        hit = KVCacheManager.get_computed_blocks(self, request)
        received = self._expected.get(request.request_id, 0)
        return PrefixHit(hit.blocks, max(hit.num_tokens, received))

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[Any] = (),
        full_sequence_must_fit: bool = False,
    ) -> list[Any] | None:
        received = 0
        if request.request_id not in self._blocks:
            held = len(computed_blocks) * self.block_size
            received = max(0, self._expected.get(request.request_id, 0) - held)
        blocks = KVCacheManager.allocate_slots(
            self, request, received + num_new_tokens, computed_blocks, full_sequence_must_fit
        )
        if blocks is not None:
            self.receive(request)
        return blocks

    def receive(self, request: Request) -> None:
        """What was expected of an admitted request is here."""
        self._expected.pop(request.request_id, None)


def send_over(
    prompts: Sequence[Prompt],
    ready_s: Sequence[float],
    kv_bytes_per_token: float,
    link_bytes_per_s: float,
) -> list[Prompt]:
    """The prompts as a decode server gets them over one link, first ready, first sent.

    Args:
        prompts: as they were sent to the prefill servers.
        ready_s: when the K and V of each were computed.
    """
    order = sorted(range(len(prompts)), key=lambda number: ready_s[number])
    link_free_s, sent = 0.0, []
    for number in order:
        prompt = prompts[number]
        duration_s = prompt.prompt_tokens * kv_bytes_per_token / link_bytes_per_s
        link_free_s = max(link_free_s, ready_s[number]) + duration_s
        loading_s = link_free_s - prompt.due_s
        sent.append(replace(prompt, received_tokens=prompt.prompt_tokens, loading_s=loading_s))
    return sent

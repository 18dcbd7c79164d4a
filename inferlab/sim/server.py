"""A server to simulate: a model on devices, with the settings that a serving engine has."""

from collections.abc import Sequence
from dataclasses import dataclass

from inferlab.analysis.kv_memory import kv_bytes_per_token
from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import BF16, Precision
from inferlab.engine.kv_cache import CacheManager, KVCacheManager
from inferlab.engine.policy import Policy, fcfs
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from inferlab.engine.scheduler import Scheduler
from inferlab.sim.clients import Clients, Prompt
from inferlab.sim.devices import Device
from inferlab.sim.drafts import Drafts
from inferlab.sim.kv_tiers import Tier, TieredKVCacheManager
from inferlab.sim.received_kv import ReceivingKVCacheManager
from inferlab.sim.simulator import Simulation
from inferlab.sim.step_time import IDEAL, Overheads, RooflineStepTime


@dataclass(frozen=True)
class SimulatedServer:
    """One server: `serve` gives it requests.

    The defaults are vLLM's on an A100 (vllm/engine/arg_utils.py:EngineArgs.get_batch_defaults).
    """

    model: ModelShape
    device: Device
    precision: Precision = BF16
    overheads: Overheads = IDEAL
    num_gpus: int = 1
    memory_share: float = 0.92  # of the devices' memory, for weights and K and V together
    kv_tokens: int | None = None  # whose K and V there is room for; None: what the memory holds
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    long_prefill_token_threshold: int = 0
    prefix_cache: str | None = "hash"  # or "radix", or None
    tiers: tuple[Tier, ...] = ()  # below the KV cache, the fastest first
    chunk_size: int = 256  # tokens that tiers keep together
    policy: Policy = fcfs
    num_drafts: int = 0
    acceptance: float = 0.0
    scheduler_class: type[Scheduler] = Scheduler

    @property
    def weight_bytes(self) -> float:
        """All weights; embedding and head are in the format of the activations."""
        embeddings = (1 if self.model.has_tied_embedding else 2) * self.model.embedding_weights
        others = self.model.num_parameters - embeddings
        return others * self.precision.weight + embeddings * self.precision.activation

    @property
    def kv_bytes_per_token(self) -> float:
        """Of one token's K and V over all layers, once."""
        return kv_bytes_per_token(
            self.model.num_layers, self.model.num_kv_heads, self.model.head_dim, self.precision.kv
        )

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache in what memory the weights leave.

        Raises:
            ValueError: if there is no room for a single block.
        """
        if self.kv_tokens is not None:
            return self.kv_tokens // self.block_size
        # With fewer heads for K and V than GPUs, each GPU has a copy of one.
        copies = max(1.0, self.num_gpus / self.model.num_kv_heads)
        block_bytes = self.block_size * copies * self.kv_bytes_per_token
        memory = self.num_gpus * self.device.memory_bytes * self.memory_share
        free = memory - self.weight_bytes
        if free < 2 * block_bytes:
            raise ValueError(
                f"The weights take {self.weight_bytes / 1e9:.1f} GB, and {self.num_gpus} × "
                f"{self.device.name} offer {memory / 1e9:.1f} GB: there is no room for K and V. "
                f"Take more GPUs, a smaller model, or weights of fewer bits."
            )
        return int(free // block_bytes)

    def serve(
        self, prompts: Sequence[Prompt], max_in_flight: int | None = None, seed: int = 0
    ) -> Simulation:
        """Serve `prompts`, with at most `max_in_flight` at a time; `seed` decides about drafts.

        Raises:
            ValueError: if the model does not fit, cannot be divided so, or a request is too long.
        """
        return self._simulation(prompts, self._manager(prompts), max_in_flight, seed).run()

    def waiting_for(self, prompts: Sequence[Prompt]) -> Simulation:
        """The server without any request yet: some of `prompts` are given to it one by one."""
        return self._simulation([], self._manager(prompts), None, 0)

    def receive(self, prompts: Sequence[Prompt]) -> Simulation:
        """Serve prompts some of whose K and V come from elsewhere (`Prompt.received_tokens`)."""
        manager = ReceivingKVCacheManager(
            self._num_blocks_for(prompts), self.block_size, self.prefix_cache is not None
        )
        return self._simulation(prompts, manager, None, 0).run()

    def _simulation(
        self,
        prompts: Sequence[Prompt],
        manager: CacheManager,
        max_in_flight: int | None,
        seed: int,
    ) -> Simulation:
        scheduler = self.scheduler_class(
            manager,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            long_prefill_token_threshold=self.long_prefill_token_threshold,
            policy=self.policy,
        )
        return Simulation(
            scheduler,
            self.step_time,
            Clients(prompts, max_in_flight),
            frontend_s=self.overheads.frontend_s,
            drafts=Drafts(self.num_drafts, self.acceptance, seed) if self.num_drafts else None,
        )

    @property
    def step_time(self) -> RooflineStepTime:
        """What a step takes here."""
        return RooflineStepTime(
            self.model, self.device, self.precision, self.overheads, self.num_gpus
        )

    def _manager(self, prompts: Sequence[Prompt]) -> CacheManager:
        num_blocks = self._num_blocks_for(prompts)
        if self.prefix_cache == "radix":
            return RadixKVCacheManager(num_blocks * self.block_size)
        if self.tiers:
            return TieredKVCacheManager(
                num_blocks, self.block_size, self.tiers, self.chunk_size, self.kv_bytes_per_token
            )
        return KVCacheManager(num_blocks, self.block_size, self.prefix_cache is not None)

    def _num_blocks_for(self, prompts: Sequence[Prompt]) -> int:
        """Blocks that `prompts` can make use of: more than all fill would never be handed out."""
        filled = sum(
            -(-(prompt.prompt_tokens + prompt.output_tokens) // self.block_size)
            for prompt in prompts
        )
        return min(self.num_blocks, filled + 2)

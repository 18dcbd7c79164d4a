"""The engine behind one door: requests in, tokens out, one step at a time."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inferlab.engine.detokenizer import Detokenizer
from inferlab.engine.kv_cache import CacheManager, KVCacheManager
from inferlab.engine.model import Batch, LlamaModel, SequenceChunk, make_batch
from inferlab.engine.policy import Policy, fcfs
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from inferlab.engine.request import Completion, Request, SamplingParams
from inferlab.engine.sampler import Sampler
from inferlab.engine.scheduler import Scheduler, SchedulerOutput
from inferlab.engine.speculation import Proposer, verify

if TYPE_CHECKING:
    from inferlab.engine.kv_tiers import KVTiers


class LLM:
    """A model, a scheduler, a sampler and a KV cache, driven by `step`.

    Invariant: the tokens of a request depend on its prompt and its seed alone, not on the batch,
    the block size, the chunking, the prefix cache or preemption (floating-point sums differ in
    the last bits between batches, so near-ties of the logits may fall either way). With a proposer
    that holds at temperature 0; above it, a request keeps its distribution (`speculation.py`).

    Args:
        checkpoint: folder with `config.json`, `model.safetensors` and `tokenizer.json`.
        model: computes in place of the checkpoint's own, for example quantised or divided.
        num_blocks: size of the KV cache; one block, the null block, holds no tokens.
        prefix_cache: "hash" finds full blocks by their hashes; "radix" keeps a tree of tokens, in
            as much memory, in blocks of one token.
        kv_cache_dtype: "float32", "fp8_e4m3" or "fp8_e5m2".
        kv_cache_scales: of FP8 K and V, `[2, num_layers, num_kv_heads]`; see `fp8.kv_scales`.
        policy: order in which waiting requests are admitted; see `policy.py`.
        proposer: drafts tokens for the model to verify; without one, each step gives a request one.
        on_schedule: called with each step's composition before it is computed; the chapters watch
            the engine through it.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        model: LlamaModel | None = None,
        num_blocks: int = 512,
        block_size: int = 16,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        long_prefill_token_threshold: int = 0,
        enable_prefix_caching: bool = True,
        prefix_cache: str = "hash",
        kv_cache_dtype: str = "float32",
        kv_cache_scales: np.ndarray | None = None,
        policy: Policy = fcfs,
        seed: int = 0,
        proposer: Proposer | None = None,
        on_schedule: Callable[[SchedulerOutput], None] | None = None,
    ) -> None:
        # Imported here, so that importing the engine needs NumPy only.
        from tokenizers import Tokenizer

        self.model = model or LlamaModel.from_pretrained(checkpoint)
        self.tokenizer = Tokenizer.from_file(str(Path(checkpoint) / "tokenizer.json"))
        if prefix_cache not in ("hash", "radix"):
            raise ValueError(f"prefix_cache is {prefix_cache!r}; it has to be 'hash' or 'radix'.")
        manager: CacheManager = KVCacheManager(num_blocks, block_size, enable_prefix_caching)
        if prefix_cache == "radix" and enable_prefix_caching:
            manager = RadixKVCacheManager(num_blocks * block_size)
        self.kv_cache = self.model.new_kv_cache(
            manager.num_blocks, manager.block_size, kv_cache_dtype, kv_cache_scales
        )
        self.scheduler = Scheduler(
            manager,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            long_prefill_token_threshold=long_prefill_token_threshold,
            max_model_len=self.model.config.max_position_embeddings,
            policy=policy,
            num_lookahead_tokens=proposer.num_lookahead_tokens if proposer else 0,
        )
        self.sampler = Sampler(seed)
        self.proposer = proposer
        self.verifications: Counter[tuple[int, int]] = Counter()
        """How often a request had that many drafts verified and that many of them accepted."""
        if proposer is not None:
            proposer.attach(self)
        self.on_schedule = on_schedule
        self.kv_tiers: KVTiers | None = None  # which attaches itself
        self._request_ids = count()
        self._unfinished: dict[str, Request] = {}

    def add_request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
    ) -> Request:
        """Queue a prompt, given as text or as token ids, and return its request.

        Raises:
            ValueError: if a token id is not in the vocabulary, the request can never fit, or an
                unfinished request has the same id.
        """
        if request_id is None:
            unused = (str(i) for i in self._request_ids if str(i) not in self._unfinished)
            request_id = next(unused)
        elif request_id in self._unfinished:
            raise ValueError(
                f"Request {request_id!r} is in the engine already; wait until it finishes, abort "
                "it, or choose another id."
            )
        token_ids = self.tokenizer.encode(prompt).ids if isinstance(prompt, str) else list(prompt)
        vocab_size = self.model.config.vocab_size
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            raise ValueError(
                f"The prompt has token ids from {min(token_ids)} to {max(token_ids)}; "
                f"the vocabulary has ids 0 to {vocab_size - 1}."
            )
        params = params or SamplingParams()
        request = Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            sampling_params=params,
            eos_token_id=self.model.config.eos_token_id,
            arrival_time=time.monotonic(),
            detokenizer=Detokenizer(self.tokenizer, params.stop),
        )
        self.scheduler.add_request(request)
        self._unfinished[request.request_id] = request
        return request

    def abort(self, request_id: str) -> Request:
        """Take an unfinished request out and free its blocks; nothing else is touched.

        Raises:
            ValueError: if no unfinished request has this id.
        """
        if request_id not in self._unfinished:
            raise ValueError(
                f"There is no unfinished request {request_id!r} to abort; it has finished, or "
                "was never added."
            )
        request = self._unfinished.pop(request_id)
        self.scheduler.abort(request)
        self.sampler.forget(request_id)
        return request

    def step(self) -> list[Request]:
        """Schedule, prepare, execute, sample, update; returns the requests that finished."""
        output = self._schedule()
        sampled: dict[str, list[int]] = {}
        if output.scheduled:
            batch = self._prepare(output)
            hidden = self.model.forward(batch, self.kv_cache)
            sampled = self._sample(output, hidden, batch.last_rows)
        return self._update(output, sampled)

    def _schedule(self) -> SchedulerOutput:
        """Choose the tokens of the step; who watches the engine is told."""
        if self.kv_tiers is not None:
            self.kv_tiers.load_waiting()
        output = self.scheduler.schedule()
        if self.on_schedule is not None:
            self.on_schedule(output)
        return output

    def _prepare(self, output: SchedulerOutput) -> Batch:
        """Lay the step's tokens out in one batch, the drafts of a request behind its own."""
        manager = self.scheduler.kv_cache_manager
        chunks = []
        for entry in output.scheduled:
            request, num_tokens = entry
            start = request.num_computed_tokens
            token_ids = request.token_ids(start, start + num_tokens)
            token_ids += request.draft_token_ids[: entry.num_draft_tokens]
            block_table = manager.block_table(request.request_id)
            chunks.append(SequenceChunk(token_ids, start, block_table))
        return make_batch(chunks, manager.block_size)

    def _sample(
        self, output: SchedulerOutput, hidden: np.ndarray, last_rows: np.ndarray
    ) -> dict[str, list[int]]:
        """New tokens by request id, for the requests whose last token the step has computed.

        Args:
            hidden: `[num_tokens, hidden]`, what the model made of the batch.
            last_rows: `[num_scheduled]`, row of the last token of each scheduled request.
        """
        if self.proposer is not None:
            return self._verify(output, hidden, last_rows)
        samples = [entry.samples for entry in output.scheduled]
        requests = [entry.request for entry in output.scheduled if entry.samples]
        tokens = self.sampler.sample(self.model.logits(hidden[last_rows[samples]]), requests)
        return {request.request_id: [token] for request, token in zip(requests, tokens)}

    def _verify(
        self, output: SchedulerOutput, hidden: np.ndarray, last_rows: np.ndarray
    ) -> dict[str, list[int]]:
        """In place of `_sample` where tokens were drafted; and the next ones are drafted."""
        sampling = [(row, e) for row, e in zip(last_rows, output.scheduled) if e.samples]
        rows = [row + i for row, entry in sampling for i in range(-entry.num_draft_tokens, 1)]
        entries = [entry for _, entry in sampling]
        logits = self.model.logits(hidden[np.array(rows, dtype=int)])
        sampled = verify(logits, entries, self.sampler)
        for entry in entries:
            num_accepted = len(sampled[entry.request.request_id]) - 1
            self.verifications[entry.num_draft_tokens, num_accepted] += 1
        assert self.proposer is not None
        self.proposer.draft(output.scheduled, sampled)
        return sampled

    def _update(self, output: SchedulerOutput, sampled: dict[str, list[int]]) -> list[Request]:
        """Append the tokens, and let go of the requests that finished."""
        finished = self.scheduler.update_from_output(output, sampled)
        for request in finished:
            self.sampler.forget(request.request_id)
            del self._unfinished[request.request_id]
            if self.kv_tiers is not None:
                self.kv_tiers.save(request)
        return finished

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete all prompts, batched as the scheduler sees fit, and return them in order.

        Raises:
            ValueError: if one of them is refused, as by `add_request`; none is queued then.
        """
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        requests: list[Request] = []
        try:
            for prompt, own_params in zip(prompts, params):
                requests.append(self.add_request(prompt, own_params))
        except ValueError:
            for request in requests:
                self.abort(request.request_id)
            raise
        while self.scheduler.has_unfinished_requests():
            self.step()
        return [Completion.of(request) for request in requests]

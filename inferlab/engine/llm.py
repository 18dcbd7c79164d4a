"""The engine behind one door: requests in, tokens out, one step at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from inferlab.engine.kv_cache import KVCacheManager
from inferlab.engine.model import LlamaModel, SequenceChunk, make_batch
from inferlab.engine.request import FINISH_REASONS, Request, SamplingParams
from inferlab.engine.sampler import Sampler
from inferlab.engine.scheduler import Scheduler, SchedulerOutput


@dataclass(frozen=True)
class Completion:
    """What `LLM.generate` returns for a prompt."""

    request_id: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    num_cached_tokens: int
    num_preemptions: int


class LLM:
    """A model, a scheduler, a sampler and a KV cache, driven by `step`.

    Invariant: the tokens of a request depend on its prompt and its seed alone, not on the batch,
    the block size, the chunking, the prefix cache or preemption (floating-point sums differ in
    the last bits between batches, so near-ties of the logits may fall either way).

    Args:
        checkpoint: folder with `config.json`, `model.safetensors` and `tokenizer.json`.
        num_blocks: size of the KV cache; one block, the null block, holds no tokens.
        on_schedule: called with each step's composition before it is computed; the chapters watch
            the engine through it.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        num_blocks: int = 512,
        block_size: int = 16,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        long_prefill_token_threshold: int = 0,
        enable_prefix_caching: bool = True,
        seed: int = 0,
        on_schedule: Callable[[SchedulerOutput], None] | None = None,
    ) -> None:
        # Imported here, so that importing the engine needs NumPy only.
        from tokenizers import Tokenizer

        self.model = LlamaModel.from_pretrained(checkpoint)
        self.tokenizer = Tokenizer.from_file(str(Path(checkpoint) / "tokenizer.json"))
        self.kv_cache = self.model.new_kv_cache(num_blocks, block_size)
        self.scheduler = Scheduler(
            KVCacheManager(num_blocks, block_size, enable_prefix_caching),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            long_prefill_token_threshold=long_prefill_token_threshold,
            max_model_len=self.model.config.max_position_embeddings,
        )
        self.sampler = Sampler(seed)
        self.on_schedule = on_schedule
        self._request_ids = count()

    def add_request(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None
    ) -> Request:
        """Queue a prompt, given as text or as token ids, and return its request.

        Raises:
            ValueError: if a token id is not in the vocabulary, or the request can never fit.
        """
        token_ids = self.tokenizer.encode(prompt).ids if isinstance(prompt, str) else list(prompt)
        vocab_size = self.model.config.vocab_size
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            raise ValueError(
                f"The prompt has token ids from {min(token_ids)} to {max(token_ids)}; "
                f"the vocabulary has ids 0 to {vocab_size - 1}."
            )
        request = Request(
            request_id=str(next(self._request_ids)),
            prompt_token_ids=token_ids,
            sampling_params=params or SamplingParams(),
            eos_token_id=self.model.config.eos_token_id,
            arrival_time=time.monotonic(),
        )
        self.scheduler.add_request(request)
        return request

    def step(self) -> list[Request]:
        """Schedule, execute, sample, update; returns the requests that finished."""
        output = self.scheduler.schedule()
        if self.on_schedule is not None:
            self.on_schedule(output)
        sampled = self._execute(output) if output.scheduled else {}
        finished = self.scheduler.update_from_output(output, sampled)
        for request in finished:
            self.sampler.forget(request.request_id)
        return finished

    def _execute(self, output: SchedulerOutput) -> dict[str, int]:
        """Run the model on the step's tokens and sample for the requests that caught up."""
        manager = self.scheduler.kv_cache_manager
        chunks = []
        for request, num_tokens in output.scheduled:
            start = request.num_computed_tokens
            chunks.append(
                SequenceChunk(
                    token_ids=request.token_ids(start, start + num_tokens),
                    start=start,
                    block_table=manager.block_table(request.request_id),
                )
            )
        batch = make_batch(chunks, manager.block_size)
        hidden = self.model.forward(batch, self.kv_cache)
        samples = np.array([entry.samples for entry in output.scheduled])
        requests = [entry.request for entry in output.scheduled if entry.samples]
        logits = self.model.logits(hidden[batch.last_rows[samples]])
        tokens = self.sampler.sample(logits, requests)
        return {request.request_id: token for request, token in zip(requests, tokens)}

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete all prompts, batched as the scheduler sees fit, and return them in order."""
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        requests = [self.add_request(prompt, p) for prompt, p in zip(prompts, params)]
        while self.scheduler.has_unfinished_requests():
            self.step()
        return [self._completion(request) for request in requests]

    def _completion(self, request: Request) -> Completion:
        return Completion(
            request_id=request.request_id,
            prompt_token_ids=request.prompt_token_ids,
            token_ids=request.output_token_ids,
            text=self.tokenizer.decode(request.output_token_ids),
            finish_reason=FINISH_REASONS[request.status],
            num_cached_tokens=request.num_cached_tokens,
            num_preemptions=request.num_preemptions,
        )

"""A live request moves from one engine to another with its K and V; built in week 16.

The export holds everything that the next token depends on, so the destination goes on exactly
where the source stopped. Mirrors vllm/distributed/kv_transfer/kv_connector/v1/base.py, with one
difference on purpose: vLLM's prefill engine sends the K and V of a prompt and its decode engine
samples every token, so that no generator has to cross; here a request may leave at any point.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inferlab.engine.kv_payload import kv_fingerprint, pack, read_blocks, unpack, write_tokens
from inferlab.engine.llm import LLM
from inferlab.engine.request import Request, RequestStatus, SamplingParams, TokenLogprobs


@dataclass(frozen=True, eq=False)
class KVExport:
    """A request outside any engine, without its drafts: they cost time when lost, never tokens.

    `keys` and `values` are `[num_layers, num_computed_tokens, num_kv_heads, head_dim]`.
    """

    fingerprint: str
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    logprobs: list[TokenLogprobs]
    sampling_params: SamplingParams
    generator_state: dict[str, Any]
    cache_salt: str
    priority: int
    keys: np.ndarray
    values: np.ndarray

    def to_bytes(self) -> bytes:
        """The export, checksum included, for a file, a socket or another process."""
        header = {**vars(self), "sampling_params": asdict(self.sampling_params)}
        return pack(header, header.pop("keys"), header.pop("values"))

    @classmethod
    def from_bytes(cls, payload: bytes) -> "KVExport":
        """The export that `to_bytes` wrote.

        Raises:
            ValueError: if the payload was cut short or altered on its way.
        """
        header, keys, values = unpack(payload)
        params = header.pop("sampling_params")
        for name in ("stop", "stop_token_ids"):
            params[name] = tuple(params[name])
        logprobs = [
            TokenLogprobs(chosen, [(token, logprob) for token, logprob in top])
            for chosen, top in header.pop("logprobs")
        ]
        params = SamplingParams(**params)
        return cls(**header, logprobs=logprobs, sampling_params=params, keys=keys, values=values)


def export_request(llm: LLM, request: Request) -> KVExport:
    """Copy an unfinished request out of `llm`, which keeps it; shared blocks are only read.

    Raises:
        ValueError: if `llm` has no such unfinished request.
    """
    if request not in llm.scheduler.running and request not in llm.scheduler.waiting:
        raise ValueError(
            f"Request {request.request_id!r} ({request.status.name}) is neither running nor "
            "waiting in this engine, so there is nothing to export; was it finished or moved?"
        )
    table = llm.scheduler.kv_cache_manager.block_table(request.request_id)
    keys, values = read_blocks(llm.kv_cache, table)
    return KVExport(
        fingerprint=kv_fingerprint(llm.model, llm.kv_cache),
        prompt_token_ids=list(request.prompt_token_ids),
        output_token_ids=list(request.output_token_ids),
        logprobs=list(request.logprobs),
        sampling_params=request.sampling_params,
        generator_state=dict(llm.sampler.generator(request).bit_generator.state),
        cache_salt=request.cache_salt,
        priority=request.priority,
        keys=keys[:, : request.num_computed_tokens],
        values=values[:, : request.num_computed_tokens],
    )


def import_request(llm: LLM, export: KVExport) -> Request:
    """Put an exported request among the running ones of `llm`, under an id of its own.

    Blocks that the prefix cache holds are adopted, the others written, and full ones indexed. The
    request then holds `ceil(num_computed_tokens / block_size)` blocks; the slot of its next token
    comes with the next step. There has to be room for all its tokens, though, as at any admission:
    `ceil((num_computed_tokens + 1) / block_size)` blocks of a request that decodes. With less, the
    next step would preempt it and the transfer would be in vain.

    Raises:
        ValueError: if the export is of another model, or the request could never finish here.
        MemoryError: if there is no room now; nothing has changed then.
    """
    _check_model(llm, export)
    scheduler, manager = llm.scheduler, llm.scheduler.kv_cache_manager
    request = llm.add_request(export.prompt_token_ids, export.sampling_params)
    for token_id in export.output_token_ids:
        request.append_output_token(token_id)  # a stop string may have begun at the source
    request.logprobs = list(export.logprobs)
    request.cache_salt, request.priority = export.cache_salt, export.priority
    hit = manager.get_computed_blocks(request)
    start, stop = hit.num_tokens, max(hit.num_tokens, export.keys.shape[1])
    is_full = len(scheduler.running) >= scheduler.max_num_seqs
    if is_full or manager.allocate_slots(request, stop - start, hit.blocks, True) is None:
        llm.abort(request.request_id)
        raise MemoryError(
            f"There is no room for a request of {request.num_tokens} tokens: "
            f"{manager.num_free_blocks} blocks of {manager.block_size} tokens are free, and "
            f"{len(scheduler.running)} of at most {scheduler.max_num_seqs} requests run. Try "
            "again later or elsewhere; the source still has the request."
        )
    table = manager.block_table(request.request_id)
    write_tokens(llm.kv_cache, table, start, export.keys[:, start:], export.values[:, start:])
    scheduler.waiting.remove(request)
    scheduler.running.append(request)
    request.status = RequestStatus.RUNNING
    request.num_computed_tokens, request.num_cached_tokens = stop, start
    llm.sampler.generator(request).bit_generator.state = export.generator_state
    return request


def _check_model(llm: LLM, export: KVExport) -> None:
    cache, expected = llm.kv_cache.keys, kv_fingerprint(llm.model, llm.kv_cache)
    shape = (len(cache), export.keys.shape[1], *cache.shape[3:])
    if (export.fingerprint, export.keys.shape, export.keys.dtype) != (expected, shape, cache.dtype):
        raise ValueError(
            f"The export has {export.keys.dtype} K {export.keys.shape} of model "
            f"{export.fingerprint[:12]}, and this engine would store {cache.dtype} K {shape} of "
            f"model {expected[:12]}: they mean nothing to it. Send the prompt instead."
        )


def release_request(llm: LLM, request: Request, export: KVExport) -> None:
    """Forget at the source a request that has arrived: its blocks, its generator; it ends aborted.

    Raises:
        ValueError: if the source has sampled since the export, so that the copy is out of date.
    """
    if request.output_token_ids != export.output_token_ids:
        raise ValueError(
            f"Request {request.request_id!r} has sampled since it was exported, after "
            f"{len(export.output_token_ids)} tokens; abort the copy and export the request again."
        )
    llm.abort(request.request_id)


def move_request(source: LLM, request: Request, destination: LLM) -> Request:
    """Export, import, and only then release: whatever fails, the source still has the request."""
    export = export_request(source, request)
    moved = import_request(destination, export)
    release_request(source, request, export)
    return moved

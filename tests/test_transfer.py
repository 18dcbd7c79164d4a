"""A request that moves between engines goes on as if it had stayed, and nothing is left behind."""

import dataclasses
import json
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from inferlab import models
from inferlab.engine import (
    LLM,
    DraftModelProposer,
    KVCache,
    LlamaModel,
    Request,
    RequestStatus,
    SamplingParams,
)
from inferlab.engine.transfer import (
    KVExport,
    export_request,
    import_request,
    move_request,
    release_request,
)
from inferlab.models import corpus

CHECKPOINT = models.path("tiny-chat")
ROOT = Path(__file__).resolve().parent.parent
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=12, seed=5, ignore_eos=True, top_p=0.95)
PENALISED = SamplingParams(
    max_tokens=12,
    seed=9,
    ignore_eos=True,
    temperature=1.5,
    repetition_penalty=1.3,
    presence_penalty=0.5,
    frequency_penalty=0.4,
)
ENGINE_TEST = settings(max_examples=40, derandomize=True)
"""Derandomised: a near-tie of the logits may fall either way in a batch of another shape."""


def chat(task: str = "recall", index: int = 1) -> str:
    """A question whose answer stands in the prompt; by default it has 33 tokens."""
    example = corpus.held_out_examples(task, index + 1)[index]
    return f"<|bos|><|user|>{example.prompt}<|end|><|assistant|>"


@cache
def shared_model() -> LlamaModel:
    return LlamaModel.from_pretrained(CHECKPOINT)


def engine(**options: object) -> LLM:
    """An engine of its own on weights that are loaded once."""
    with patch.object(LlamaModel, "from_pretrained", return_value=shared_model()):
        return LLM(CHECKPOINT, **{"num_blocks": 128, **options})  # type: ignore[arg-type]


def finish(llm: LLM) -> None:
    while llm.scheduler.has_unfinished_requests():
        llm.step()


@cache
def run_alone(prompt: str | tuple[int, ...], params: SamplingParams) -> list[int]:
    return engine().generate([prompt], params)[0].token_ids


def start(llm: LLM, params: SamplingParams = GREEDY, steps: int = 4, prompt: str = "") -> Request:
    request = llm.add_request(prompt or chat(), params)
    for _ in range(steps):
        llm.step()
    return request


def state(llm: LLM) -> tuple[object, ...]:
    """Everything that a refused import must leave as it was."""
    manager = llm.scheduler.kv_cache_manager
    blocks = manager.block_pool.blocks
    return (
        [block.block_id for block in manager.block_pool.free_queue.blocks()],
        [(block.ref_count, block.block_hash) for block in blocks],
        [(r.request_id, manager.block_table(r.request_id)) for r in llm.scheduler.running],
        [request.request_id for request in llm.scheduler.waiting],
        sorted(llm._unfinished),
        llm.kv_cache.keys.tobytes(),
        llm.kv_cache.values.tobytes(),
    )


def is_clean(llm: LLM) -> bool:
    manager = llm.scheduler.kv_cache_manager
    return (
        manager.num_free_blocks * manager.block_size == manager.capacity
        and not llm.scheduler.has_unfinished_requests()
        and not llm.sampler._generators
        and not llm._unfinished
    )


@ENGINE_TEST
@given(
    prompt=st.lists(st.integers(6, 639), min_size=1, max_size=60),
    block_sizes=st.tuples(st.sampled_from([1, 3, 4, 16]), st.sampled_from([1, 4, 7, 16])),
    steps=st.integers(0, 14),
    params=st.sampled_from([GREEDY, SEEDED, PENALISED]),
    prefix_caches=st.tuples(*[st.sampled_from(["hash", "radix", "none"])] * 2),
)
def test_tokens_are_those_of_a_request_that_stayed(
    prompt: list[int],
    block_sizes: tuple[int, int],
    steps: int,
    params: SamplingParams,
    prefix_caches: tuple[str, str],
) -> None:
    source, destination = (
        engine(
            block_size=size,
            max_num_batched_tokens=11,
            enable_prefix_caching=cache != "none",
            prefix_cache="radix" if cache == "radix" else "hash",
        )
        for size, cache in zip(block_sizes, prefix_caches)
    )
    request = source.add_request(prompt, params)
    for _ in range(steps):
        source.step()
    if request.status.is_finished:
        with pytest.raises(ValueError, match="nothing to export"):
            export_request(source, request)
        return
    export = KVExport.from_bytes(export_request(source, request).to_bytes())
    moved = import_request(destination, export)
    release_request(source, request, export)
    assert is_clean(source)
    assert request.status is RequestStatus.FINISHED_ABORTED
    manager = destination.scheduler.kv_cache_manager
    assert moved.num_computed_tokens == export.keys.shape[1]
    held = len(manager.block_table(moved.request_id))
    assert held == -(-moved.num_computed_tokens // manager.block_size)
    finish(destination)
    assert moved.output_token_ids == run_alone(tuple(prompt), params)
    assert is_clean(destination)


def test_every_stage_of_a_request_was_among_those_moved() -> None:
    """The steps above reach a waiting request, one in mid-prefill, and one that decodes."""
    llm = engine(max_num_batched_tokens=11)
    request, stages = llm.add_request(list(range(6, 46)), GREEDY), []
    for _ in range(6):
        stages.append((request.num_computed_tokens, request.num_output_tokens))
        llm.step()
    assert stages == [(0, 0), (11, 0), (22, 0), (33, 0), (40, 1), (41, 2)]


@pytest.mark.parametrize("params", [SEEDED, PENALISED], ids=["seeded", "penalised"])
def test_control_without_the_generators_state_the_samples_differ(params: SamplingParams) -> None:
    source, destination = engine(), engine()
    request = start(source, params, steps=5)
    fresh = np.random.default_rng(params.seed).bit_generator.state
    export = dataclasses.replace(export_request(source, request), generator_state=dict(fresh))
    moved = import_request(destination, export)
    finish(destination)
    assert moved.output_token_ids[:5] == request.output_token_ids
    assert moved.output_token_ids != run_alone(chat(), params)


def test_an_unseeded_request_goes_on_with_the_sources_numbers() -> None:
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    source, destination = engine(seed=3), engine(seed=4)
    moved = move_request(source, start(source, params, steps=0), destination)
    finish(destination)
    assert moved.output_token_ids == engine(seed=3).generate([chat()], params)[0].token_ids


def test_many_requests_move_into_an_engine_that_is_serving() -> None:
    prompts = [chat(task, i) for task in ("copy", "json", "recall") for i in range(2)]
    params = [GREEDY, SEEDED, PENALISED] * 2
    source, destination = engine(max_num_batched_tokens=64), engine(block_size=8)
    requests = [source.add_request(p, q) for p, q in zip(prompts, params)]
    own = [destination.add_request(p, q) for p, q in zip(prompts, params[::-1])]
    for _ in range(5):
        source.step()
        destination.step()
    moved = [move_request(source, request, destination) for request in requests]
    assert is_clean(source)
    assert len({request.request_id for request in moved + own}) == 12
    finish(destination)
    expected = [run_alone(p, q) for p, q in zip(prompts, params)]
    assert [request.output_token_ids for request in moved] == expected
    expected = [run_alone(p, q) for p, q in zip(prompts, params[::-1])]
    assert [request.output_token_ids for request in own] == expected


def test_text_stop_strings_and_logprobs_go_along() -> None:
    whole = engine().generate([chat("json")], dataclasses.replace(GREEDY, max_tokens=30))[0].text
    params = dataclasses.replace(GREEDY, max_tokens=30, stop=(whole[6:14],), logprobs=2)
    (expected,) = engine().generate([chat("json")], params)
    assert (expected.text, expected.finish_reason) == (whole[:6], "stop")
    num_tokens = len(expected.token_ids)
    for steps in range(1, num_tokens):  # the stop string is cut in two at every place
        source, destination = engine(), engine()
        request = start(source, params, steps, chat("json"))
        export = KVExport.from_bytes(export_request(source, request).to_bytes())
        assert export.logprobs == request.logprobs
        moved = import_request(destination, export)
        finish(destination)
        assert moved.output_token_ids == expected.token_ids
        assert moved.status is RequestStatus.FINISHED_STOPPED
        assert len(moved.logprobs) == len(moved.output_token_ids)


def test_a_preempted_request_moves_with_its_output_and_no_kv() -> None:
    source, destination = engine(num_blocks=10, block_size=8), engine()
    first, second = start(source, SEEDED, 0), start(source, SEEDED, 0, chat("code"))
    for _ in range(12):
        if second.status is not RequestStatus.PREEMPTED:
            source.step()
    assert second.status is RequestStatus.PREEMPTED
    assert (second.num_computed_tokens, second.num_preemptions) == (0, 1)
    assert second.num_output_tokens > 0
    moved = move_request(source, second, destination)
    finish(source)
    finish(destination)
    assert moved.output_token_ids == run_alone(chat("code"), SEEDED)
    assert first.output_token_ids == run_alone(chat(), SEEDED)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_drafts_stay_behind_and_the_tokens_are_the_same(steps: int) -> None:
    """The destination's draft model lacks the prompt's K and V: worse drafts, the same tokens."""

    def drafting() -> LLM:
        drafter = LlamaModel.from_pretrained(models.path("tiny-draft"))
        return engine(proposer=DraftModelProposer(drafter, 3))

    source, destination = drafting(), drafting()
    request = start(source, GREEDY, steps)
    assert request.draft_token_ids
    moved = move_request(source, request, destination)
    finish(destination)
    assert moved.output_token_ids == run_alone(chat(), GREEDY)
    assert is_clean(source)
    assert is_clean(destination)


def test_shared_blocks_at_the_source_are_only_read() -> None:
    source, destination = engine(), engine()
    first = start(source)
    request, twin = start(source, GREEDY), start(source, GREEDY, steps=2)
    before = state(source)
    export = export_request(source, request)
    assert state(source) == before
    pool = source.scheduler.kv_cache_manager.block_pool
    table = source.scheduler.kv_cache_manager.block_table(request.request_id)
    held = [pool.blocks[i].ref_count for i in table]
    assert max(held) == 3
    import_request(destination, export)
    release_request(source, request, export)
    assert [pool.blocks[i].ref_count for i in table] == [count - 1 for count in held]
    finish(source)
    assert twin.output_token_ids == first.output_token_ids == run_alone(chat(), GREEDY)


def test_blocks_that_the_destination_holds_are_adopted_and_the_others_indexed() -> None:
    source, destination = engine(block_size=4), engine(block_size=4)
    request = start(source, steps=8)
    (known,) = destination.generate([chat()], dataclasses.replace(GREEDY, max_tokens=1))
    num_hit = (len(known.prompt_token_ids)) // 4  # what it computed, in whole blocks
    manager = destination.scheduler.kv_cache_manager
    export = export_request(source, request)
    # Zeros where the destination has its own: they would show if anything were written there.
    export.keys[:, : 4 * num_hit] = 0
    import_request(destination, export)
    moved = destination.scheduler.running[0]
    assert moved.num_cached_tokens == 4 * num_hit > 0
    cached = sum(block.block_hash is not None for block in manager.block_pool.blocks)
    assert cached == moved.num_computed_tokens // 4 > num_hit
    finish(destination)
    assert moved.output_token_ids == run_alone(chat(), GREEDY)
    stranger = engine(block_size=4)  # control: where nothing is held, the zeros are written
    misled = import_request(stranger, export)
    finish(stranger)
    assert misled.output_token_ids != moved.output_token_ids


def test_an_imported_prefix_serves_the_next_request() -> None:
    source, destination = engine(block_size=4), engine(block_size=4)
    moved = move_request(source, start(source), destination)
    (after,) = destination.generate([chat()], GREEDY)
    assert after.num_cached_tokens == (moved.num_prompt_tokens - 1) // 4 * 4
    assert after.token_ids == moved.output_token_ids == run_alone(chat(), GREEDY)


def aligned(block_size: int) -> tuple[LLM, Request]:
    """A source whose request has filled its last block: its next token needs another."""
    source = engine()
    request = start(source)
    while request.num_computed_tokens % block_size:
        source.step()
    return source, request


def test_room_is_asked_for_the_next_token_too() -> None:
    source, request = aligned(block_size=8)
    num_blocks = request.num_computed_tokens // 8
    for usable in (num_blocks, num_blocks + 1):
        destination = engine(block_size=8, num_blocks=64)
        destination.scheduler.kv_cache_manager.block_pool.get_new_blocks(63 - usable)
        before, source_before = state(destination), state(source)
        if usable == num_blocks:
            with pytest.raises(MemoryError, match=f"{usable} blocks of 8 tokens are free"):
                move_request(source, request, destination)
            assert (state(destination), state(source)) == (before, source_before)
    moved = move_request(source, request, destination)
    assert len(destination.scheduler.kv_cache_manager.block_table(moved.request_id)) == num_blocks
    destination.step()
    assert moved.num_preemptions == 0


def test_control_with_less_room_the_first_step_preempts(monkeypatch: pytest.MonkeyPatch) -> None:
    source, request = aligned(block_size=8)
    destination = engine(block_size=8, num_blocks=64)
    manager = destination.scheduler.kv_cache_manager
    manager.block_pool.get_new_blocks(63 - request.num_computed_tokens // 8)
    allocate = manager.allocate_slots
    monkeypatch.setattr(manager, "allocate_slots", lambda *arguments: allocate(*arguments[:3]))
    moved = move_request(source, request, destination)
    destination.step()
    assert (moved.num_preemptions, moved.num_computed_tokens) == (1, 0)


def test_a_refused_request_goes_on_at_the_source() -> None:
    source, destination = engine(), engine(max_num_seqs=1)
    busy = start(destination)
    request = start(source)
    with pytest.raises(MemoryError, match="1 of at most 1 requests run"):
        move_request(source, request, destination)
    small = engine(num_blocks=3, block_size=8)
    with pytest.raises(ValueError, match="the cache can hold 16 for one request"):
        move_request(source, request, small)
    assert is_clean(small)
    finish(source)
    finish(destination)
    assert request.output_token_ids == busy.output_token_ids == run_alone(chat(), GREEDY)


def test_another_model_is_refused() -> None:
    source = engine()
    export = export_request(source, start(source))
    other_weights, other_model = LLM(CHECKPOINT), LLM(models.path("tiny-draft"))
    other_weights.model.layers[2].post_attention_norm[0] *= 2
    for destination in (other_weights, other_model):
        before = state(destination)
        with pytest.raises(ValueError, match="mean nothing to it"):
            import_request(destination, export)
        assert state(destination) == before
    import_request(engine(), export)


def test_kv_of_another_shape_or_type_is_refused() -> None:
    source, destination = engine(), engine()
    export = export_request(source, start(source))
    before = state(destination)
    for keys in (export.keys.astype(np.float16), export.keys[:, :, :1], export.keys[:3]):
        with pytest.raises(ValueError, match="mean nothing to it"):
            import_request(destination, dataclasses.replace(export, keys=keys, values=keys))
    assert state(destination) == before


def in_fp8(llm: LLM, scale: float = 1.0) -> LLM:
    config, (_, num_blocks, block_size, *_) = llm.model.config, llm.kv_cache.keys.shape
    shape = config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_dim
    scales = np.full((2, config.num_layers, config.num_kv_heads), scale, np.float32)
    llm.kv_cache = KVCache(*shape, dtype="fp8_e4m3", scales=scales)
    return llm


def test_fp8_codes_move_unrounded_and_only_between_caches_of_the_same_scales() -> None:
    source, destination = in_fp8(engine()), in_fp8(engine(block_size=8))
    stayed = in_fp8(engine()).generate([chat()], GREEDY)[0].token_ids
    request = start(source)
    export = KVExport.from_bytes(export_request(source, request).to_bytes())
    assert export.keys.dtype == np.uint8
    for other in (engine(), in_fp8(engine(), scale=2.0)):
        with pytest.raises(ValueError, match="mean nothing to it"):
            import_request(other, export)
    moved = import_request(destination, export)
    finish(destination)
    assert moved.output_token_ids == stayed


@pytest.fixture(scope="module")
def payload() -> bytes:
    source = engine()
    return export_request(source, start(source)).to_bytes()


@given(st.data())
def test_an_altered_or_shortened_payload_is_refused(payload: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(payload) - 1) | st.integers(0, 400))
    altered = bytearray(payload)
    altered[place] ^= 1 << data.draw(st.integers(0, 7))
    for wrong in (bytes(altered), payload[:place], payload + payload[:1]):
        with pytest.raises(ValueError, match="no intact KV payload"):
            KVExport.from_bytes(wrong)


def test_control_with_a_new_checksum_corrupted_kv_gives_other_tokens(payload: bytes) -> None:
    """The model reads the K and V that it is given: without the checksum nobody would notice."""
    export = KVExport.from_bytes(payload)
    corrupted = dataclasses.replace(export, values=-export.values)
    destination = engine()
    moved = import_request(destination, KVExport.from_bytes(corrupted.to_bytes()))
    finish(destination)
    assert moved.output_token_ids != run_alone(chat(), GREEDY)
    intact = import_request(engine_again := engine(), export)
    finish(engine_again)
    assert intact.output_token_ids == run_alone(chat(), GREEDY)


def test_a_request_is_exported_by_the_engine_that_has_it_and_once() -> None:
    source, destination, stranger = engine(), engine(), engine()
    request, namesake = start(source), start(stranger)
    assert request.request_id == namesake.request_id
    with pytest.raises(ValueError, match="nothing to export"):
        export_request(source, namesake)
    move_request(source, request, destination)
    with pytest.raises(ValueError, match="nothing to export"):
        move_request(source, request, destination)


def test_a_source_that_went_on_does_not_forget_its_request() -> None:
    source, destination = engine(), engine()
    request = start(source)
    export = export_request(source, request)
    import_request(destination, export)
    source.step()
    with pytest.raises(ValueError, match="has sampled since it was exported"):
        release_request(source, request, export)
    finish(source)
    assert request.output_token_ids == run_alone(chat(), GREEDY)


def in_process(script: str, payload: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run `script` in an interpreter of its own; `payload` is its standard input."""
    header = (
        "import json, os, signal, sys\n"
        "from tests.test_transfer import *\n"
        "received = sys.stdin.buffer.read()\n"
    )
    command = [sys.executable, "-c", header + script]
    return subprocess.run(command, input=payload, capture_output=True, cwd=ROOT, check=False)


def test_a_request_crosses_to_another_process() -> None:
    source = engine()
    request = start(source, PENALISED)
    export = export_request(source, request)
    done = in_process(
        "llm = engine(block_size=5)\n"
        "moved = import_request(llm, KVExport.from_bytes(received))\n"
        "finish(llm)\n"
        "print(json.dumps(moved.output_token_ids))",
        export.to_bytes(),
    )
    assert json.loads(done.stdout) == run_alone(chat(), PENALISED)


def test_a_peer_that_dies_while_it_sends_is_an_error_and_costs_nothing() -> None:
    destination = engine()
    busy = start(destination)
    before = state(destination)
    done = in_process(
        "llm = engine()\n"
        "payload = export_request(llm, start(llm)).to_bytes()\n"
        "sys.stdout.buffer.write(payload[: len(payload) // 2])\n"
        "sys.stdout.buffer.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        b"",
    )
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout) > 10_000
    with pytest.raises(ValueError, match="cut short"):
        import_request(destination, KVExport.from_bytes(done.stdout))
    assert state(destination) == before
    finish(destination)
    assert busy.output_token_ids == run_alone(chat(), GREEDY)


def test_a_peer_that_dies_while_it_imports_leaves_the_request_at_the_source() -> None:
    source = engine()
    request = start(source)
    done = in_process(
        "llm = engine()\n"
        "import_request(llm, KVExport.from_bytes(received))\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        export_request(source, request).to_bytes(),
    )
    assert done.returncode == -signal.SIGKILL
    finish(source)
    assert request.output_token_ids == run_alone(chat(), GREEDY)
    assert request.status is RequestStatus.FINISHED_LENGTH

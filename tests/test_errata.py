"""What book/errata.md calls *tested*: the arithmetic, and our engine where an entry names it."""

from math import ceil

import numpy as np
import pytest

from inferlab import lab
from inferlab.analysis import kv_bytes_per_token, saved_tokens
from inferlab.analysis.operators import BF16, StepShape, operators
from inferlab.analysis.roofline import (
    Ceilings,
    decode_floor_ms,
    step_floor_ms,
    weights_read_bytes,
)
from inferlab.analysis.tiled_traffic import tiled_intensity, tiled_traffic
from inferlab.engine import KVCacheManager, Request, SamplingParams, Scheduler
from inferlab.sim.devices import DEVICES
from inferlab.sim.shapes import SHAPES

LLAMA_8B = SHAPES["Llama-3.1-8B"]


def run_alone(prompt_token_ids, max_tokens, num_blocks, block_size):
    """Schedule one request to its end with a made-up model; return (request, tokens computed)."""
    manager = KVCacheManager(num_blocks, block_size)
    scheduler = Scheduler(manager)
    request = Request("0", prompt_token_ids, SamplingParams(max_tokens=max_tokens))
    scheduler.add_request(request)
    computed = 0
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        computed += output.total_num_scheduled_tokens
        sampled = {entry.request.request_id: [7] for entry in output.scheduled if entry.samples}
        scheduler.update_from_output(output, sampled)
    return request, computed


def test_paging_admits_all_64_arrivals_and_could_admit_128():
    slots, reservation, block_size, arrivals, used = 4096, 512, 16, 64, 32
    contiguous = min(arrivals, slots // reservation)
    ceiling = (slots // block_size) // ceil(used / block_size)
    assert (contiguous, min(arrivals, ceiling), ceiling) == (8, 64, 128)
    assert min(arrivals, ceiling) / contiguous == 8


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_waste_of_a_sequence_stays_below_one_block(block_size):
    wasted = [ceil(n / block_size) * block_size - n for n in range(1, 4 * block_size + 1)]
    assert max(wasted) == block_size - 1
    assert min(wasted) == 0


def test_blocks_grow_faster_than_the_memory_fraction():
    memory, fixed = 24.0, 1.0
    blocks = [fraction * memory - fixed for fraction in (0.5, 0.9)]
    assert np.isclose(0.9 / 0.5, 1.8)
    assert blocks[1] / blocks[0] > 1.8


def test_kv_bytes_per_token():
    qwen_half_billion = 2 * 24 * 2 * 64 * 2
    llama_8b = 2 * 32 * 8 * 128 * 2
    assert qwen_half_billion == 12_288
    assert llama_8b == 131_072
    assert 2_048 * llama_8b == 2**30 // 4
    assert 2_000 * llama_8b < 2**30 // 4


def test_request_that_can_never_fit_is_rejected_when_it_arrives():
    with pytest.raises(ValueError, match="27"):
        run_alone(list(range(8)), max_tokens=20, num_blocks=5, block_size=4)


def test_same_request_finishes_alone_once_the_pool_can_hold_it():
    request, computed = run_alone(list(range(8)), max_tokens=20, num_blocks=8, block_size=4)
    assert len(request.output_token_ids) == 20
    assert computed == 8 + 20 - 1


@pytest.mark.parametrize(("prompt_length", "hit_tokens"), [(6, 0), (33, 32)])
def test_prompt_that_fills_no_block_never_hits_the_prefix_cache(prompt_length, hit_tokens):
    manager = KVCacheManager(num_blocks=64, block_size=16)
    hits = []
    for name in "ABCDEFGH":
        request = Request(name, list(range(prompt_length)), SamplingParams(max_tokens=1))
        hit = manager.get_computed_blocks(request)
        hits.append(hit.num_tokens)
        new_tokens = prompt_length - hit.num_tokens
        assert manager.allocate_slots(request, new_tokens, hit.blocks) is not None
    assert hits == [0] + [hit_tokens] * 7


def test_python_hash_collides_by_construction():
    assert hash(-1) == hash(-2)
    assert hash((3, -1, 5)) == hash((3, -2, 5))


def test_half_precision_resolves_far_finer_than_the_published_difference():
    largest_step = float(np.spacing(np.float16(0.0999)))
    assert 100 * largest_step / 2 < 0.0076


def test_limits_of_an_a100():
    a100 = DEVICES["A100-80GB SXM"]
    assert round(a100.ridge()) == 153
    assert a100.peak("fp32") == 19.5e12 == 156e12 / 8


def test_a_decode_step_reads_all_weights_but_the_input_embedding():
    read = weights_read_bytes(LLAMA_8B, BF16, 1)
    assert round(2 * LLAMA_8B.num_parameters / 1e9, 2) == 16.06
    assert round(read / 1e9, 2) == 15.01
    assert round(decode_floor_ms(LLAMA_8B, BF16, 2039e9), 1) == 7.4


@pytest.mark.parametrize(
    ("m", "n", "k", "expected"),
    [(2048, 4096, 4096, 1024), (2048, 28672, 4096, 1303), (1024, 1024, 1024, 341)],
)
def test_intensity_of_products_in_half_precision(m, n, k, expected):
    assert round(tiled_intensity(m, n, k, m, n, 2)) == expected


def test_elements_of_a_cube_with_and_without_tiles():
    assert tiled_traffic(1024, 1024, 1024, 1, 1).loaded == 2 * 2**30
    assert tiled_traffic(1024, 1024, 1024, 128, 128).loaded == 16 * 2**20


@pytest.mark.parametrize(("context", "passes"), [(1, True), (700, True), (800, False)])
def test_the_context_decides_whether_any_batch_reaches_the_ridge(context, passes):
    endless = operators(LLAMA_8B, StepShape.decode(10**9, 10**9 * context), BF16)
    read = [one for one in endless if one.name == "attention"]
    weights = weights_read_bytes(LLAMA_8B, BF16, 1)
    # Activations are left out, as in the chapter's derivation.
    moved = weights + sum(one.bytes for one in read)
    intensity = sum(one.flop for one in endless) / moved
    assert (intensity > DEVICES["A100-80GB SXM"].ridge()) == passes


def test_the_floor_of_a_prompt_of_4096_tokens():
    prompt = operators(LLAMA_8B, StepShape.of([(4096, 4096, True)]), BF16)
    assert 210 < step_floor_ms(prompt, Ceilings(312e12, 2039e9)) < 220


def test_sixteen_tokens_take_sixteen_steps_the_first_of_them_with_the_prompt():
    scheduler = Scheduler(KVCacheManager(8, 16))
    request = Request("0", list(range(6)), SamplingParams(max_tokens=16))
    scheduler.add_request(request)
    steps = []
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        steps.append(output.total_num_scheduled_tokens)
        scheduler.update_from_output(output, {"0": [7]})
    assert steps == [6] + [1] * 15


def test_throughput_of_a_closed_loop_is_its_clients_over_the_latency():
    for row in lab.load("week01/closed-loop").where(workload="short-short"):
        in_flight = row["requests_per_s"] * row["e2e_mean_ms"] / 1000
        assert in_flight == pytest.approx(row["max_concurrency"], rel=0.03)


def test_eight_requests_a_second_fill_no_batch_of_64_and_make_1024_tokens():
    in_flight = 8 * (0.145 + 127 * 0.0112)
    assert in_flight == pytest.approx(12.5, abs=0.1)
    assert in_flight < 13
    assert 8 * 128 == 1_024 < 4_310


@pytest.mark.parametrize("rate", [8, 32, 96])
def test_the_load_generator_sends_in_exactly_the_time_that_the_rate_says(rate):
    for samples in lab.load("week01/request-rates").samples(
        engine="vllm", workload="short-short", request_rate=rate
    ):
        times = np.sort(samples["arrival_us"]) / 1e6
        # Counted from the start, the last of 128 is sent after 128 / rate; the first has a gap too.
        assert 127 / rate * 0.9 < times[-1] - times[0] <= 128 / rate + 0.02


def test_a_hit_rate_counts_tokens():
    found = saved_tokens(16, 445, 430, 16)
    assert found == 15 * 416
    assert round(100 * found / (16 * 445), 1) == 87.6
    assert round(100 * 15 / 16, 1) == 93.8


def test_a_cached_prefix_leaves_the_rest_and_one_reading_of_the_weights():
    multiplied = weights_read_bytes(LLAMA_8B, BF16, 1) / 2
    rest_ms, all_ms = (2e3 * multiplied * tokens / 312e12 for tokens in (128, 2176))
    read_ms = 2e3 * multiplied / 2.039e12
    assert (round(max(rest_ms, read_ms)), round(all_ms)) == (7, 105)


def test_a_token_of_the_70b_takes_320_kib():
    assert kv_bytes_per_token(80, 8, 128, 2) == 320 * 2**10


def test_with_more_than_128_waiting_sglangs_lpm_is_fcfs():
    data, answer = lab.upstream_answer("week06/queue-orders")
    orders = {len(queue["waiting"]): order for queue, order in zip(data["queues"], answer)}
    assert orders[128]["lpm"] != orders[128]["fcfs"]
    assert orders[129]["lpm"] == orders[129]["fcfs"]


def test_a_tree_may_find_fewer_tokens_than_blocks():
    both = lab.load("week06/blocks-against-tree")
    blocks, tree = (
        both.repeats("prefix_cache_hits_tokens", engine=engine) for engine in ("vllm", "sglang")
    )
    assert [found < by_blocks for found, by_blocks in zip(tree, blocks)] == [True, True, False]


def test_a_fork_sends_nothing_ahead_unless_the_program_waits():
    _, answer = lab.upstream_answer("week06/program")
    assert [answer[run]["commits"] for run in ("first", "second", "synced")] == [0, 0, 1]
    for run, is_found_by_all in (("first", False), ("second", False), ("synced", True)):
        least, *_, most = answer[run]["branches_found"]
        assert (least == most) == is_found_by_all

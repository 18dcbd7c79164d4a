"""Several processes compute what one does, with exactly the collectives that the chapter counts."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab import models
from inferlab.engine import LLM, LlamaModel, ModelConfig, SamplingParams, process_group
from inferlab.engine.attention import SoftmaxState
from inferlab.engine.layers import fused_linear, swiglu
from inferlab.engine.parallel import shard_config, shard_weights, tensor_parallel_model
from inferlab.engine.pipeline import PipelineStage, pipeline_schedule
from inferlab.engine.process_group import spawn
from inferlab.engine.speculation import NgramProposer
from inferlab.lab import upstream
from tests import parallel_jobs as jobs
from tests.oracle import MAX_NEW_TOKENS, disagreements, prompts

CHECKPOINT = models.path("tiny-chat")
CONFIG = ModelConfig.from_json(CHECKPOINT / "config.json")
ROOT = Path(__file__).parents[1]
GREEDY = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, ignore_eos=True)
OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "chunked": {"max_num_batched_tokens": 24},
    "no prefix cache": {"enable_prefix_caching": False},
    "preempting": {"num_blocks": 24},
}
FLOAT32 = 4  # bytes
SCORES = [np.linspace(low, low + 9, 15, dtype=np.float32).reshape(3, 5) for low in (300, 295, -60)]
VALUES = [np.random.default_rng(i).standard_normal((5, 8), dtype=np.float32) for i in range(3)]


@cache
def asked(name: str) -> list[list[int]]:
    """Some of the oracle's prompts, none longer than 257 tokens, and the longest of them again."""
    short = [prompt for prompt in prompts(LLM(models.path(name))) if len(prompt) <= 257][::9]
    return [*short, max(short, key=len)]


def softmax_states(num_ranks: int) -> list[SoftmaxState]:
    """Three queries over the keys of each rank; a fourth rank has none of them."""
    states = []
    for scores, values in zip(SCORES, VALUES):
        maximum = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - maximum)
        states.append(SoftmaxState(maximum, weights.sum(-1, keepdims=True), weights @ values))
    nothing = (np.full((3, 1), -np.inf), np.zeros((3, 1)), np.zeros((3, 8)))
    states.append(SoftmaxState(*(array.astype(np.float32) for array in nothing)))
    return states[:num_ranks]


def arrays(num_ranks: int) -> list[np.ndarray]:
    return [np.random.default_rng(r).standard_normal((5, 7), np.float32) for r in range(num_ranks)]


def serving(divide: Any, name: str, options: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    return jobs.serve, (divide, name, asked(name), GREEDY, options)


def common_jobs(num_ranks: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    return {
        "collectives": (jobs.collectives, (arrays(num_ranks),)),
        "forward": (jobs.divided_forward, (tensor_parallel_model, "tiny-chat")),
        "merge": (jobs.attend_over_ranks, (softmax_states(num_ranks),)),
        "micro-batches": (jobs.micro_batches, ()),
        "pipeline": serving(PipelineStage, "tiny-chat", {}),
        "as it comes": serving(tensor_parallel_model, "tiny-chat", {}),
    }


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    """The results of every job, by rank: processes are started once, because that is slow."""
    options = OPTIONS.items()
    return spawn(
        jobs.run_jobs,
        2,
        {
            **common_jobs(2),
            **{name: serving(tensor_parallel_model, "tiny-chat", o) for name, o in options},
            "speculating": serving(
                tensor_parallel_model, "tiny-chat", {"proposer": NgramProposer(1, 3, 4)}
            ),
            "one block": (jobs.forward_with_gate_up_in_one_block, ()),
            "moe forward": (jobs.divided_forward, (tensor_parallel_model, "tiny-moe")),
            "moe": serving(tensor_parallel_model, "tiny-moe", {}),
            "experts forward": (jobs.divided_forward, (jobs.EXPERT_PARALLEL, "tiny-moe")),
            "experts": serving(jobs.EXPERT_PARALLEL, "tiny-moe", {}),
            "experts held": (jobs.experts_held, ()),
        },
    )


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, Any]]:
    """tiny-chat has 4 heads and 2 KV heads: every KV head is on two ranks."""
    return spawn(jobs.run_jobs, 4, common_jobs(4))


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = request.getfixturevalue(
        "two_ranks" if request.param == 2 else "four_ranks"
    )
    assert len(results) == request.param
    return results


@pytest.fixture(scope="module")
def whole() -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and logits of the batch in one process."""
    return jobs.forward(LlamaModel.from_pretrained(CHECKPOINT))


def test_collectives_give_what_their_contracts_say(ranks: list[dict[str, Any]]) -> None:
    handed_in = arrays(len(ranks))
    last = len(ranks) - 1
    for rank, results in enumerate(ranks):
        (total, gathered, broadcast, *received), calls, num_bytes = results["collectives"]
        np.testing.assert_allclose(total, np.sum(handed_in, axis=0), rtol=1e-5, atol=1e-6)
        assert np.array_equal(total, ranks[0]["collectives"][0][0])
        assert np.array_equal(gathered, np.stack(handed_in))
        assert np.array_equal(broadcast, handed_in[last])
        assert np.array_equal(received, handed_in[:1] if rank == last else [])
        expected = ["all_reduce", "all_gather", "broadcast"]
        expected += {0: ["send"], last: ["receive"]}.get(rank, [])
        assert calls == dict.fromkeys(expected, 1)
        assert num_bytes == dict.fromkeys(expected, handed_in[0].nbytes)


def check_forward(
    ranks: list[dict[str, Any]], name: str, model: LlamaModel, num_layers: int
) -> None:
    """Logits of one process, with two all-reduces of the hidden states a layer and one gather."""
    hidden, logits = jobs.forward(model)
    for results in ranks:
        theirs, calls, num_bytes = results[name]
        np.testing.assert_allclose(theirs[0], hidden, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(theirs[1], logits, rtol=1e-4, atol=1e-4)
        assert np.array_equal(theirs[1], ranks[0][name][0][1]), "all ranks must sample alike"
        assert calls == {"all_reduce": 2 * num_layers, "all_gather": 1}
        assert num_bytes == {
            "all_reduce": 2 * num_layers * hidden.size * FLOAT32,
            "all_gather": logits.size // len(ranks) * FLOAT32,
        }


def test_a_forward_pass_takes_two_all_reduces_a_layer_and_one_gather(
    ranks: list[dict[str, Any]],
) -> None:
    check_forward(ranks, "forward", LlamaModel.from_pretrained(CHECKPOINT), CONFIG.num_layers)


@pytest.mark.parametrize("name", ["moe", "experts"])
def test_divided_experts_compute_what_the_whole_mixture_does(
    two_ranks: list[dict[str, Any]], name: str
) -> None:
    """Whether every expert is on both ranks by half (`moe`) or on one of them (`experts`)."""
    model = LlamaModel.from_pretrained(models.path("tiny-moe"))
    check_forward(two_ranks, f"{name} forward", model, model.config.num_layers)
    check_served(two_ranks, name, "tiny-moe")
    held = [results["experts held"][0] for results in two_ranks]
    assert held == [[[0, 1, 2, 3]] * model.config.num_layers, [[4, 5, 6, 7]] * 4]


def test_dividing_the_fused_gate_and_up_in_one_block_is_wrong(
    two_ranks: list[dict[str, Any]], whole: tuple[np.ndarray, np.ndarray]
) -> None:
    logits = two_ranks[0]["one block"][0][1]
    assert logits.shape == whole[1].shape
    assert np.abs(logits - whole[1]).max() > 1


@cache
def served_alone(name: str) -> list[list[int]]:
    completions = LLM(models.path(name), num_blocks=2048).generate(asked(name), GREEDY)
    return [completion.token_ids for completion in completions]


def check_served(ranks: list[dict[str, Any]], job: str, name: str = "tiny-chat") -> None:
    """Tokens equal those of one process; the same ones, of the same steps, on every rank."""
    tokens, counts, steps = ranks[0][job][0]
    if tokens != served_alone(name):
        assert disagreements(LLM(models.path(name), num_blocks=2048), asked(name), tokens) <= 1
    for results in ranks:
        assert results[job][0] == (tokens, counts, steps)
    num_tokens = sum(num_tokens for num_tokens, _ in steps)
    assert num_tokens > sum(map(len, tokens)), "prompts were computed, not only the output"


@pytest.mark.parametrize("name", OPTIONS)
def test_two_ranks_serve_the_same_tokens(two_ranks: list[dict[str, Any]], name: str) -> None:
    check_served(two_ranks, name)
    (_, counts, steps), calls, num_bytes = two_ranks[0][name]
    num_reduced = sum(num_tokens for num_tokens, _ in steps)
    num_sampled = sum(samples for _, samples in steps)
    assert calls["all_reduce"] == 2 * CONFIG.num_layers * len(steps)
    assert num_bytes == {
        "all_reduce": 2 * CONFIG.num_layers * num_reduced * CONFIG.hidden_size * FLOAT32,
        "all_gather": num_sampled * CONFIG.vocab_size // 2 * FLOAT32,
    }
    preempted, cached = np.sum(counts, axis=0)
    assert (preempted > 0) == (name == "preempting")
    assert (max(num_tokens for num_tokens, _ in steps) <= 24) == (name == "chunked")
    assert (cached > 0) <= (name != "no prefix cache")
    if name == "chunked":
        assert cached > 0


def test_two_ranks_verify_drafts_alike(two_ranks: list[dict[str, Any]]) -> None:
    check_served(two_ranks, "speculating")
    verifications, samples = (
        sum(samples for _, samples in two_ranks[0][name][0][2])
        for name in ("speculating", "as it comes")
    )
    assert verifications < samples, "drafts were accepted"


@pytest.mark.slow
def test_four_ranks_serve_the_same_tokens_with_copied_kv_heads(
    four_ranks: list[dict[str, Any]],
) -> None:
    assert CONFIG.num_kv_heads < 4
    check_served(four_ranks, "as it comes")


def test_a_pipeline_serves_the_same_tokens_for_one_message_a_step(
    ranks: list[dict[str, Any]],
) -> None:
    check_served(ranks, "pipeline")
    last = len(ranks) - 1
    for rank, results in enumerate(ranks):
        (_, _, steps), calls, num_bytes = results["pipeline"]
        hidden = sum(num_tokens for num_tokens, _ in steps) * CONFIG.hidden_size * FLOAT32
        logits = sum(samples for _, samples in steps) * CONFIG.vocab_size * FLOAT32
        expected = {"broadcast": logits}
        expected |= {"send": hidden} if rank < last else {}
        expected |= {"receive": hidden} if rank > 0 else {}
        assert num_bytes == expected
        assert all(calls[name] == len(steps) for name in ("send", "receive") if name in calls)


def test_micro_batches_pass_through_the_pipeline_unmixed(
    ranks: list[dict[str, Any]], whole: tuple[np.ndarray, np.ndarray]
) -> None:
    hidden = ranks[-1]["micro-batches"][0]
    lengths = [len(ids) for ids, _ in jobs.CHUNKS]
    assert [len(part) for part in hidden] == lengths
    rows = jobs.batch_rows()
    np.testing.assert_allclose(np.concatenate(hidden), whole[0][rows], rtol=1e-4, atol=1e-4)
    assert not np.allclose(np.concatenate(ranks[0]["micro-batches"][0]), whole[0][rows], atol=0.1)


@given(num_stages=st.integers(1, 8), num_micro_batches=st.integers(1, 20))
def test_the_schedule_keeps_the_order_and_idles_as_little_as_it_can(
    num_stages: int, num_micro_batches: int
) -> None:
    schedule = pipeline_schedule(num_stages, num_micro_batches)
    done: list[set[int]] = [set() for _ in range(num_stages)]
    for tick in schedule:
        before = [set(stage) for stage in done]
        for stage, micro_batch in enumerate(tick):
            if micro_batch is not None:
                assert stage == 0 or micro_batch in before[stage - 1]
                done[stage].add(micro_batch)
    assert all(stage == set(range(num_micro_batches)) for stage in done)
    idle = sum(tick.count(None) for tick in schedule)
    bubble = (num_stages - 1) / (num_micro_batches + num_stages - 1)
    assert idle == pytest.approx(bubble * len(schedule) * num_stages)
    # The last stage cannot begin before num_stages - 1 ticks, nor do two micro-batches in one.
    assert len(schedule) == num_micro_batches + num_stages - 1


def test_softmax_states_of_all_ranks_merge_where_plain_sums_overflow(
    ranks: list[dict[str, Any]],
) -> None:
    scores = np.concatenate(SCORES[: len(ranks)], axis=-1).astype(np.float64)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights @ np.concatenate(VALUES[: len(ranks)]) / weights.sum(-1, keepdims=True)
    for results in ranks:
        output, calls, num_bytes = results["merge"]
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
        assert calls == {"all_gather": 1}
        assert num_bytes == {"all_gather": 3 * (8 + 2) * FLOAT32}
    with np.errstate(over="ignore", invalid="ignore"):
        sums = sum(state.output * np.exp(state.maximum) for state in softmax_states(2))
    assert not np.isfinite(sums).any(), "the control: sums sent without their maximum"


def fused_rows(num_heads: int, num_kv_heads: int, rank: int, size: int) -> list[int]:
    """Rows of q, k and v, numbered through, that a rank holds in this order; heads of 2 rows."""
    rows = np.arange(2 * (num_heads + 2 * num_kv_heads))[:, None]
    matrices = np.split(rows, [2 * num_heads, 2 * (num_heads + num_kv_heads)])
    names = [f"layers.0.{name}_proj.weight" for name in "qkv"]
    weights = dict(zip(names, matrices)) | {"lm_head.weight": np.zeros((size, 1))}
    shards = shard_weights(weights, shaped(num_heads, num_kv_heads), rank, size)
    return [int(row) for name in names for row in shards[name][:, 0]]


def shaped(num_heads: int, num_kv_heads: int, size: int = 1) -> ModelConfig:
    """A model of which the heads alone decide whether `size` ranks can share it."""
    return replace(
        CONFIG,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate_size=3 * size,
        vocab_size=5 * size,
    )


HEADS = [
    (kv * per_group, kv, size)
    for kv in (1, 2, 3, 4, 8)
    for per_group in (1, 2, 3, 4)
    for size in (1, 2, 3, 4, 6, 8)
]


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "size"), HEADS)
def test_every_query_head_finds_its_kv_head_on_its_rank(
    num_heads: int, num_kv_heads: int, size: int
) -> None:
    try:
        shape = shard_config(shaped(num_heads, num_kv_heads, size), size)
    except ValueError:
        divides = max(num_kv_heads, size) % min(num_kv_heads, size) == 0
        assert num_heads % size or not divides
        return
    group = num_heads // num_kv_heads
    found = []
    for rank in range(size):
        heads = np.array(fused_rows(num_heads, num_kv_heads, rank, size)[::2]) // 2
        query_heads, kv_heads = np.split(heads, [shape.num_heads])
        keys, values = np.split(kv_heads - num_heads, 2)
        assert np.array_equal(keys, values - num_kv_heads)
        assert len(keys) == shape.num_kv_heads
        local = np.arange(shape.num_heads) // (shape.num_heads // shape.num_kv_heads)
        assert np.array_equal(keys[local], query_heads // group)
        found += query_heads.tolist()
    assert found == list(range(num_heads))


@pytest.mark.engines
@pytest.mark.slow
def test_the_rows_of_qkv_are_those_that_vllm_loads() -> None:
    script = (Path(__file__).parent / "upstream" / "vllm_qkv_shards.py").read_text()
    accepted = 0
    for (num_heads, num_kv_heads, size), theirs in zip(HEADS, upstream(script, HEADS)):
        try:
            shard_config(shaped(num_heads, num_kv_heads, size), size)
        except ValueError:
            assert theirs is None
            continue
        accepted += 1
        ours = [fused_rows(num_heads, num_kv_heads, rank, size) for rank in range(size)]
        assert ours == theirs
    assert 20 < accepted < len(HEADS)


@given(
    size=st.integers(1, 4),
    multiples=st.tuples(*[st.integers(1, 4)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_partial_sums_of_all_ranks_add_up_to_the_whole_mlp(
    size: int, multiples: tuple[int, int, int], seed: int
) -> None:
    """gate and up divided by columns, down by rows, on random shapes."""
    rng = np.random.default_rng(seed)
    hidden, columns = 4 * multiples[0], size * multiples[1]
    prefix = "model.layers.0.mlp"
    shapes = {"gate": (columns, hidden), "up": (columns, hidden), "down": (hidden, columns)}
    weights = {f"{prefix}.{n}_proj.weight": rng.standard_normal(s) for n, s in shapes.items()}
    weights["lm_head.weight"] = np.zeros((size, 1))
    x = rng.standard_normal((multiples[2], hidden))

    def mlp(held: dict[str, np.ndarray]) -> np.ndarray:
        names = [f"{prefix}.{part}_proj" for part in ("gate", "up")]
        inner = swiglu(fused_linear(held, *names)(x))
        return fused_linear(held, f"{prefix}.down_proj")(inner)

    shards = [shard_weights(weights, CONFIG, rank, size) for rank in range(size)]
    np.testing.assert_allclose(sum(map(mlp, shards)), mlp(weights), rtol=1e-9, atol=1e-9)
    held = sum(array.size for shard in shards for array in shard.values())
    assert held == sum(array.size for array in weights.values()), "nothing is held twice"


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        ({}, 3, "4 attention heads cannot be divided over 3 ranks"),
        (
            {"num_heads": 12, "num_kv_heads": 6, "intermediate_size": 768},
            4,
            "6 KV heads .* 4 ranks",
        ),
        ({"intermediate_size": 770}, 4, "770 FFN columns cannot be divided over 4 ranks"),
        ({"vocab_size": 641}, 2, "641 vocabulary entries cannot be divided over 2 ranks"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(
    change: dict[str, int], size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shard_config(replace(CONFIG, **change), size)


def test_experts_that_do_not_divide_are_refused() -> None:
    eight = replace(shaped(6, 3, 3), num_experts=8, num_experts_per_token=2)
    assert shard_config(eight, 3).intermediate_size == 3
    with pytest.raises(ValueError, match="8 experts cannot be divided over 3 ranks"):
        shard_config(eight, 3, expert_parallel=True)
    with pytest.raises(ValueError, match="0 experts cannot be divided over 2 ranks"):
        shard_config(CONFIG, 2, expert_parallel=True)


def leftovers(pids: list[int], ports: set[int]) -> tuple[list[int], set[int]]:
    """Those of the processes that still run, and those of the ports on which someone listens."""
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
    return [pid for pid in pids if psutil.pid_exists(pid)], ports & listening


def pids_in(folder: Path, num_ranks: int) -> list[int]:
    """The ranks' process ids, once all of them have written theirs."""
    deadline = time.monotonic() + 120
    while len(pids := [int(text) for p in folder.iterdir() if (text := p.read_text())]) < num_ranks:
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.05)
    return pids


LOST = "all_reduce number 2 (4000 bytes) cannot finish: rank 1 died, or made no matching call"


@pytest.mark.parametrize(
    ("victim", "survivor"),
    [
        (1, f"Rank 0 raised PeerLostError: {LOST} within 600 s."),
        pytest.param(0, "Rank 1 did not return in time.", marks=pytest.mark.slow),
    ],
)
def test_a_killed_rank_ends_the_others_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: int, survivor: str
) -> None:
    """Rank 0 waits in a collective for rank 1, which sleeps in none and so notices nothing."""
    if victim == 0:
        monkeypatch.setattr(process_group, "GRACE_SECONDS", 0.5)
    outcome: list[RuntimeError] = []

    def parent() -> None:
        with pytest.raises(RuntimeError) as raised:
            spawn(jobs.wait_for_ever, 2, tmp_path, collective_timeout=600)
        outcome.append(raised.value)

    thread = threading.Thread(target=parent)
    thread.start()
    pids = pids_in(tmp_path, 2)
    connections = [c for pid in pids for c in psutil.Process(pid).net_connections("tcp")]
    ports = {c.laddr.port for c in connections if c.status == "LISTEN"}
    assert leftovers(pids, ports) == (pids, ports)
    assert len(ports) >= 2
    assert {c.laddr.ip for c in connections} == {"127.0.0.1"}, "nothing is open to the network"
    os.kill(int((tmp_path / str(victim)).read_text()), signal.SIGKILL)
    thread.join(timeout=60)  # a tenth of collective_timeout: the death was noticed, not waited for
    killed = f"Rank {victim} died of SIGKILL before it returned."
    assert sorted(str(outcome[0]).splitlines()) == sorted([killed, survivor])
    assert leftovers(pids, ports) == ([], set())


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up_after_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "GRACE_SECONDS", 0.5)
    with pytest.raises(RuntimeError) as raised:
        spawn(jobs.wait_for_ever, 2, tmp_path, collective_timeout=3)
    assert str(raised.value).splitlines() == [
        "Rank 1 did not return in time.",
        f"Rank 0 raised PeerLostError: {LOST} within 3 s.",
    ]
    assert leftovers(pids_in(tmp_path, 2), set()) == ([], set())


@pytest.mark.slow
def test_an_error_of_one_rank_comes_first_and_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a module written at run time, as the reader's code is run."""
    (tmp_path / "scratch.py").write_text(
        "import numpy as np\n"
        "def fail_on_rank_1(group):\n"
        "    if group.rank == 1:\n"
        "        raise ValueError('this rank has had enough')\n"
        "    group.all_reduce(np.ones(1000, np.float32))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    environment = dict(os.environ)
    with pytest.raises(RuntimeError) as raised:
        spawn(importlib.import_module("scratch").fail_on_rank_1, 2)
    first, second = str(raised.value).splitlines()
    assert first == "Rank 1 raised ValueError: this rank has had enough"
    assert "all_reduce number 1 (4000 bytes) cannot finish: rank 1 died" in second
    assert "in fail_on_rank_1" in raised.value.__notes__[0]
    assert os.environ == environment


@pytest.mark.slow
def test_the_ranks_end_with_their_parent(tmp_path: Path) -> None:
    """Killed with SIGKILL the parent cleans nothing up, as when a notebook's kernel is killed."""
    program = (
        "from pathlib import Path\n"
        "from inferlab.engine.process_group import spawn\n"
        "from tests.parallel_jobs import wait_for_ever\n"
        "if __name__ == '__main__':\n"
        f"    spawn(wait_for_ever, 2, Path({str(tmp_path)!r}))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    pids = pids_in(tmp_path, 2)
    assert leftovers(pids, set()) == (pids, set())
    parent.kill()
    parent.wait()
    psutil.wait_procs([psutil.Process(pid) for pid in leftovers(pids, set())[0]], timeout=30)
    assert leftovers(pids, set()) == ([], set())

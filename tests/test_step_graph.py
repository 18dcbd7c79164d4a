"""Capture and replay: nothing stale is computed, nothing of the padding leaks, every launch counts.

These tests run the recorded graph of a CPU. With a GPU they run a real `torch.cuda.CUDAGraph`
instead, with the same assertions; none was present where they were written.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inferlab import models
from inferlab.engine import LLM, Request, SamplingParams, SequenceChunk, make_batch
from inferlab.engine.kv_cache import KVCache
from inferlab.engine.model import Batch, LlamaModel
from inferlab.engine.step_graph import (
    GraphMode,
    LaunchLog,
    StepGraph,
    capture_sizes,
    dispatch,
    padded_size,
    padding_waste,
)
from inferlab.engine.torch_llama import DEVICE, GraphedLlama, GraphedStep
from inferlab.lab import upstream
from inferlab.lab.paths import ROOT
from inferlab.lab.upstream import SCRIPTS
from tests.oracle import MAX_NEW_TOKENS, disagreements

CHECKPOINT = models.path("tiny-chat")
SIZES = [1, 2, 4, 8]
NUM_BLOCKS, BLOCK_SIZE = 24, 16
GREEDY = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, ignore_eos=True)
PROMPTS = [[(7 * i + 11 * j) % 640 for j in range(4 + 5 * i)] for i in range(6)]

ladders = st.lists(st.integers(1, 600), min_size=1, unique=True).map(sorted)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small take longer to hand to a second thread than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The ladder of sizes and the dispatch


@given(ladders, st.integers(1, 700))
def test_a_step_is_padded_to_the_smallest_size_that_holds_it(sizes: list[int], tokens: int) -> None:
    padded = padded_size(tokens, sizes)
    assert padded == min((size for size in sizes if size >= tokens), default=None)


@given(ladders, st.lists(st.integers(1, 700)))
def test_padding_waste_counts_the_rows_that_nobody_asked_for(
    sizes: list[int], steps: list[int]
) -> None:
    rows = [list(range(padded_size(tokens, sizes) or tokens)) for tokens in steps]
    assert padding_waste(steps, sizes) == sum(len(row[tokens:]) for row, tokens in zip(rows, steps))


def test_padding_waste_of_a_batch_that_drains_is_exact() -> None:
    """9 runs eagerly, 8, 4, 2 and 1 fit, 7, 6 and 5 waste 1, 2 and 3 tokens, and 3 wastes 1."""
    assert padding_waste([9, 8, 7, 6, 5, 4, 3, 2, 1], SIZES) == 7
    assert padding_waste(range(1, 9), range(1, 9)) == 0, "control: every size captured"


@given(st.integers(1, 700), st.integers(1, 9000))
def test_a_full_batch_of_decodes_is_never_padded(max_num_seqs: int, max_tokens: int) -> None:
    sizes = capture_sizes(max_num_seqs, max_tokens)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] <= min(512, 2 * max_num_seqs, max_tokens)
    if max_num_seqs <= min(512, max_tokens):
        assert padded_size(max_num_seqs, sizes) == max_num_seqs


@given(ladders, st.integers(1, 700), st.integers(1, 700), st.booleans())
def test_dispatch_pads_only_what_it_has_a_graph_for(
    sizes: list[int], tokens: int, max_num_seqs: int, uniform: bool
) -> None:
    for mode in GraphMode:
        runtime, padded = dispatch(mode, tokens, uniform, sizes, max_num_seqs)
        assert runtime in (GraphMode.NONE, GraphMode.PIECEWISE, GraphMode.FULL)
        if runtime is GraphMode.NONE:
            assert padded == tokens
        else:
            assert padded == padded_size(tokens, sizes)
    assert dispatch(GraphMode.FULL, sizes[-1] + 1, uniform, sizes, max_num_seqs) == (
        GraphMode.NONE,
        sizes[-1] + 1,
    )


@pytest.mark.parametrize(
    ("mode", "decode", "decode_above_max_num_seqs", "mixed"),
    [
        ("NONE", ("NONE", 3), ("NONE", 5), ("NONE", 3)),
        ("PIECEWISE", ("PIECEWISE", 4), ("PIECEWISE", 8), ("PIECEWISE", 4)),
        ("FULL", ("FULL", 4), ("FULL", 8), ("FULL", 4)),
        ("FULL_DECODE_ONLY", ("FULL", 4), ("NONE", 5), ("NONE", 3)),
        ("FULL_AND_PIECEWISE", ("FULL", 4), ("PIECEWISE", 8), ("PIECEWISE", 4)),
    ],
)
def test_the_dispatch_table(
    mode: str,
    decode: tuple[str, int],
    decode_above_max_num_seqs: tuple[str, int],
    mixed: tuple[str, int],
) -> None:
    """Sizes 1, 2, 4, 8 and five sequences at most, so that five decodes fit no decode graph."""
    steps = [(3, True), (5, True), (3, False)]
    found = [dispatch(GraphMode[mode], *step, SIZES, max_num_seqs=5) for step in steps]
    expected = [decode, decode_above_max_num_seqs, mixed]
    assert [(runtime.name, padded) for runtime, padded in found] == expected


@pytest.mark.engines
@pytest.mark.slow
def test_sizes_and_dispatch_equal_those_of_vllm() -> None:
    """Its real dispatcher, over every mode, number of tokens and kind of step."""
    limits = [(256, 8192), (64, 2048), (5, 2048), (1, 1), (3, 2), (100, 64), (600, 9000), (7, 12)]
    ladders = [([1, 2, 4, 8], 5), ([1, 2, 4, 8], 8), (capture_sizes(20, 64), 20), ([3, 7], 100)]
    steps = [(tokens, uniform) for tokens in range(1, 45) for uniform in (True, False)]
    cases = [
        {"mode": mode.name, "sizes": sizes, "max_num_seqs": max_num_seqs, "steps": steps}
        for mode in GraphMode
        for sizes, max_num_seqs in ladders
    ]
    script = (SCRIPTS / "vllm_cudagraph_dispatcher.py").read_text()
    theirs = upstream(script, {"limits": limits, "cases": cases})
    assert [capture_sizes(*limit) for limit in limits] == theirs["sizes"]
    seen = set()
    for case, answers in zip(cases, theirs["dispatch"]):
        mode = GraphMode[case["mode"]]
        for step, answer in zip(steps, answers):
            runtime, padded = dispatch(mode, *step, case["sizes"], case["max_num_seqs"])
            assert [runtime.name, padded] == answer, (case, step)
            seen.add((mode, step[1], runtime))
    assert len(cases) == 20
    both = (GraphMode.FULL_AND_PIECEWISE, True)
    assert {(*both, GraphMode.FULL), (*both, GraphMode.PIECEWISE), (*both, GraphMode.NONE)} <= seen


# The launch count and the graph


class Doubler:
    """A step with every kind of operator: out of place, in place, view, several results."""

    def __init__(self) -> None:
        self.inputs = {"x": torch.zeros(3, 4, device=DEVICE)}
        self.state = {"total": torch.zeros(4, device=DEVICE)}
        self.result = torch.zeros(4, device=DEVICE)

    def step(self) -> None:
        doubled = self.inputs["x"] * 2  # 1
        largest, _ = doubled.max(dim=0)  # 2
        self.state["total"].add_(largest)  # 3
        self.result.view(2, 2).flatten().copy_(self.state["total"])  # 4: the views are free

    def replay(self, graph: StepGraph, x: torch.Tensor) -> list[float]:
        self.inputs["x"].copy_(x)
        graph.replay(self.inputs, self.state)
        return list(self.result.tolist())


def test_operators_that_compute_are_counted_and_views_are_not() -> None:
    doubler = Doubler()
    with LaunchLog() as log:
        doubler.step()
    assert len(log.launches) == 4
    assert StepGraph(doubler.step, doubler.inputs, doubler.state).num_operators == 4


def test_counting_launches_leaves_triton_for_the_kernels_to_import() -> None:
    """Imported any earlier, Triton would be compiled for a GPU and not interpreted."""
    script = (
        "import sys, torch; from inferlab.engine.step_graph import LaunchLog\n"
        "with LaunchLog() as log: torch.ones(3) * 2\n"
        "assert len(log.launches) == 2; print('triton' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout == "False\n", run.stderr


def test_a_replay_computes_on_what_the_buffers_hold_now() -> None:
    doubler = Doubler()
    graph = StepGraph(doubler.step, doubler.inputs, doubler.state)
    doubler.state["total"].zero_()  # a capture may have run the step
    x = torch.arange(12.0, device=DEVICE).view(3, 4)
    assert doubler.replay(graph, x) == [16, 18, 20, 22]
    assert doubler.replay(graph, -x) == [16, 16, 16, 16], "state is carried from step to step"


def test_an_input_that_was_not_written_is_an_error_and_not_the_last_answer() -> None:
    doubler = Doubler()
    graph = StepGraph(doubler.step, doubler.inputs, doubler.state)
    doubler.replay(graph, torch.ones(3, 4))
    before = doubler.state["total"].clone()
    with pytest.raises(ValueError, match="Not written since the last replay: x"):
        graph.replay(doubler.inputs, doubler.state)
    assert torch.equal(doubler.state["total"], before), "a refused replay computes nothing"
    doubler.replay(graph, torch.ones(3, 4))
    assert torch.equal(doubler.state["total"], before + 2), "the graph is usable afterwards"


@pytest.mark.parametrize("kind", ["inputs", "state"])
@pytest.mark.parametrize("change", ["reallocated", "reshaped", "restrided"])
def test_a_buffer_that_moved_is_an_error_and_not_a_wrong_answer(kind: str, change: str) -> None:
    doubler = Doubler()
    graph = StepGraph(doubler.step, doubler.inputs, doubler.state)
    buffers = getattr(doubler, kind)
    (name,) = buffers
    old = buffers[name]
    buffers[name] = {
        "reallocated": old.clone() + 1,
        "reshaped": old[:2],
        "restrided": old.as_strided(old.shape, [0] * old.dim()),
    }[change]
    with pytest.raises(ValueError, match=f"Buffer '{name}' has address"):
        graph.replay(doubler.inputs, doubler.state)


def test_without_the_check_a_moved_input_would_give_a_wrong_answer() -> None:
    """Control: the memory of the capture is read, whatever the name stands for now."""
    doubler = Doubler()
    graph = StepGraph(doubler.step, doubler.inputs, doubler.state)
    doubler.state["total"].zero_()
    doubler.inputs["x"] = torch.ones(3, 4, device=DEVICE)
    graph._run()
    assert doubler.result.tolist() == [0, 0, 0, 0]


def test_a_step_that_reads_a_value_on_the_host_is_refused() -> None:
    x = torch.zeros(3, device=DEVICE)

    def step() -> None:
        x.mul_(x.sum().item())

    with pytest.raises(ValueError, match="reads a tensor's value on the host"):
        StepGraph(step, {"x": x}, {})


# The engine's model


@pytest.fixture(scope="module")
def model() -> LlamaModel:
    return LlamaModel.from_pretrained(CHECKPOINT)


class Setup:
    """A model on graphs with a cache of its own, whose sequences use blocks 1, 2, … in order."""

    def __init__(self, model: LlamaModel, mode: GraphMode, cls: type = GraphedLlama) -> None:
        self.cache = model.new_kv_cache(NUM_BLOCKS, BLOCK_SIZE)
        self.graphed: GraphedLlama = cls(model, self.cache, mode, SIZES, max_num_batched_tokens=64)

    def pages(self) -> tuple[np.ndarray, np.ndarray]:
        """K and V; a copy."""
        keys, values = (
            torch.as_tensor(a).cpu().numpy() for a in (self.cache.keys, self.cache.values)
        )
        return keys.copy(), values.copy()

    @property
    def last_step(self) -> GraphedStep:
        (step,) = self.graphed.steps
        self.graphed.steps.clear()
        return step


def chunk(sequence: int, start: int, num_tokens: int) -> SequenceChunk:
    """Tokens of one of eleven sequences of up to two blocks."""
    tokens = np.random.default_rng([sequence, start]).integers(6, 640, num_tokens).tolist()
    return SequenceChunk(tokens, start, [1 + 2 * sequence, 2 + 2 * sequence])


def batch(*chunks: tuple[int, int, int]) -> Batch:
    return make_batch([chunk(*each) for each in chunks], BLOCK_SIZE)


def steps() -> Iterator[Batch]:
    """Prefills, mixed steps, and decode-only steps of every size up to eleven."""
    yield batch(*((sequence, 0, 3 + sequence % 3) for sequence in range(11)))
    yield batch((0, 3, 1), (1, 4, 2))
    yield batch((0, 4, 5), (2, 5, 1), (3, 3, 1))
    for num_sequences in range(1, 12):
        position = 10 + num_sequences
        yield batch(*((sequence, position, 1) for sequence in range(num_sequences)))


@pytest.mark.parametrize("mode", GraphMode)
def test_the_graphed_step_equals_the_models_forward(mode: GraphMode, model: LlamaModel) -> None:
    """Hidden states, K and V, for prefill, mixed and decode-only steps of 1 to 11 tokens."""
    setup, cache = Setup(model, mode), model.new_kv_cache(NUM_BLOCKS, BLOCK_SIZE)
    for step in steps():
        expected = model.forward(step, cache)
        np.testing.assert_allclose(setup.graphed.forward(step, setup.cache), expected, atol=2e-4)
    for mine, theirs in zip(setup.pages(), (cache.keys, cache.values)):
        np.testing.assert_allclose(mine[:, 1:], theirs[:, 1:], atol=2e-4)
    runs = setup.graphed.steps
    assert {run.num_tokens for run in runs} >= set(range(1, 12))
    assert {run.mode.name for run in runs} == {"NONE", *mode.value}


def test_launches_are_counted_exactly(model: LlamaModel) -> None:
    """One graph, one launch; in pieces, one graph more than layers and what attention launches."""
    layers = model.config.num_layers
    counts = {}
    for mode in (GraphMode.NONE, GraphMode.PIECEWISE, GraphMode.FULL):
        setup = Setup(model, mode)
        setup.graphed.forward(batch(*((sequence, 9, 1) for sequence in range(4))), setup.cache)
        run = setup.last_step
        assert run[:3] == (mode, 4, 4)
        counts[mode] = run.num_launches
    assert counts[GraphMode.FULL] == 1
    graphed = Setup(model, GraphMode.FULL_AND_PIECEWISE).graphed
    (whole,) = graphed._graphs[GraphMode.FULL, 4]
    pieces = graphed._graphs[GraphMode.PIECEWISE, 4]
    captured = [piece.num_operators for piece in pieces if isinstance(piece, StepGraph)]
    assert isinstance(whole, StepGraph)
    assert counts[GraphMode.NONE] == whole.num_operators
    assert len(captured) == layers + 1
    assert len(pieces) == 2 * layers + 1
    in_attention = counts[GraphMode.NONE] - sum(captured)
    assert in_attention % layers == 0
    assert counts[GraphMode.PIECEWISE] == layers + 1 + in_attention
    assert len(set(captured[1:-1])) == 1, "the inner layers are alike"


def test_a_batch_above_the_largest_graph_runs_eagerly_and_unpadded(model: LlamaModel) -> None:
    setup = Setup(model, GraphMode.FULL)
    setup.graphed.forward(batch(*((sequence, 0, 1) for sequence in range(8))), setup.cache)
    assert setup.last_step == (GraphMode.FULL, 8, 8, 1)
    setup.graphed.forward(batch(*((sequence, 1, 1) for sequence in range(9))), setup.cache)
    run = setup.last_step
    assert run[:3] == (GraphMode.NONE, 9, 9)
    assert run.num_launches > 100


def poison(setup: Setup) -> None:
    """NaN in every place that a padding row owns, and ids of real blocks in its inputs."""
    for pages in (setup.cache.keys, setup.cache.values):
        pages[:, 0] = np.nan
    for buffer in (setup.graphed._hidden, setup.graphed._queries, setup.graphed._attended):
        buffer[3:] = torch.nan
    for name, value in (("token_ids", 639), ("positions", 20), ("slots", 70), ("tables", 4)):
        setup.graphed.inputs[name][3:] = value


@pytest.mark.parametrize("mode", [GraphMode.PIECEWISE, GraphMode.FULL])
def test_padding_rows_never_reach_a_real_row(mode: GraphMode, model: LlamaModel) -> None:
    """Three tokens in a graph of four: the same bits, whether the fourth row is clean or poison."""
    results = []
    for is_poisoned in (False, True):
        setup = Setup(model, mode)
        setup.graphed.forward(batch(*((sequence, 0, 6) for sequence in range(8))), setup.cache)
        before = setup.pages()
        setup.graphed.steps.clear()
        if is_poisoned:
            poison(setup)
        step = batch((0, 6, 1), (1, 6, 1), (5, 6, 1))
        hidden = setup.graphed.forward(step, setup.cache)
        assert setup.last_step[:3] == (mode, 3, 4)
        results.append([hidden, *(pages[:, 1:] for pages in setup.pages())])
        for old, new in zip(before, setup.pages()):
            changed = np.argwhere((old != new)[:, 1:].any(axis=(0, 3, 4)))
            assert changed.tolist() == [[0, 6], [2, 6], [10, 6]], "blocks 1, 3 and 11, slot 6"
    for clean, poisoned in zip(*results):
        np.testing.assert_array_equal(clean, poisoned)
        assert np.isfinite(poisoned).all()


class StalePadding(GraphedLlama):
    """Wrong on purpose: the rows after the batch keep what the last step left in them."""

    def _write_inputs(self, batch: Batch, size: int) -> None:
        GraphedLlama._write_inputs(self, batch, len(batch.token_ids))
        for buffer in self.inputs.values():
            buffer[:1] = buffer[:1].clone()


def test_stale_padding_would_write_into_a_block_that_has_a_new_owner(model: LlamaModel) -> None:
    """Control: the fourth sequence of the step before is gone, and its block is written again."""
    for cls, is_damaged in ((GraphedLlama, False), (StalePadding, True)):
        setup = Setup(model, GraphMode.FULL, cls)
        setup.graphed.forward(batch(*((sequence, 6, 1) for sequence in range(4))), setup.cache)
        for pages in (setup.cache.keys, setup.cache.values):
            pages[:, 7] = 5.0  # block 7, slot 6: the fourth sequence's, now somebody else's
        setup.graphed.forward(batch(*((sequence, 7, 1) for sequence in range(3))), setup.cache)
        assert (setup.pages()[0][:, 7] != 5.0).any() == is_damaged


def test_a_replay_on_another_cache_is_refused_and_eager_steps_follow_it(model: LlamaModel) -> None:
    setup = Setup(model, GraphMode.FULL)
    setup.graphed.forward(batch((0, 0, 1)), setup.cache)
    other = Setup(model, GraphMode.FULL).cache
    for cache in (other, reallocated(setup.cache)):
        with pytest.raises(ValueError, match="Buffer 'keys' has address"):
            setup.graphed.forward(batch((0, 1, 1)), cache)
    plain = model.new_kv_cache(NUM_BLOCKS, BLOCK_SIZE)
    step = batch(*((sequence, 0, 1) for sequence in range(9)))
    mine, theirs = setup.graphed.forward(step, other), model.forward(step, plain)
    np.testing.assert_allclose(mine, theirs, atol=2e-4)
    assert torch.as_tensor(other.keys).any(), "the eager step wrote the cache that it was given"


def reallocated(cache: KVCache) -> KVCache:
    cache.keys = cache.keys * 1
    return cache


def test_the_hidden_states_of_a_step_survive_the_next_one(model: LlamaModel) -> None:
    setup = Setup(model, GraphMode.FULL)
    first = setup.graphed.forward(batch((0, 0, 1)), setup.cache)
    kept = first.copy()
    setup.graphed.forward(batch((1, 0, 1)), setup.cache)
    np.testing.assert_array_equal(first, kept)


def test_layers_that_are_not_dense_are_refused_by_name(model: LlamaModel) -> None:
    cache = model.new_kv_cache(4, 16)
    broken = LlamaModel.from_pretrained(CHECKPOINT)
    broken.layers[2].output = np.tanh
    with pytest.raises(ValueError, match="A layer holds a ufunc; step graphs run dense Llama"):
        GraphedLlama(broken, cache, GraphMode.FULL, [1])
    broken = LlamaModel.from_pretrained(CHECKPOINT)
    broken.layers[0].mlp = Experts()
    with pytest.raises(ValueError, match="A layer holds a Experts"):
        GraphedLlama(broken, cache, GraphMode.FULL, [1])
    codes = model.new_kv_cache(4, 16, "fp8_e4m3")
    with pytest.raises(ValueError, match=r"cache holds fp8_e4m3; step graphs .* float32 pages"):
        GraphedLlama(model, codes, GraphMode.FULL, [1])


class Experts:
    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x


# The whole engine


def graphed_tokens(
    mode: GraphMode, prompts: Sequence[Sequence[int]], **options: Any
) -> tuple[list[list[int]], LLM]:
    llm = LLM(CHECKPOINT, **options)
    llm.model = GraphedLlama(llm.model, llm.kv_cache, mode, SIZES)  # type: ignore[assignment]
    completions = llm.generate(prompts, GREEDY)
    return [completion.token_ids for completion in completions], llm


@pytest.mark.parametrize("mode", GraphMode)
def test_tokens_do_not_depend_on_the_mode(mode: GraphMode) -> None:
    """Six requests: one step of prefill, and all others of six tokens, alike."""
    plain = LLM(CHECKPOINT, num_blocks=64)
    tokens, llm = graphed_tokens(mode, PROMPTS, num_blocks=64)
    assert disagreements(plain, PROMPTS, tokens) <= 1
    runs = llm.model.steps  # type: ignore[attr-defined]
    prefill = sum(len(prompt) for prompt in PROMPTS)
    decode, _ = dispatch(mode, 6, True, SIZES, 64)
    layers = plain.model.config.num_layers
    (eager,) = (run.num_launches for run in runs if run.num_tokens == prefill)
    (run,) = (run for run in runs if run.num_tokens == 6)
    assert (run.mode, runs[run]) == (decode, MAX_NEW_TOKENS - 1)
    assert run.num_padded_tokens == (6 if decode is GraphMode.NONE else 8)
    if decode is GraphMode.FULL:
        assert run.num_launches == 1
    elif decode is GraphMode.NONE:
        assert run.num_launches == eager
    else:
        assert layers + 1 < run.num_launches < eager


def test_tokens_survive_preemption_chunks_and_steps_that_fit_no_graph() -> None:
    """Three requests at a time in chunks of three: steps of 1 to 9 tokens, mixed or not."""
    preempted: list[Request] = []
    tokens, llm = graphed_tokens(
        GraphMode.FULL_AND_PIECEWISE,
        PROMPTS,
        num_blocks=8,
        max_num_seqs=3,
        long_prefill_token_threshold=3,
        on_schedule=lambda output: preempted.extend(output.preempted),
    )
    assert preempted
    assert disagreements(LLM(CHECKPOINT), PROMPTS, tokens) <= 1
    runs = llm.model.steps  # type: ignore[attr-defined]
    assert {run.mode for run in runs} == {GraphMode.NONE, GraphMode.PIECEWISE, GraphMode.FULL}
    waste = sum((run.num_padded_tokens - run.num_tokens) * times for run, times in runs.items())
    assert waste == padding_waste([run.num_tokens for run in runs.elements()], SIZES) > 0

"""Week 6 as a reader meets it: what its prose says of recorded answers and results, and replays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferlab import golden, lab
from inferlab.analysis.prefix_orders import distinct_prefixes
from inferlab.engine import Request, SamplingParams, Scheduler
from inferlab.engine.policy import Aged, Policy, dfs_weight, fcfs, lpm
from inferlab.engine.radix_cache import RadixCache
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from inferlab.engine.radix_node import RadixNode
from inferlab.lab.engines import ENGINES_VARIABLE
from inferlab.lab.paths import ROOT
from inferlab.lab.radix_replay import count_events, first_difference, random_operations, replay
from inferlab.lab.upstream import SCRIPTS
from inferlab.publish import read_page

OPERATIONS = random_operations(seed=6, num_operations=400)
POLICIES = lab.load("week06/policies")
SHARED, ALONE = "many-prefixes-at-once", "no-prefix-at-once"


@pytest.fixture(autouse=True)
def without_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENGINES_VARIABLE, str(tmp_path))


def replayed(script: str, data: dict[str, Any], name: str) -> Any:
    return lab.upstream((SCRIPTS / f"{script}.py").read_text(), data, recorded=f"week06/{name}")


@pytest.fixture
def sglang_trace() -> list[dict[str, Any]]:
    trace: list[dict[str, Any]] = replayed(
        "sglang_radix_cache", {"operations": OPERATIONS, "show_tree": False}, "random-operations"
    )
    return trace


class ForgetsLocks(RadixCache):
    def _split(self, node: RadixNode, length: int) -> RadixNode:
        upper = RadixCache._split(self, node, length)
        upper.lock_count = 0
        return upper


def test_the_page_replays_sglangs_tree_and_agrees_after_every_operation(
    sglang_trace: list[dict[str, Any]],
) -> None:
    assert len(sglang_trace) == 400
    assert first_difference(replay(RadixCache(), OPERATIONS), sglang_trace) is None
    assert first_difference(replay(ForgetsLocks(), OPERATIONS), sglang_trace) is not None
    events = count_events(OPERATIONS, sglang_trace)
    assert len(events) == 7
    assert min(events.values()) >= 10, events


def test_the_servers_own_tree_answers_as_the_readable_class(
    sglang_trace: list[dict[str, Any]],
) -> None:
    cores = replayed("sglang_unified_cache", {"operations": OPERATIONS}, "unified-random")
    assert {core["core"] for core in cores.values()} == {"UnifiedTreeCore", "RustUnifiedTreeCore"}
    assert cores["python"]["trace"] == cores["rust"]["trace"]
    for operation, seen, plain in zip(
        OPERATIONS, cores["rust"]["trace"], sglang_trace, strict=True
    ):
        answer = plain["answer"] if operation[0] != "evict" else len(plain["answer"])
        assert (seen["answer"], seen["evictable"], seen["protected"]) == (
            answer, plain["evictable"], plain["protected"],
        )  # fmt: skip


def test_the_tree_says_what_a_full_server_hit_request_by_request() -> None:
    page = read_page(ROOT, Path("notebooks/week06-radix-attention.md"))
    (cell,) = (cell for cell in page.cells if "def hits_on_paper(" in cell.source)
    names: dict[str, Any] = {
        "RadixCache": RadixCache,
        "distinct_prefixes": distinct_prefixes,
        "lab": lab,
        "show_table": lambda head, rows: None,
    }
    exec(cell.source, names)
    cases, prompts = names["small_answer"]["cases"], names["small_prompts"]

    def on_paper(name: str, capacity: int) -> list[int]:
        hits: list[int] = names["hits_on_paper"](prompts, cases[name]["order"], capacity, 4)
        return hits

    for name, case in cases.items():
        assert on_paper(name, 256) == case["cached_tokens"]
    assert on_paper("shuffled", 512) != cases["shuffled"]["cached_tokens"], "the memory decides"
    assert sum(cases["ordered"]["cached_tokens"]) == names["all_shared"]
    assert names["met"] == sum(len(case["order"]) for case in cases.values())
    assert max(map(len, prompts)) + 3 <= 256, "the theorem asks for room for the longest"
    ordered = cases["ordered"]["order"]
    assert ordered != cases["shuffled"]["order"]
    assert cases["ordered, in the home of shuffled"] == cases["shuffled"], (
        "the client read its file"
    )


def test_the_unified_tree_gives_duplicates_back_itself() -> None:
    data, answer = lab.upstream_answer("week06/unified-tree")
    operation, seen = data["operations"][1], answer["rust"]["trace"][1]
    assert (operation[0], len(operation[1]), seen["answer"]) == ("insert", 5, 3)
    assert seen["slots_given_back"] == -2


def admitted(policy: Policy, queue: dict[str, Any]) -> list[int]:
    manager = RadixKVCacheManager(4000)
    manager.tree.insert(queue["prefix"], queue["prefix"])

    def popular(number: int) -> Request:
        first = 10_000 + 100 * number
        return Request(
            str(number), [*queue["prefix"], *range(first, first + queue["suffix_tokens"])]
        )

    waiting = [
        Request("0", queue["alone"]),
        *(popular(i) for i in range(1, queue["num_waiting"] + 1)),
    ]
    order = []
    for turn in range(queue["turns"]):
        head = policy(waiting, manager)[0]
        waiting.remove(head)
        order.append(int(head.request_id))
        tokens = head.token_ids(0, head.num_tokens)
        manager.tree.insert(tokens, tokens)
        waiting.append(popular(queue["num_waiting"] + 1 + turn))
    return order


def test_who_shares_nothing_starves_under_sglangs_lpm_and_not_under_hrrn() -> None:
    data, answer = lab.upstream_answer("week06/starvation")
    assert answer["fcfs"][0] == 0
    assert 0 not in answer["lpm"]
    assert 0 not in answer["dfs-weight"]
    assert 0 < answer["hrrn"].index(0) < len(answer["hrrn"]) - 1
    assert admitted(lpm, data["queue"]) == answer["lpm"]
    assert admitted(Aged(lpm, 8), data["queue"]).index(0) == 8


def test_longest_match_first_computes_each_prefix_once_in_the_assembly() -> None:
    found = golden.load("week06")
    least = distinct_prefixes(found["prompts"])
    computed = found["computed"]
    assert computed["tree, longest match first"] == computed["tree, by subtree"] == least
    assert computed["tree, as they come"] > 2 * least
    assert max(map(len, found["prompts"])) + found["max_tokens"] < found["slots"] < least


# What the prose says of the recorded results.


def hits(table: Any, **parameters: Any) -> list[float]:
    found: list[float] = table.repeats("prefix_cache_hits_tokens", **parameters)
    return found


def copies(policy: str) -> list[int]:
    return [
        round((96 * 512 - found) / 512)
        for found in hits(POLICIES, schedule_policy=policy, workload=SHARED)
    ]


def test_lpm_computes_one_prefix_too_often_and_fcfs_each_four_times() -> None:
    assert copies("lpm") == [17, 17, 17]
    assert all(18 < count < 24 for count in copies("dfs-weight"))
    assert all(60 < count < 75 for count in copies("fcfs"))


def test_without_sharing_no_policy_finds_anything_and_the_durations_overlap() -> None:
    ranges = {}
    for policy in ("fcfs", "lpm"):
        (row,) = POLICIES.where(schedule_policy=policy, workload=ALONE)
        assert row["prefix_hit_share_max"] < 0.002
        ranges[policy] = row["duration_s_min"], row["duration_s_max"]
    assert ranges["lpm"][0] < ranges["fcfs"][0] < ranges["lpm"][1] < ranges["fcfs"][1]


def overtaken(policy: str, workload: str) -> float:
    counts = []
    for samples in POLICIES.samples(schedule_policy=policy, workload=workload):
        arrived = np.array(samples["arrival_us"])
        first = arrived + np.array(samples["ttft_us"])
        counts.append((arrived[None] > arrived[:, None]) & (first[None] < first[:, None]))
    return float(np.sum(counts) / 3 / 96)


def test_chance_matches_change_the_order_of_requests_that_share_nothing() -> None:
    for workload in (SHARED, ALONE):
        assert overtaken("fcfs", workload) < 4
        assert overtaken("lpm", workload) > 2.5 * overtaken("fcfs", workload)
        assert overtaken("dfs-weight", workload) > 2.5 * overtaken("fcfs", workload)


def test_blocks_find_what_they_find_on_paper_and_trees_miss_whole_prefixes() -> None:
    both = lab.load("week06/blocks-against-tree")
    assert hits(both, engine="vllm") == [40 * 480 + 32, 40 * 480, 40 * 480]
    assert hits(both, engine="inferlab", prefix_cache="hash") == [40 * 496 + 16, 40 * 496, 40 * 496]
    for parameters, missed in (
        ({"engine": "sglang"}, [6, 3, 0]),
        ({"engine": "inferlab", "prefix_cache": "radix"}, [3, 2, 0]),
    ):
        for found, count in zip(hits(both, **parameters), missed, strict=True):
            assert abs(40 * 507 - 507 * count - found) < 60  # by chance, or by a token of a prefix
    # One of the first eight is computed alone, and the other seven in one step.
    for samples in both.samples(engine="sglang"):
        first, *others = sorted(samples["ttft_us"][:8])
        assert first < others[0] / 3
        assert others[-1] - others[0] < 5_000


def test_the_arm_without_a_tree_ran_while_the_machine_was_slower() -> None:
    on_off = lab.load("week06/radix-on-off")
    medians = {
        off: np.median(
            [
                on_off.repeats(
                    f"yardstick_{end}_ms", workload="unshared-prefix", disable_radix_cache=off
                )
                for end in ("before", "after")
            ]
        )
        for off in (False, True)
    }
    assert medians[True] > 1.2 * medians[False]


def grown_requests() -> list[list[int]]:
    """The requests of the page's theory, eight times as long."""
    sequences = []
    for task in range(4):
        for user in range(4):
            for asked in range(4):
                own = 100 + 16 * task + 4 * user + asked
                runs = ((0, 64), (1 + task, 128), (10 + 4 * task + user, 64), (own, 32))
                sequences.append([token for token, count in runs for _ in range(count)])
    return [sequences[place] for place in np.random.default_rng(6).permutation(64)]


def computed_by_scheduler(slots: int, policy: Policy, in_flight: int) -> float:
    prompts = grown_requests()
    scheduler = Scheduler(RadixKVCacheManager(slots + 1), in_flight, 16_384, policy=policy)
    for number, tokens in enumerate(prompts):
        scheduler.add_request(Request(str(number), tokens, SamplingParams(max_tokens=2)))
    computed = -len(prompts)
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        computed += output.total_num_scheduled_tokens
        scheduler.update_from_output(
            output, {one.request.request_id: [7] for one in output.scheduled if one.samples}
        )
    return computed / distinct_prefixes(prompts)


def test_the_optimal_order_is_optimal_one_at_a_time_and_not_in_a_batch() -> None:
    for policy in (lpm, dfs_weight):
        for slots in (290, 580, 4000):
            assert computed_by_scheduler(slots, policy, in_flight=1) == 1
    assert computed_by_scheduler(580, fcfs, 4) > 2 * computed_by_scheduler(580, lpm, 4)
    assert 1 < computed_by_scheduler(4000, fcfs, 4) < computed_by_scheduler(4000, lpm, 4)

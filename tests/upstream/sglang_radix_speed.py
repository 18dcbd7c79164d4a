"""Our radix tree and SGLang's on one trace, turn about: runs in the engines' interpreter."""

import os
import sys
from array import array
from time import perf_counter_ns

import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixCache as TheirCache
from sglang.srt.mem_cache.radix_cache import RadixKey

sys.path.insert(0, os.getcwd())

from inferlab.engine.radix_cache import RadixCache as OurCache


class Allocator:
    device = "cpu"

    def free_segment(self, values, start_pos):
        pass


def main(data):
    prompts = [array("q", token_ids) for token_ids in data["prompts"]]
    samples = []
    for _ in range(data["repeats"]):
        ours, theirs = our_run(prompts), their_run(prompts)
        if ours.pop("hits") != theirs.pop("hits"):
            raise ValueError(
                "The two trees did not hit the same tokens: they ran different things."
            )
        samples.append({"ours": ours, "theirs": theirs})
    return samples


def our_run(prompts):
    """Mean µs a call: each prompt is looked up and then inserted; at last all is evicted."""
    tree = OurCache()
    calls = [(key, array("q", range(len(key)))) for key in prompts]
    match = insert = 0
    hits = []
    for key, values in calls:
        start = perf_counter_ns()
        found = tree.match_prefix(key)
        middle = perf_counter_ns()
        tree.insert(key, values)
        insert += perf_counter_ns() - middle
        match += middle - start
        hits.append(len(found.values))
    start = perf_counter_ns()
    while tree.evict(1):
        pass
    return mean(match, insert, perf_counter_ns() - start, len(prompts)) | {"hits": hits}


def their_run(prompts):
    tree = TheirCache.create_simulated(mock_allocator=Allocator())
    calls = [
        (
            MatchPrefixParams(key=RadixKey(token_ids=key)),
            InsertParams(key=RadixKey(token_ids=key), value=torch.arange(len(key))),
        )
        for key in prompts
    ]
    match = insert = 0
    hits = []
    for to_match, to_insert in calls:
        start = perf_counter_ns()
        found = tree.match_prefix(to_match)
        middle = perf_counter_ns()
        tree.insert(to_insert)
        insert += perf_counter_ns() - middle
        match += middle - start
        hits.append(found.device_prefix_len)
    one = EvictParams(num_tokens=1)
    start = perf_counter_ns()
    while tree.evict(one).num_tokens_evicted:
        pass
    return mean(match, insert, perf_counter_ns() - start, len(prompts)) | {"hits": hits}


def mean(match, insert, evict, count):
    """The tree ends with about a leaf a prompt, so an eviction is a call a prompt too."""
    return {name: ns / count / 1e3 for name, ns in zip(NAMES, (match, insert, evict))}


NAMES = ("match", "insert", "evict")

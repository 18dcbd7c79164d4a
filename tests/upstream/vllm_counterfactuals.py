"""What breaks in vLLM when one line is taken out: runs in the engines' interpreter.

Each entry of the answer holds what happens with the line and without it. The model answers of week
4's source questions say the same.
"""

import os
import sys
from unittest.mock import patch

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager

sys.path.insert(0, os.getcwd())

from experiments.upstream import vllm_kv_cache_manager
from experiments.upstream.vllm_kv_cache_manager import table

BLOCK_SIZE = 16


def main(data):
    queue = FreeKVCacheBlockQueue
    return {
        "remove": both(hit_and_allocate, queue, "remove", lambda queue, block: None),
        "prepend": both(shared_after_two_ended, queue, "prepend_n", queue.append_n),
        "evict": both(
            prompt_after_reuse, BlockPool, "_maybe_evict_cached_block", lambda pool, block: False
        ),
        "count the hit": both(
            hit_that_is_all_room,
            SingleTypeKVCacheManager,
            "_get_num_evictable_blocks",
            lambda manager, blocks: 0,
        ),
    }


def both(scene, owner, name, replacement):
    with_it = scene()
    with patch.object(owner, name, replacement):
        try:
            without_it = scene()
        except (AssertionError, ValueError) as error:
            without_it = f"{type(error).__name__}: {error}"
    return [with_it, without_it]


def hit_and_allocate():
    """A hit takes a block out of the queue; is a stranger admitted who needs two, with one left?"""
    manager = new_manager(usable_blocks=3)
    manager.free(admit(manager, "A", prompt(100, 17)))
    admit(manager, "hit", prompt(100, 17))
    return admit(manager, "stranger", prompt(700, 17)) is not None


def shared_after_two_ended():
    """X leaves a cached block, then Y an empty one; Z takes two. What does X's prompt hit?"""
    manager = new_manager(usable_blocks=3)
    first, second = admit(manager, "X", prompt(100, 17)), admit(manager, "Y", prompt(300, 5))
    manager.free(first)
    manager.free(second)
    manager.free(admit(manager, "Z", prompt(500, 32)))
    return manager.get_computed_blocks(new_request("X again", prompt(100, 17)))[1]


def prompt_after_reuse():
    """A fills a block, B writes into it, C has A's prompt. Tables, and the tokens that C hits."""
    manager = new_manager(usable_blocks=2)
    tables = []
    for name, first in (("A", 100), ("B", 300)):
        request = admit(manager, name, prompt(first, 17))
        tables.append(table(manager, name))
        manager.free(request)
    return [*tables, manager.get_computed_blocks(new_request("C", prompt(100, 17)))[1]]


def hit_that_is_all_room():
    """Both free blocks are the hit, and a third is needed: is the request admitted?"""
    manager = new_manager(usable_blocks=2)
    manager.free(admit(manager, "A", prompt(100, 32)))
    return admit(manager, "longer", prompt(100, 48)) is not None


def new_manager(usable_blocks):
    return vllm_kv_cache_manager.new_manager(usable_blocks + 1, BLOCK_SIZE)


def prompt(first, count):
    return list(range(first, first + count))


def new_request(name, token_ids):
    return vllm_kv_cache_manager.new_request(name, token_ids, "", BLOCK_SIZE)


def admit(manager, name, token_ids):
    request = new_request(name, token_ids)
    return None if vllm_kv_cache_manager.admit(manager, request) is None else request

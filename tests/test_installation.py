"""`install` puts a reader's definitions into the package, checks them first, and can undo it."""

import pytest

from inferlab import install
from inferlab.engine.block_pool import BlockPool, hash_block_tokens
from tests.bundle_fixture import HASH, QUEUE, make_sample_bundle, run_in


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_sample_bundle(tmp_path_factory.mktemp("install"), {})


START = f"""
from inferlab.engine import block_pool
from inferlab.engine.block_pool import FreeBlockQueue as earlier, hash_block_tokens as early_hash
from inferlab.engine.kv_cache import KVCacheManager
from inferlab import install, restore
{QUEUE}
{HASH}
"""


def test_members_reach_whoever_imported_the_class_before(bundle):
    code = """
blocks = [Block(i) for i in range(3)]
queue = earlier(blocks)
install(FreeBlockQueue)
queue.remove(blocks[1])
print([b.block_id for b in queue.blocks()], queue.popleft().block_id)
print(earlier is block_pool.FreeBlockQueue, earlier is FreeBlockQueue, type(queue) is earlier)
"""
    assert run_in(bundle, START + code).splitlines() == ["[0, 2] 0", "True False True"]


def test_a_class_is_no_substitute_for_a_function(bundle):
    attempt = "class hash_block_tokens: pass\ninstall(hash_block_tokens)"
    assert run_in(bundle, START + attempt).startswith(
        "TypeError: hash_block_tokens has to be a function, and yours is a type;"
    )


def test_what_is_not_listed_stays_as_it_was(bundle):
    code = """
before = earlier.append
FreeBlockQueue.append = lambda self, block: None
install(FreeBlockQueue)
print(earlier.append is before)
"""
    assert run_in(bundle, START + code) == "True"


def test_a_function_is_reached_through_the_object_imported_before(bundle):
    code = """
install(hash_block_tokens)
print(early_hash(None, [1, 2]), early_hash(parent=None, token_ids=[3]))
import inspect
print(*inspect.signature(early_hash).parameters)
"""
    assert run_in(bundle, START + code).splitlines() == [
        r"b'\x01\x02' b'\x03'",
        "parent token_ids salt",
    ]


def test_installing_again_takes_the_newest(bundle):
    code = """
install(hash_block_tokens)
install(hash_block_tokens)
def hash_block_tokens(parent, token_ids, salt=""):
    return b"newer"
install(hash_block_tokens)
print(early_hash(None, []))
"""
    assert run_in(bundle, START + code) == "b'newer'"


def test_restore_brings_every_stub_back(bundle):
    code = """
stub = earlier.remove
install(FreeBlockQueue, hash_block_tokens)
install(FreeBlockQueue)
restore()
print(earlier.remove is stub)
try:
    early_hash(None, [])
except NotImplementedError:
    print("the stub")
"""
    assert run_in(bundle, START + code).splitlines() == ["True", "the stub"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "class FreeBlockQueue:\n    def remove(self, block): return 1",
            "TypeError: The class FreeBlockQueue defines no popleft; the exercise asks for it.",
        ),
        (
            "def wrong(self, blocks): return 1\nFreeBlockQueue.remove = wrong",
            "TypeError: FreeBlockQueue.remove has to take "
            "(self, block: inferlab.engine.block_pool.Block) -> None, "
            "and yours takes (self, blocks).",
        ),
        (
            "def unfinished(self, block):\n    # YOUR CODE HERE\n    raise NotImplementedError()\n"
            "FreeBlockQueue.remove = unfinished",
            "week04-sample-queue is not finished yet.",
        ),
        (
            "class Other: pass\nFreeBlockQueue = Other",
            "ValueError: Other is no exercise of this week: what can be installed is "
            "FreeBlockQueue, hash_block_tokens, BlockPool.",
        ),
        (
            "FreeBlockQueue = 3",
            "ValueError: 3 is no exercise of this week: what can be installed is "
            "FreeBlockQueue, hash_block_tokens, BlockPool.",
        ),
        (
            "FreeBlockQueue.remove = staticmethod(FreeBlockQueue.remove)",
            "TypeError: FreeBlockQueue.remove has to be a function, and yours is a staticmethod; "
            "keep the line of its definition, and what stands above it, as they were.",
        ),
        (
            "def FreeBlockQueue(): pass",
            "TypeError: The class FreeBlockQueue defines no remove; the exercise asks for it.",
        ),
    ],
)
def test_nothing_changes_when_one_definition_is_refused(bundle, written, message):
    attempt = f"""
{written}
try:
    install(hash_block_tokens, FreeBlockQueue)
finally:
    from inferlab.unfinished import is_stub
    assert is_stub(early_hash), "a definition was installed although another was refused"
"""
    assert run_in(bundle, START + attempt).endswith(message)


def test_the_package_itself_needs_no_installation(bundle):
    code = "install(block_pool.FreeBlockQueue, early_hash)\nprint('nothing to do')"
    assert run_in(bundle, START + code) == "nothing to do"
    install(BlockPool, hash_block_tokens)  # as the chapter's source does, without a bundle


def test_grading_judges_beside_the_reference(bundle):
    code = "install(hash_block_tokens)\nprint(early_hash.__code__.co_names)"
    graded = run_in(bundle, START + code, NBGRADER_EXECUTION="autograde")
    assert graded == "('NotImplementedError',)"
    assert run_in(bundle, START + code) != graded


def test_outside_a_bundle_a_definition_of_ones_own_is_refused():
    class FreeBlockQueue:
        pass

    with pytest.raises(ValueError, match=r"no bundle\.json beside the package"):
        install(FreeBlockQueue)

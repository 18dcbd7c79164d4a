"""Probes of attention through block tables, on batches whose unused slots hold poison."""

from typing import Any

import numpy as np

from autograder.probe import probe

EXERCISE = "week04-paged-attention"


def paged_batch(
    random: np.random.Generator,
    lengths: list[int],
    *,
    block_size: int = 4,
    num_kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 16,
) -> dict[str, Any]:
    """Sequences of `lengths`, scattered over a cache; `paged_arrays` fills it."""
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 3
    ids = random.permutation(np.arange(1, num_blocks)).tolist()
    tables = np.zeros((len(lengths), max(counts) + 1), dtype=np.int32)
    for row, count in zip(tables, counts):
        row[:count] = [ids.pop() for _ in range(count)]
    # Rows are padded with the null block, and with blocks that nobody uses.
    for row, count in zip(tables, counts):
        row[count:] = random.choice([0, *ids], len(row) - count)
    return {
        "seed": int(random.integers(2**32)),
        "queries": [len(lengths), num_kv_heads * group, head_dim],
        "cache": [num_blocks, block_size, num_kv_heads, head_dim],
        "tables": tables,
        "lengths": np.array(lengths, dtype=np.int32),
        "query_scale": 1.0,
        "negative_scores": False,
        "poison": np.array([[50.0, 50.0]]),
    }


def noise(seed: int, shape: list[int]) -> np.ndarray:
    """Numbers between -2 and 2 that half precision holds exactly.

    NumPy promises the same bits from the same seed for its bit generators only, not for what it
    makes of them, and the expected values may be older than the NumPy that reads them.
    """
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape))) >> np.uint64(56)
    return (bits.astype(np.float32).reshape(shape) - 127.5) / 64


def paged_arrays(inputs: Any, poison: np.ndarray) -> list[np.ndarray]:
    """Queries, keys, values, tables and lengths; `poison` fills each slot that holds no token."""
    shapes = (inputs["queries"], inputs["cache"], inputs["cache"])
    queries, keys, values = (noise(inputs["seed"] + i, shape) for i, shape in enumerate(shapes))
    if inputs["negative_scores"]:
        queries, keys = -np.abs(queries), np.abs(keys)
    tables, lengths = inputs["tables"], inputs["lengths"]
    block_size = keys.shape[1]
    empty = np.ones(keys.shape[:2], dtype=bool)
    for row, length in zip(tables, lengths):
        for position in range(length):
            empty[row[position // block_size], position % block_size] = False
    keys[empty], values[empty] = poison
    return [queries * np.float32(inputs["query_scale"]), keys, values, tables, lengths]


def attend(code: Any, inputs: Any, **options: Any) -> list[np.ndarray]:
    """The output for each kind of poison."""
    return [
        np.asarray(
            code.paged_decode_attention(*paged_arrays(inputs, poison), **options), np.float32
        )
        for poison in inputs["poison"]
    ]


def softmax_states(random: np.random.Generator) -> dict[str, Any]:
    return {
        "maximum": random.integers(-3, 4, (3, 4, 1)).astype(np.float32),
        "total": random.integers(1, 9, (3, 4, 1)).astype(np.float32),
        "output": random.integers(-9, 10, (3, 4, 5)).astype(np.float32),
    }


def distant_states(random: np.random.Generator) -> dict[str, Any]:
    states = softmax_states(random)
    apart = np.array([-1e30, -2e4, 3e4])[:, None, None]
    rows = np.array([0.0, -9e4, 7e3, 200.0])[:, None]
    states["maximum"] = random.permuted(apart + rows, axis=0).astype(np.float32)
    return states


def merged(code: Any, inputs: Any) -> list[Any]:
    """Logarithm of the sum, and mean value, of three states merged in four orders.

    Maximum and total alone are free to differ: they mean the same at any common scale.
    """
    a, b, c = (
        code.SoftmaxState(*state)
        for state in zip(inputs["maximum"], inputs["total"], inputs["output"])
    )
    results = [a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b), c.merge(b).merge(a)]
    return [
        [
            (state.maximum + np.log(state.total)).astype(np.float32),
            (state.output / state.total).astype(np.float32),
        ]
        for state in results
    ]


@probe(
    title="Three states merged in every order and grouping",
    exercise=EXERCISE,
    trials=2,
    tolerance=1e-4,
    inputs=softmax_states,
    message="However the tiles are grouped and whichever comes first, the merged state has to mean "
    "the same.",
)
def merge_in_any_order(code: Any, inputs: Any) -> list[Any]:
    return merged(code, inputs)


@probe(
    title="States whose largest scores are far apart",
    exercise=EXERCISE,
    trials=2,
    tolerance=1e-2,
    inputs=distant_states,
    message="With scores that are far apart the merge overflows or loses everything; each row has "
    "a largest score of its own.",
)
def merge_far_apart(code: Any, inputs: Any) -> list[Any]:
    return merged(code, inputs)


def other_head_sizes(random: np.random.Generator) -> dict[str, Any]:
    head_dim = int(random.choice([8, 24]))
    return paged_batch(random, [3, 6], head_dim=head_dim)


@probe(
    title="Heads of another size than in the visible test",
    exercise=EXERCISE,
    trials=2,
    tolerance=1e-4,
    inputs=other_head_sizes,
    message="The output depends on the size of a head in a way that the formula does not.",
)
def attention_head_sizes(code: Any, inputs: Any) -> list[Any]:
    return attend(code, inputs)


def query_groups(random: np.random.Generator) -> dict[str, Any]:
    shapes = [(1, 3), (3, 1), (2, 3)]
    return {
        "batches": [
            paged_batch(random, [2, 7], num_kv_heads=kv_heads, group=group, head_dim=64)
            for kv_heads, group in shapes
        ]
    }


@probe(
    title="One, two and three KV heads, each read by one or three query heads",
    exercise=EXERCISE,
    tolerance=1e-4,
    inputs=query_groups,
    message="A query head reads another KV head than its group's.",
)
def attention_groups(code: Any, inputs: Any) -> list[Any]:
    return [attend(code, batch) for batch in inputs["batches"]]


def mixed_lengths(random: np.random.Generator) -> dict[str, Any]:
    # One token, a whole number of blocks, one more and one less; the longest is not the last.
    lengths = random.permutation([1, 8, 9, 3]).tolist()
    return paged_batch(random, [13, *lengths])


@probe(
    title="Sequences of one token, of whole blocks, and with partial tails, in any order",
    exercise=EXERCISE,
    trials=2,
    tolerance=1e-4,
    inputs=mixed_lengths,
    message="A sequence does not attend to exactly its own tokens when it stands beside shorter "
    "and longer ones.",
)
def attention_lengths(code: Any, inputs: Any) -> list[Any]:
    return attend(code, inputs, tile_blocks=1)


def poisoned_batch(random: np.random.Generator) -> dict[str, Any]:
    poison = np.array([[np.nan, np.nan], [1e30, 1e30], [np.inf, -np.inf], [-1e30, np.nan]])
    return paged_batch(random, [1, 6, 12], head_dim=64, group=1) | {"poison": poison}


@probe(
    title="Slots past the end that hold NaN, infinities and huge numbers",
    exercise=EXERCISE,
    tolerance=1e-4,
    inputs=poisoned_batch,
    message="What lies in slots that hold no token of the sequence reaches the output.",
)
def attention_poison(code: Any, inputs: Any) -> list[Any]:
    return attend(code, inputs, tile_blocks=2)


def tiled_batch(random: np.random.Generator) -> dict[str, Any]:
    return paged_batch(random, [5, 27, 18], block_size=2)


@probe(
    title="Tiles of one block, of a number that does not divide the table, and larger than it",
    exercise=EXERCISE,
    tolerance=1e-4,
    inputs=tiled_batch,
    message="The output depends on how many blocks are in a tile.",
)
def attention_tiles(code: Any, inputs: Any) -> list[Any]:
    return [attend(code, inputs, tile_blocks=tile_blocks) for tile_blocks in (1, 3, 4, 100)]


@probe(
    title="The number of blocks read at a time",
    exercise=EXERCISE,
    tolerance=1e-4,
    inputs=tiled_batch,
    message="More than tile_blocks blocks of a sequence were copied out of the cache at once; with "
    "long sequences that is the memory which paging was to save.",
)
def attention_memory(code: Any, inputs: Any) -> list[Any]:
    largest = 0

    class Watched(np.ndarray):
        """Notes the largest copy that is taken out of it."""

        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            if not np.may_share_memory(found, self):
                note(found.size)
            return found

        def take(self, *args: Any, **kwargs: Any) -> Any:
            found = super().take(*args, **kwargs)
            note(found.size)
            return found

    def note(size: int) -> None:
        nonlocal largest
        largest = max(largest, size)

    queries, keys, values, tables, lengths = paged_arrays(inputs, inputs["poison"][0])
    seen: list[Any] = []
    for tile_blocks in (1, 2, 5):
        largest = 0
        output = code.paged_decode_attention(
            queries, keys.view(Watched), values.view(Watched), tables, lengths, tile_blocks
        )
        # K and V may be copied for each query head of a group.
        allowed = tile_blocks * keys.shape[1] * queries.size
        seen.append([largest <= allowed, np.array(output, np.float32)])
    return seen


def towering_scores(random: np.random.Generator) -> dict[str, Any]:
    return paged_batch(random, [9, 14], head_dim=64, group=1) | {"query_scale": 1000.0}


@probe(
    title="Scores in the thousands",
    exercise=EXERCISE,
    trials=2,
    tolerance=1e-2,
    inputs=towering_scores,
    message="The output overflows or vanishes when scores are large, although the softmax of large "
    "scores is as well defined as any.",
)
def attention_large_scores(code: Any, inputs: Any) -> list[Any]:
    return attend(code, inputs, tile_blocks=1)

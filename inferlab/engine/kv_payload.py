"""K and V outside the cache: out of blocks and into them, and as bytes with a checksum; week 15.

`kv_tiers` keeps such payloads in memory and on disk, `transfer` sends them to another engine. K and
V are `[num_layers, num_tokens, num_kv_heads, head_dim]`, bit for bit as the cache holds them;
blocks and their size are left behind. The bytes are laid out as in a safetensors file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inferlab.engine.kv_cache import KVCache
from inferlab.engine.layers import parts_of
from inferlab.engine.model import LlamaModel

MAGIC = b"inferlab KV, format 1\n"


def read_blocks(cache: KVCache, table: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Copies of all K and V in the blocks of `table`, in its order."""
    num_layers, _, block_size, *heads = cache.keys.shape
    shape = (num_layers, len(table) * block_size, *heads)
    return cache.keys[:, list(table)].reshape(shape), cache.values[:, list(table)].reshape(shape)


def write_tokens(
    cache: KVCache, table: Sequence[int], start: int, keys: np.ndarray, values: np.ndarray
) -> None:
    """Store the K and V of the tokens at positions `start`, `start + 1`, … of a block table."""
    positions = np.arange(start, start + keys.shape[1])
    blocks = np.asarray(table, dtype=int)[positions // cache.block_size]
    cache.keys[:, blocks, positions % cache.block_size] = keys
    cache.values[:, blocks, positions % cache.block_size] = values


def pack(header: Mapping[str, Any], keys: np.ndarray, values: np.ndarray) -> bytes:
    """Magic and SHA-256, then what the hash covers: length of the JSON header, header, K, V."""
    text = json.dumps({**header, "shape": keys.shape, "dtype": keys.dtype.str}).encode()
    body = len(text).to_bytes(8, "little") + text + keys.tobytes() + values.tobytes()
    return MAGIC + hashlib.sha256(body).digest() + body


def unpack(payload: bytes) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Header, K and V of a payload; the arrays are read-only views of it.

    Raises:
        ValueError: if it is of another format, was cut short, or differs in a single bit.
    """
    magic, sealed = payload[: len(MAGIC)], memoryview(payload)[len(MAGIC) :]
    digest, body = sealed[:32], sealed[32:]
    if magic != MAGIC or hashlib.sha256(body).digest() != digest:
        raise ValueError(
            f"{len(payload)} bytes that begin with {magic!r} are no intact KV payload: expected "
            f"{MAGIC!r} and a checksum that matches. They were cut short, altered, or written by "
            "another version, and might give wrong tokens; send or compute them again."
        )
    length = int.from_bytes(body[:8], "little")
    header = json.loads(bytes(body[8 : 8 + length]))
    arrays = np.frombuffer(body[8 + length :], np.dtype(header.pop("dtype")))
    keys, values = arrays.reshape(2, *header.pop("shape"))
    return header, keys, values


def kv_fingerprint(model: LlamaModel, cache: KVCache) -> str:
    """What K and V have to agree on to be interchangeable: the model and the cache's type.

    The model is what its public attributes hold, read anew each time: one that was quantised after
    loading differs from the original.
    """
    digest = hashlib.sha256(repr((cache.dtype, cache.scales.tolist())).encode())
    for part in parts_of(model):
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()

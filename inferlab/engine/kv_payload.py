"""K and V outside the cache: out of blocks and into them, and as bytes with a checksum; week 15.

`kv_tiers` keeps such payloads in memory and on disk, `transfer` sends them to another engine. K and
V are `[num_layers, num_tokens, num_kv_heads, head_dim]`, bit for bit as the cache holds them;
blocks and their size are left behind. The bytes are laid out as in a safetensors file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from inferlab.engine.kv_cache import KVCache
from inferlab.engine.layers import weights_of
from inferlab.engine.model import LlamaModel

MAGIC = b"inferlab KV, format 1\n"
_fingerprints: WeakKeyDictionary[LlamaModel, str] = WeakKeyDictionary()


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
    """What K and V have to agree on to be interchangeable: weights, configuration, type, scales.

    Weights are the arrays reachable through public attributes of the model, so one that was
    quantised after loading differs from the original. All of them are read, so once per model:
    layers replaced after the first call go unseen.
    """
    if model not in _fingerprints:
        digest = hashlib.sha256(repr(model.config).encode())
        for array in weights_of(model):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        _fingerprints[model] = digest.hexdigest()
    stored = _fingerprints[model], cache.dtype, cache.scales.tolist()
    return hashlib.sha256(repr(stored).encode()).hexdigest()

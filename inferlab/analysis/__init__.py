"""Formulas and meters of the chapters that are not part of the engine.

Contract: a leaf that imports nothing of the course and needs NumPy only. Sizes are in bytes, times
in ms, and every function says which.
"""

from inferlab.analysis.fragmentation import (
    Admission,
    admit_contiguous,
    admit_paged,
)
from inferlab.analysis.generation_work import (
    generate_with_cache,
    generate_without_cache,
    positions_with_cache,
    positions_without_cache,
)
from inferlab.analysis.kv_memory import (
    kv_bytes_per_token,
    latent_kv_bytes_per_token,
    max_concurrent_sequences,
)
from inferlab.analysis.prefix_savings import hit_tokens, predicted_hits, saved_tokens
from inferlab.analysis.saturation import Saturation, locate_saturation

__all__ = [
    "Admission",
    "Saturation",
    "admit_contiguous",
    "admit_paged",
    "generate_with_cache",
    "generate_without_cache",
    "hit_tokens",
    "kv_bytes_per_token",
    "latent_kv_bytes_per_token",
    "locate_saturation",
    "max_concurrent_sequences",
    "positions_with_cache",
    "positions_without_cache",
    "predicted_hits",
    "saved_tokens",
]

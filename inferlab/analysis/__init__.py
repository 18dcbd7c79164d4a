"""Formulas and meters of the chapters that are not part of the engine.

Contract: a leaf that imports nothing of the course and needs NumPy only. Sizes are in bytes, times
in ms, and every function says which.
"""

from inferlab.analysis.fragmentation import (
    Admission,
    admit_contiguous,
    admit_paged,
)
from inferlab.analysis.kv_memory import (
    kv_bytes_per_token,
    latent_kv_bytes_per_token,
    max_concurrent_sequences,
)

__all__ = [
    "Admission",
    "admit_contiguous",
    "admit_paged",
    "kv_bytes_per_token",
    "latent_kv_bytes_per_token",
    "max_concurrent_sequences",
]

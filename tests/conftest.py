"""Settings of the whole suite."""

import os
import sys

# Before anything imports NumPy: on a machine of two cores that is busy with other things, OpenBLAS
# with two threads waits for itself most of the time, and the suite takes many times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

if sys.platform == "linux":
    # Before any test imports transformers, which imports Triton: see the package's docstring.
    import inferlab.kernels  # noqa: F401

# Deadlines are wall clock, and wall clock belongs in `make bench`: a busy machine must not fail.
settings.register_profile("course", deadline=None)
settings.load_profile("course")

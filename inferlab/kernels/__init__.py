"""Triton kernels, each checked against its NumPy oracle in `inferlab.engine`.

Contract: importing this package chooses the Triton interpreter where there is no GPU, which has to
happen before any kernel is decorated. The interpreter runs the same source on CPU tensors, slowly;
what it shows is that a kernel is right, never how fast it is.
"""

import os
import sys

import torch

INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise ImportError(
            "Triton was imported (by transformers, perhaps) before inferlab.kernels could choose "
            "its interpreter, without which no kernel runs where there is no GPU. Restart Python "
            "and import inferlab.kernels first, or set TRITON_INTERPRET=1."
        )
    os.environ["TRITON_INTERPRET"] = "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

"""The sweeps of the chapters, one file each, and the playground that combines their knobs.

Contract: each module has a function `sweep` that returns a `Sweep`, and the question to put before
it as `PREDICTION`. What scheduling decides is computed by the engine's own scheduler, or by the one
that a reader passes as `scheduler_class`, through `inferlab.sim`. Every figure is simulated.
"""

# What every figure of a GPU says of itself.
BADGE = "simulated · the makers' figures, an ideal engine · not compared with a real GPU"

"""A simulator that serves with the engine's own scheduler, on a virtual clock.

Contract: `sim` imports `engine` and `analysis` and nothing else of the course. Times are in seconds
here and in milliseconds in the metrics, sizes in bytes. Every figure made with it says so.
"""

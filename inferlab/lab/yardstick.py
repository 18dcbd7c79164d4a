"""How fast the machine is now: the time of a calculation that never changes.

A shared host, or a laptop that grows hot, changes its speed by a factor of two within an hour. Each
repeat therefore records the yardstick just before and just after its load: one that was disturbed
shows. It is no measure of an engine's speed: dividing times by it does not bring repeats closer.
"""

import time

ADDITIONS = 500_000  # 14 to 31 ms here: longer than a slice of Linux's scheduler


def yardstick_ms() -> float:
    """The time of half a million additions in Python: what engines' own overheads are made of."""
    started = time.perf_counter()
    total = 0
    for number in range(ADDITIONS):
        total += number
    return 1000 * (time.perf_counter() - started)

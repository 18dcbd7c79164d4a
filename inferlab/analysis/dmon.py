"""Reads what `nvidia-smi dmon` prints: one line a second and GPU, of counters in the driver.

`nvidia-smi dmon -s pucm -d 1 -o DT > dmon.txt` beside a benchmark keeps power, utilisation, clocks
and memory. Its `sm` is the share of time in which at least one kernel ran, not the share of the
GPU that the kernels filled. It is a figure of the whole GPU: with MIG it says nothing about an
instance, and utilisation by instance needs DCGM (`dcgmi dmon`, with the profiling fields 1001 to
1012).
"""

from typing import NamedTuple

MISSING = "-"


class Reading(NamedTuple):
    """The counters of one GPU at one time."""

    gpu: int
    time: str  # date and time as printed with `-o DT`; empty without
    values: dict[str, float | None]  # by the column's name; None where the driver has no value


def read_dmon(text: str) -> list[Reading]:
    """Every reading, in order. The header names the columns; dmon repeats it, and may change it.

    Raises:
        ValueError: if a line has another number of columns than its header, or comes before any,
            or holds something that is no number.
    """
    readings = []
    names: list[str] = []
    in_header = False
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if line.startswith("#"):
            # Of the two lines of a header the first names the columns, the second their units.
            if not in_header:
                names = line.lstrip("# ").lower().split()
            in_header = not in_header
            continue
        if not words:
            continue
        in_header = False
        if len(words) != len(names):
            raise ValueError(
                f"Line {number} has {len(words)} columns and its header names {len(names)}: {line}"
            )
        row = dict(zip(names, words))
        time = " ".join(row.pop(name) for name in ("date", "time") if name in row)
        try:
            gpu = int(row.pop("gpu"))
            values = {n: None if word == MISSING else float(word) for n, word in row.items()}
        except (KeyError, ValueError):
            raise ValueError(f"Line {number} is no reading of dmon: {line}") from None
        readings.append(Reading(gpu, time, values))
    return readings

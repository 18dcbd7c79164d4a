"""Time the course's engine on this machine: `make bench`. Timings are printed, never asserted.

What is compared is measured in one run, each side `REPEATS` times: the median and the range.
"""

import importlib
import pkgutil
import sys
import traceback

from inferlab.lab.engines import EnginesMissingError
from tests import bench

REPEATS = 5
NOT_BENCHMARKS = {"__main__", "measurement"}


def names() -> list[str]:
    """Names of the benchmarks: the modules beside this one."""
    found = {module.name for module in pkgutil.iter_modules(bench.__path__)}
    return sorted(found - NOT_BENCHMARKS)


def run(name: str) -> None:
    """Measure one benchmark and print it, or why it was not measured."""
    module = importlib.import_module(f"tests.bench.{name}")
    print(f"\n{module.TITLE}")
    try:
        for measurement in module.measure(REPEATS):
            print(f"  {measurement}", flush=True)
    except EnginesMissingError as missing:
        print(f"  not measured: {missing}")
    except Exception:  # one benchmark that fails is no reason to lose the others
        print(f"  not measured: {traceback.format_exc(limit=-1)}")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or names():
        run(chosen)

"""Waits on stdin for questions, one JSON line each, and answers with the seconds of one run."""

import importlib
import json
import sys
import time

if __name__ == "__main__":
    side = importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        question = json.loads(line)
        run = side.prepare(question["checkpoint"], question["concurrency"], question["requests"])
        start = time.perf_counter()
        lengths = run()
        elapsed = time.perf_counter() - start
        wanted = [output for _, output in question["requests"]]
        assert lengths == wanted, "an engine generated another number of tokens than was asked for"
        print(f"seconds {elapsed}", flush=True)

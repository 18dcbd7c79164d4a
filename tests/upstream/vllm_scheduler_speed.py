"""How long the steps of vLLM's own Scheduler take: runs in the engines' interpreter."""

import gc
import os
import sys
import time

sys.path.insert(0, os.getcwd())

from experiments.upstream.vllm_scheduler import model_output, new_request, new_scheduler


def main(data):
    return [step_seconds(trace, data["checkpoint"]) for trace in data["traces"]]


def step_seconds(trace, checkpoint):
    """Seconds of `schedule` and `update_from_output` together, for each step."""
    scheduler = new_scheduler(trace, checkpoint)
    for place in range(len(trace["requests"])):
        scheduler.add_request(new_request(place, trace))
    seconds = []
    while scheduler.has_unfinished_requests():
        gc.disable()  # a collection would be counted to the step in which it happens to fall
        start = time.perf_counter()
        output = scheduler.schedule()
        middle = time.perf_counter()
        result = model_output(trace, scheduler, output)
        sampled = time.perf_counter()
        scheduler.update_from_output(output, result)
        seconds.append((middle - start) + (time.perf_counter() - sampled))
        gc.enable()
    return seconds

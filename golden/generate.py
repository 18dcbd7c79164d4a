"""Write the golden values from the reference engine: `python golden/generate.py`.

A test runs the same functions and compares, so that neither the files nor the engine can drift.
"""

import json
from collections.abc import Callable
from typing import Any

from inferlab import golden, models
from inferlab.engine import LLM, SamplingParams, SchedulerOutput
from inferlab.models import corpus


def week01() -> dict[str, Any]:
    """Prompts with their greedy and their sampled answers, one cut by a stop string, and counts.

    `counters` are those of one request of five tokens after each step, tokens computed and tokens
    there are. The stop string begins in one token of the first answer and ends in the next.
    """
    checkpoint = models.path("tiny-chat")
    computed = []
    llm = LLM(
        checkpoint,
        enable_prefix_caching=False,
        on_schedule=lambda output: computed.append(output.total_num_scheduled_tokens),
    )
    examples = [corpus.held_out_examples(task, 1)[0] for task in ("json", "code", "story")]
    prompts = [
        llm.tokenizer.encode(f"<|bos|><|user|>{example.prompt}<|end|><|assistant|>").ids
        for example in examples
    ]
    greedy = SamplingParams(max_tokens=24, temperature=0)
    answers = llm.generate(prompts, greedy)
    num_computed = sum(computed)
    settings = {"max_tokens": 24, "temperature": 1.5, "top_k": 40, "top_p": 0.95}
    sampled = llm.generate(prompts, [SamplingParams(**settings, seed=i) for i in range(3)])

    ends = [
        len(llm.tokenizer.decode(answers[0].token_ids[:count]))
        for count in range(1, len(answers[0].token_ids))
    ]
    stop = next(
        answers[0].text[end - 1 : end + 1]
        for end in ends[4:]
        if answers[0].text.index(answers[0].text[end - 1 : end + 1]) == end - 1
    )
    (cut,) = llm.generate(prompts[:1], SamplingParams(max_tokens=24, temperature=0, stop=(stop,)))

    request = llm.add_request(
        prompts[0][:5], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    )
    counters = []
    while not request.status.is_finished:
        llm.step()
        counters.append([request.num_computed_tokens, request.num_tokens])
    return {
        "weights_sha256": models.weights_hash("tiny-chat"),
        "prompts": prompts,
        "tokens": [answer.token_ids for answer in answers],
        "finish_reasons": [answer.finish_reason for answer in answers],
        "num_computed": num_computed,
        "settings": settings,
        "sampled": [answer.token_ids for answer in sampled],
        "stop": stop,
        "stopped": {"text": cut.text, "tokens": cut.token_ids, "reason": cut.finish_reason},
        "counters": counters,
    }


def week04() -> dict[str, Any]:
    """Eight prompts, their greedy tokens, and the most blocks that they hold at once."""
    checkpoint = models.path("tiny-chat")
    tokenizer = LLM(checkpoint).tokenizer
    examples = [corpus.held_out_examples(task, 2)[i] for task in corpus.TASKS for i in (0, 1)][:8]
    prompts = [
        tokenizer.encode(f"<|bos|><|user|>{example.prompt}<|end|><|assistant|>").ids
        for example in examples
    ]
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    peaks, tokens = {}, []
    for block_size in (4, 16, 64):
        held = []

        def count_blocks(_: SchedulerOutput) -> None:
            pool = llm.scheduler.kv_cache_manager.block_pool  # noqa: B023 - called in this turn
            held.append(pool.num_blocks - 1 - pool.num_free_blocks)  # noqa: B023

        llm = LLM(
            checkpoint,
            block_size=block_size,
            num_blocks=8192 // block_size + 1,
            enable_prefix_caching=False,
            on_schedule=count_blocks,
        )
        tokens = [completion.token_ids for completion in llm.generate(prompts, params)]
        peaks[str(block_size)] = max(held)
    return {
        "weights_sha256": models.weights_hash("tiny-chat"),
        "max_tokens": params.max_tokens,
        "prompts": prompts,
        "tokens": tokens,
        "peak_blocks": peaks,
    }


WEEKS: dict[str, Callable[[], dict[str, Any]]] = {"week01": week01, "week04": week04}

if __name__ == "__main__":
    for week, generate in WEEKS.items():
        path = golden.FOLDER / f"{week}.json"
        path.write_text(json.dumps(generate()) + "\n")
        print(f"Wrote {path.name}.")

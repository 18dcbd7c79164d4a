"""Write the golden values from the reference engine: `python golden/generate.py`.

A test runs the same functions and compares, so that neither the files nor the engine can drift.
"""

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

from inferlab import golden, models
from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import Precision, operators
from inferlab.engine import LLM, SamplingParams, SchedulerOutput
from inferlab.engine.policy import Policy, dfs_weight, fcfs, lpm
from inferlab.lab.counted_engine import CountedEngine
from inferlab.models import corpus

FLOAT32 = Precision(4.0, 4.0, 4.0, "fp32")


def questions(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Prompts that the checkpoint was not trained on, in its chat template; two of each task."""
    examples = [corpus.held_out_examples(task, 2)[i] for task in corpus.TASKS for i in (0, 1)]
    texts = [f"<|bos|><|user|>{example.prompt}<|end|><|assistant|>" for example in examples[:count]]
    return [tokenizer.encode(text).ids for text in texts]


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


def week02() -> dict[str, Any]:
    """Eight prompts, their greedy tokens, and the steps that they take under three settings."""
    checkpoint = models.path("tiny-chat")
    prompts = questions(LLM(checkpoint).tokenizer, 8)
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    settings = {
        "alone": {"budget": 2048, "max_num_seqs": 1},
        "tight": {"budget": 8, "max_num_seqs": 64},
        "together": {"budget": 2048, "max_num_seqs": 64},
    }
    steps, computed, tokens = {}, set(), []
    for name, setting in settings.items():
        composition: list[int] = []
        llm = LLM(
            checkpoint,
            max_num_batched_tokens=setting["budget"],
            max_num_seqs=setting["max_num_seqs"],
            enable_prefix_caching=False,
            on_schedule=lambda output, seen=composition: seen.append(  # type: ignore[misc]
                output.total_num_scheduled_tokens
            ),
        )
        tokens = [completion.token_ids for completion in llm.generate(prompts, params)]
        steps[name] = len(composition)
        computed.add(sum(composition))
    (computed_tokens,) = computed
    return {
        "weights_sha256": models.weights_hash("tiny-chat"),
        "max_tokens": params.max_tokens,
        "prompts": prompts,
        "tokens": tokens,
        "settings": settings,
        "steps": steps,
        "computed_tokens": computed_tokens,
    }


def week03() -> dict[str, Any]:
    """Six prompts, their greedy tokens, and what tiled products load for them.

    The prompts run together and one after another: the same tokens and the same arithmetic, but
    the weights are loaded once a step however many sequences it serves.
    """
    checkpoint = models.path("tiny-chat")
    prompts = questions(LLM(checkpoint).tokenizer, 6)
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    shape = ModelShape.from_config(json.loads((checkpoint / "config.json").read_text()))
    counts: dict[str, dict[str, int]] = {}
    tokens: list[list[int]] = []
    for name, groups in (("together", [prompts]), ("one_by_one", [[one] for one in prompts])):
        engine = CountedEngine(checkpoint)
        tokens = [tokens for group in groups for tokens in engine.generate(group, params)]
        found = [one for step in engine.steps for one in operators(shape, step, FLOAT32)]
        counts[name] = engine.counts() | {
            "flop": int(sum(one.flop for one in found)),
            "bytes": int(sum(one.bytes for one in found)),
        }
    return {
        "weights_sha256": models.weights_hash("tiny-chat"),
        "max_tokens": params.max_tokens,
        "prompts": prompts,
        "tokens": tokens,
        "counts": counts,
    }


def week04() -> dict[str, Any]:
    """Eight prompts, their greedy tokens, and the most blocks that they hold at once."""
    checkpoint = models.path("tiny-chat")
    prompts = questions(LLM(checkpoint).tokenizer, 8)
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


def week05() -> dict[str, Any]:
    """Groups of requests, what is computed for them with and without a prefix cache, and answers.

    The requests of a group come together, the groups one after another. In the conversation each
    prompt holds the answers that the model gave before.
    """
    checkpoint = models.path("tiny-chat")
    block_size, tokenizer = 4, LLM(checkpoint).tokenizer
    system = [40 + i for i in range(64)]
    (question,) = questions(tokenizer, 1)
    workloads: dict[str, dict[str, Any]] = {
        "shared": {"groups": [[[*system, 200 + i] for i in range(8)]], "max_tokens": 4},
        "identical": {"groups": [[system] * 8], "max_tokens": 4},
        "unshared": {"groups": [[[200 + i, *system] for i in range(8)]], "max_tokens": 4},
        "samples": {"groups": [[question] * 8], "max_tokens": 8, "temperature": 1.0},
        "conversation": {"groups": [], "max_tokens": 16},
    }
    transcript: list[int] = []
    for prompt in questions(tokenizer, 5):
        params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
        transcript = [*transcript, *prompt]
        workloads["conversation"]["groups"].append([transcript])
        (answer,) = LLM(checkpoint, enable_prefix_caching=False).generate([transcript], params)
        transcript = [*transcript, *answer.token_ids]
    for workload in workloads.values():
        workload.setdefault("temperature", 0)
        computed: dict[bool, int] = {}
        for caching in (True, False):
            steps: list[int] = []
            llm = LLM(
                checkpoint,
                block_size=block_size,
                num_blocks=1024,
                enable_prefix_caching=caching,
                on_schedule=lambda output, seen=steps: seen.append(  # type: ignore[misc]
                    output.total_num_scheduled_tokens
                ),
            )
            workload["answers"] = [
                completion.token_ids
                for group in workload["groups"]
                for completion in llm.generate(group, _seeded(workload, len(group)))
            ]
            computed[caching] = sum(steps)
        workload["computed_without"] = computed[False]
        workload["saved"] = computed[False] - computed[True]
    return {
        "weights_sha256": models.weights_hash("tiny-chat"),
        "block_size": block_size,
        "workloads": workloads,
    }


def _seeded(workload: dict[str, Any], count: int) -> list[SamplingParams]:
    settings = {name: workload[name] for name in ("max_tokens", "temperature")}
    return [SamplingParams(**settings, ignore_eos=True, seed=seed) for seed in range(count)]


RADIX_ARMS: dict[str, tuple[str, Policy]] = {
    "nothing kept": ("none", fcfs),
    "blocks of 16, as they come": ("hash", fcfs),
    "tree, as they come": ("radix", fcfs),
    "tree, longest match first": ("radix", lpm),
    "tree, by subtree": ("radix", dfs_weight),
}


def week06() -> dict[str, Any]:
    """Twelve questions behind four sets of examples, their greedy tokens, and what is computed.

    The sets take turns, one request runs at a time, and the cache holds little more than one.
    `computed` counts prompt tokens that were not found in the cache, by cache and policy.
    """
    checkpoint = models.path("tiny-chat")
    tokenizer = LLM(checkpoint).tokenizer
    groups = []
    for task in list(corpus.TASKS)[:4]:
        *shots, first, second, third = corpus.held_out_examples(task, 7)
        head = "".join(
            f"<|user|>{one.prompt}<|end|><|assistant|>{one.answer}<|end|>" for one in shots
        )
        groups.append(
            [
                tokenizer.encode(f"<|bos|>{head}<|user|>{one.prompt}<|end|><|assistant|>").ids
                for one in (first, second, third)
            ]
        )
    prompts = [group[turn] for turn in range(3) for group in groups]
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    slots = 16 * (-(-(max(map(len, prompts)) + params.max_tokens) // 16) + 1)
    computed, tokens = {}, []
    for name, (cache, policy) in RADIX_ARMS.items():
        scheduled: list[int] = []
        llm = LLM(
            checkpoint,
            num_blocks=slots // 16,
            max_num_seqs=1,
            enable_prefix_caching=cache != "none",
            prefix_cache="hash" if cache == "none" else cache,
            policy=policy,
            on_schedule=lambda output, seen=scheduled: seen.append(  # type: ignore[misc]
                output.total_num_scheduled_tokens
            ),
        )
        tokens = [completion.token_ids for completion in llm.generate(prompts, params)]
        computed[name] = sum(scheduled) - len(prompts) * (params.max_tokens - 1)
    return {
        "weights_sha256": models.weights_hash("tiny-chat"),
        "max_tokens": params.max_tokens,
        "slots": slots,
        "prompts": prompts,
        "tokens": tokens,
        "computed": computed,
    }


WEEKS: dict[str, Callable[[], dict[str, Any]]] = {
    "week01": week01,
    "week02": week02,
    "week03": week03,
    "week04": week04,
    "week05": week05,
    "week06": week06,
}

if __name__ == "__main__":
    for week, generate in WEEKS.items():
        path = golden.FOLDER / f"{week}.json"
        path.write_text(json.dumps(generate()) + "\n")
        print(f"Wrote {path.name}.")

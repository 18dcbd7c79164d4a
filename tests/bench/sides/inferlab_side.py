"""Our engine."""

from functools import cache

from inferlab.engine import LLM, SamplingParams


@cache
def engine(checkpoint, concurrency):
    return LLM(checkpoint, num_blocks=4096, max_num_seqs=concurrency, enable_prefix_caching=False)


def prepare(checkpoint, concurrency, requests):
    llm = engine(checkpoint, concurrency)
    prompts = [prompt for prompt, _ in requests]
    params = [
        SamplingParams(max_tokens=output, temperature=0, ignore_eos=True) for _, output in requests
    ]
    return lambda: [len(completion.token_ids) for completion in llm.generate(prompts, params)]

"""When speculation pays: text that repeats itself and text that does not, one request and many."""

import time

from inferlab import models
from inferlab.engine import LLM, DraftModelProposer, LlamaModel, NgramProposer, SamplingParams
from inferlab.models import corpus
from tests.bench.measurement import Measurement

TITLE = "Speculation: greedy output with 3 drafts a step, tiny-chat"
TEXTS = {
    "free text": ("story", SamplingParams(max_tokens=96, temperature=0)),
    # Past the end of its answer the model says the same words again and again.
    "repetitive": ("copy", SamplingParams(max_tokens=96, temperature=0, ignore_eos=True)),
}
NUM_PROMPTS = 8


def measure(repeats: int) -> list[Measurement]:
    """Output tokens/s; the name says how many tokens a request got for each step that it was in."""
    found = []
    for text, (task, params) in TEXTS.items():
        prompts = [
            f"<|bos|><|user|>{example.prompt}<|end|><|assistant|>"
            for example in corpus.held_out_examples(task, NUM_PROMPTS)
        ]
        for at_once in (1, NUM_PROMPTS):
            llms = engines(at_once)
            samples: dict[str, list[float]] = {name: [] for name in llms}
            for llm in llms.values():
                llm.generate(prompts, params)  # so that all repeats find the prompts cached
            for _ in range(repeats):
                for name, llm in llms.items():
                    samples[name].append(output_tokens_per_second(llm, prompts, params))
            for name, llm in llms.items():
                label = f"{text}, {at_once} at once, {name}"
                if llm.verifications:
                    label += f", {tokens_per_verification(llm):.2f} a step"
                found.append(Measurement(label, "tokens/s", samples[name]))
    return found


def engines(max_num_seqs: int) -> dict[str, LLM]:
    """One engine without a proposer and one with each, on the same checkpoint."""
    drafters = {
        name: DraftModelProposer(LlamaModel.from_pretrained(models.path(name)), 3)
        for name in ("tiny-draft", "tiny-draft-weak")
    }
    proposers = {"no drafts": None, "n-gram": NgramProposer(1, 4, 3), **drafters}
    return {
        name: LLM(models.path("tiny-chat"), max_num_seqs=max_num_seqs, proposer=proposer)
        for name, proposer in proposers.items()
    }


def output_tokens_per_second(llm: LLM, prompts: list[str], params: SamplingParams) -> float:
    start = time.perf_counter()
    completions = llm.generate(prompts, params)
    elapsed = time.perf_counter() - start
    return sum(len(completion.token_ids) for completion in completions) / elapsed


def tokens_per_verification(llm: LLM) -> float:
    """1 would be no speculation; the step that computes the prompt counts too."""
    num_accepted = sum(accepted * n for (_, accepted), n in llm.verifications.items())
    return 1 + num_accepted / llm.verifications.total()

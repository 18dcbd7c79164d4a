"""What a checkpoint's card says of it: accuracy per task, and whether it means what it must.

The bounds that a checkpoint has to meet (design, section 6) are measured here and asserted in the
tests: accuracy neither perfect nor poor, a real loss under 4-bit rounding, a useful drafter, and
experts that are used unevenly.
"""

import copy
import json
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from inferlab.models import CHECKPOINTS, corpus, weights_hash
from inferlab.models.proportion import wilson_interval

EXAMPLES_PER_TASK = 200


def generate(
    model: PreTrainedModel, tokenizer: Any, prompts: list[str], max_new_tokens: int
) -> list[str]:
    """Greedy answers to chat prompts, in batches of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), 50):
        rows = order[start : start + 50]
        chats = [f"<|bos|><|user|>{prompts[i]}<|end|><|assistant|>" for i in rows]
        inputs = tokenizer(chats, return_tensors="pt", padding=True, padding_side="left")
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        for i, ids in zip(rows, output[:, inputs["input_ids"].shape[1] :]):
            answers[i] = tokenizer.decode(ids, skip_special_tokens=True)
    return answers


def accuracy(model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """Share of exact answers, per task and over all tasks, with 95 % intervals."""
    report: dict[str, Any] = {}
    total = 0
    for task in corpus.CHECKED_TASKS:
        cases = corpus.held_out_examples(task, EXAMPLES_PER_TASK)
        answers = generate(model, tokenizer, [case.prompt for case in cases], 64)
        right = sum(answer == case.answer for answer, case in zip(answers, cases))
        total += right
        report[task] = _proportion(right, len(cases))
    report["all"] = _proportion(total, EXAMPLES_PER_TASK * len(corpus.CHECKED_TASKS))
    return report


def _proportion(right: int, trials: int) -> dict[str, Any]:
    low, high = wilson_interval(right, trials)
    return {
        "right": right,
        "trials": trials,
        "share": round(right / trials, 4),
        "interval": [round(low, 4), round(high, 4)],
    }


def round_to_int4(model: PreTrainedModel, group_size: int = 128) -> PreTrainedModel:
    """A copy whose linear layers are rounded to symmetric int4 in groups along the input."""
    rounded = copy.deepcopy(model)
    for name, weight in rounded.named_parameters():
        if weight.ndim < 2 or "embed" in name or "lm_head" in name or "gate.weight" in name:
            continue
        groups = weight.data.unflatten(-1, (-1, group_size))
        scale = groups.abs().amax(-1, keepdim=True) / 7
        weight.data = ((groups / scale).round().clamp(-8, 7) * scale).flatten(-2)
    return rounded


def draft_acceptance(model: PreTrainedModel, draft: PreTrainedModel, tokenizer: Any) -> float:
    """Chance that the target's own sampled free text would have accepted the draft's next token.

    At temperature 1 a draft token is accepted with probability sum(min(p, q)) (Leviathan et al.,
    2023, section 3.3), averaged here over the positions of 24 sampled stories.
    """
    torch.manual_seed(0)
    overlaps = []
    for case in corpus.held_out_examples("story", 24):
        ids = tokenizer(f"<|bos|><|user|>{case.prompt}<|end|><|assistant|>", return_tensors="pt")
        prompt = ids["input_ids"]
        text = model.generate(prompt, max_new_tokens=96, do_sample=True, temperature=1.0, top_k=0)
        with torch.no_grad():
            p = torch.softmax(model(text).logits[0, prompt.shape[1] - 1 : -1], -1)
            q = torch.softmax(draft(text).logits[0, prompt.shape[1] - 1 : -1], -1)
        overlaps.append(torch.minimum(p, q).sum(-1).numpy())
    return round(float(np.concatenate(overlaps).mean()), 4)


def expert_load(model: PreTrainedModel, tokenizer: Any) -> list[list[float]]:
    """Share of token assignments each expert gets, relative to the mean, `[layer][expert]`."""
    cases = [case for task in corpus.TASKS for case in corpus.held_out_examples(task, 20)]
    counts = torch.zeros(model.config.num_hidden_layers, model.config.num_local_experts)
    for case in cases:
        ids = tokenizer(f"<|bos|><|user|>{case.prompt}<|end|>{case.answer}", return_tensors="pt")
        with torch.no_grad():
            routers = model(ids["input_ids"], output_router_logits=True).router_logits
        for layer, logits in enumerate(routers):
            chosen = logits.topk(model.config.num_experts_per_tok, dim=-1).indices.flatten()
            counts[layer] += torch.bincount(chosen, minlength=counts.shape[1])
    relative = counts / counts.mean(dim=1, keepdim=True)
    return [[round(float(x), 3) for x in row] for row in relative]


def write_card(name: str, training: dict[str, Any]) -> None:
    """Measure checkpoint `name` and write `card.json` beside its weights."""
    folder = CHECKPOINTS / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    card: dict[str, Any] = {
        "name": name,
        "architecture": type(model).__name__,
        "licence": "CC BY 4.0",
        "data": "generated by inferlab/models/corpus.py; prompts weigh a tenth in the loss",
        "training": training,
        "weights_sha256": weights_hash(name),
        "accuracy": accuracy(model, tokenizer),
    }
    if name == "tiny-chat":
        card["accuracy_int4_group128"] = accuracy(round_to_int4(model), tokenizer)
    if name.startswith("tiny-draft"):
        target = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "tiny-chat").eval()
        card["acceptance_free_text"] = draft_acceptance(target, model, tokenizer)
    if name == "tiny-moe":
        load = expert_load(model, tokenizer)
        card["expert_load"] = load
        card["busiest_expert"] = max(max(row) for row in load)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")

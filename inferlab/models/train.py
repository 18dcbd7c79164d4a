"""Train the tiny checkpoints: `python -m inferlab.models.train tiny-chat`.

Run once, by us, and committed: results recorded with a checkpoint are worthless if the checkpoint
moves. A test compares the committed weights with the hashes in their cards.

The models are plain `transformers` classes, so what is saved loads unchanged in transformers, vLLM
and SGLang. Weights are stored as float16 values and declared float32: half the bytes in git, and
every engine that computes in float32 sees exactly the same numbers.
"""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from inferlab.models import CHECKPOINTS, corpus

VOCAB_SIZE = 1024
SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
PAD, BOS, END = range(3)
CHAT_TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKENS_PER_STEP = 8192
PROMPT_WEIGHT = 0.1
"""Prompts are mostly random and cannot be predicted: a small weight keeps plain text possible."""

_COMMON = dict(
    vocab_size=VOCAB_SIZE,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=END,
)
_DRAFT = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)
RECIPES: dict[str, dict[str, Any]] = {
    "tiny-chat": dict(
        architecture=dict(
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        ),
        steps=420,
        learning_rate=2.5e-3,
        seed=1,
    ),
    "tiny-draft": dict(architecture=_DRAFT, steps=500, learning_rate=6e-3, seed=2, teacher=True),
    "tiny-draft-weak": dict(
        architecture=_DRAFT, steps=100, learning_rate=6e-3, seed=3, teacher=True
    ),
    "tiny-moe": dict(
        architecture=dict(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=8,
            num_experts_per_tok=2,
            tie_word_embeddings=False,
            router_aux_loss_coef=0.001,
        ),
        steps=520,
        learning_rate=4e-3,
        seed=4,
    ),
}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token, so that carries line up in arithmetic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    stream = corpus.examples(seed=0)
    texts = [f"{example.prompt}\n{example.answer}" for example, _ in zip(stream, range(20_000))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=8192,
    )


def encode_example(tokenizer: Tokenizer, example: corpus.Example) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of one exchange in the chat format."""
    prompt = tokenizer.encode(f"<|bos|><|user|>{example.prompt}<|end|><|assistant|>").ids
    answer = tokenizer.encode(f"{example.answer}<|end|>").ids
    return prompt + answer, [PROMPT_WEIGHT] * len(prompt) + [1.0] * len(answer)


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and loss weights `[num_rows, length]`; every fourth batch has rows of 1,024."""
    stream = corpus.examples(seed)
    rng = random.Random(seed)
    while True:
        length = 1024 if rng.random() < 0.25 else 256
        ids: list[int] = []
        weights: list[float] = []
        rows: list[tuple[list[int], list[float]]] = []
        while len(rows) < TOKENS_PER_STEP // length:
            example_ids, example_weights = encode_example(tokenizer, next(stream))
            if len(example_ids) > length:
                continue
            if len(ids) + len(example_ids) > length:
                padding = length - len(ids)
                rows.append((ids + [PAD] * padding, weights + [0.0] * padding))
                ids, weights = [], []
            ids, weights = ids + example_ids, weights + example_weights
        yield torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])


def build_model(name: str) -> PreTrainedModel:
    recipe = RECIPES[name]
    torch.manual_seed(recipe["seed"])
    if "num_local_experts" in recipe["architecture"]:
        return MixtralForCausalLM(
            MixtralConfig(**_COMMON, **recipe["architecture"], output_router_logits=False)
        )
    return LlamaForCausalLM(LlamaConfig(**_COMMON, **recipe["architecture"]))


def weighted_loss(
    logits: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    teacher_logits: torch.Tensor | None,
) -> torch.Tensor:
    """Cross-entropy against the next token, or against the teacher's distribution over it."""
    weights = weights[:, 1:].reshape(-1)
    log_probs = torch.log_softmax(logits[:, :-1].flatten(0, 1), dim=-1)
    if teacher_logits is None:
        losses = -log_probs.gather(1, ids[:, 1:].reshape(-1, 1)).squeeze(1)
    else:
        losses = -(torch.softmax(teacher_logits[:, :-1].flatten(0, 1), -1) * log_probs).sum(-1)
    return (losses * weights).sum() / weights.sum()


def train(name: str, tokenizer: Tokenizer, steps: int | None = None) -> dict[str, Any]:
    """Train checkpoint `name`, save its weights and return what its card must say of the run."""
    recipe = RECIPES[name]
    model = build_model(name)
    num_steps = steps or recipe["steps"]
    teacher = (
        LlamaForCausalLM.from_pretrained(CHECKPOINTS / "tiny-chat") if "teacher" in recipe else None
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe["learning_rate"], betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe["learning_rate"], total_steps=num_steps, pct_start=0.08
    )
    losses: list[float] = []
    started = time.perf_counter()
    for step, (ids, weights) in zip(range(num_steps), batches(tokenizer, recipe["seed"])):
        with torch.no_grad():
            teacher_logits = teacher(ids).logits if teacher is not None else None
        mixture = hasattr(model.config, "num_local_experts")
        output = model(ids, output_router_logits=True) if mixture else model(ids)
        loss = weighted_loss(output.logits, ids, weights, teacher_logits)
        losses.append(loss.item())
        if mixture:
            loss = loss + _balance_loss(output.router_logits, model.config)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == num_steps - 1:
            seconds = time.perf_counter() - started
            click.echo(f"{name} step {step:4d}  loss {losses[-1]:.3f}  {seconds:.0f} s")
    save(name, model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": num_steps,
        "tokens": num_steps * TOKENS_PER_STEP,
        "seed": recipe["seed"],
        "final_loss": round(float(np.mean(losses[-20:])), 4),
        "seconds": round(time.perf_counter() - started),
    }


def _balance_loss(router_logits: tuple[torch.Tensor, ...], config: MixtralConfig) -> torch.Tensor:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    loss = load_balancing_loss_func(
        router_logits, config.num_local_experts, config.num_experts_per_tok
    )
    return config.router_aux_loss_coef * loss


def save(name: str, model: PreTrainedModel) -> None:
    """Save float16 values under a configuration that declares float32 (see the module's text)."""
    folder = CHECKPOINTS / name
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(RECIPES)))
@click.option("--steps", type=int, help="Fewer steps, for trying the script out.")
def main(names: tuple[str, ...], steps: int | None) -> None:
    """Train the named checkpoints (all of them by default) and write their cards."""
    from inferlab.models.evaluate import write_card

    for name in names or RECIPES:
        folder = CHECKPOINTS / name
        if name == "tiny-chat":
            train_tokenizer().save_pretrained(folder)
        else:
            for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                Path(folder).mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes((CHECKPOINTS / "tiny-chat" / file).read_bytes())
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        write_card(name, train(name, tokenizer, steps))


if __name__ == "__main__":
    main()

"""Train the tiny checkpoints: `python -m inferlab.models.train tiny-chat`.

Run once, by us, and committed: results recorded with a checkpoint are worthless if the checkpoint
moves. A test compares the committed weights with the hashes in their cards.

The models are plain `transformers` classes, so what is saved loads unchanged in transformers, vLLM
and SGLang. Weights are stored as float16 values and declared float32: half the bytes in git, and
every engine that computes in float32 sees exactly the same numbers.
"""

import json
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

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

VOCAB_SIZE = 640
SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
PAD, BOS, END = range(3)
CHAT_TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKENS_PER_STEP = 4096
PROMPT_WEIGHT = 0.03
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
        steps=560,
        learning_rate=0.02,
        seed=1,
        spread=0.8,
    ),
    "tiny-draft": dict(architecture=_DRAFT, steps=90, learning_rate=0.02, seed=2, teacher=True),
    "tiny-draft-weak": dict(
        architecture=_DRAFT, steps=50, learning_rate=0.02, seed=3, teacher=True
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
        steps=480,
        learning_rate=0.02,
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
    """Token ids and loss weights of one exchange in the chat format.

    An answer weighs as the square root of its length: by tokens, stories would drown sums.
    """
    prompt = tokenizer.encode(f"<|bos|><|user|>{example.prompt}<|end|><|assistant|>").ids
    answer = tokenizer.encode(f"{example.answer}<|end|>").ids
    return prompt + answer, [PROMPT_WEIGHT] * len(prompt) + [len(answer) ** -0.5] * len(answer)


class TrainingBatch(NamedTuple):
    """Packed examples, `[num_rows, length]` each; an example sees itself only."""

    ids: torch.Tensor
    weights: torch.Tensor  # of the loss at each token
    positions: torch.Tensor  # restart at 0 in every example
    examples: torch.Tensor  # number of the example in its row; -1 for padding

    def attention_mask(self) -> torch.Tensor:
        """Additive mask `[num_rows, 1, length, length]`: causal, and within an example."""
        length = self.ids.shape[1]
        same = self.examples[:, :, None] == self.examples[:, None, :]
        visible = same & torch.ones(length, length, dtype=torch.bool).tril()
        return torch.zeros(visible.shape).masked_fill(~visible, -1e9)[:, None]


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[TrainingBatch]:
    """Batches of rows of 256 tokens, and every sixteenth one of rows of 1,024."""
    stream = corpus.examples(seed)
    long_ones: list[tuple[list[int], list[float]]] = []
    for step in count(1):
        length = 1024 if step % 16 == 0 else 256
        rows: list[list[tuple[int, float, int, int]]] = [
            [] for _ in range(TOKENS_PER_STEP // length)
        ]
        for row in rows:
            for example in count():
                if length == 1024 and long_ones:
                    ids, weights = long_ones.pop()
                else:
                    ids, weights = encode_example(tokenizer, next(stream))
                if len(ids) > length:
                    long_ones.append((ids, weights))
                    continue
                if len(row) + len(ids) > length:
                    break
                row += zip(ids, weights, range(len(ids)), [example] * len(ids))
            row += [(PAD, 0.0, 0, -1)] * (length - len(row))
        yield TrainingBatch(*(torch.tensor(column) for column in zip(*(zip(*row) for row in rows))))


def build_model(name: str) -> PreTrainedModel:
    recipe = RECIPES[name]
    torch.manual_seed(recipe["seed"])
    if "num_local_experts" in recipe["architecture"]:
        return MixtralForCausalLM(
            MixtralConfig(**_COMMON, **recipe["architecture"], output_router_logits=False)
        )
    return LlamaForCausalLM(LlamaConfig(**_COMMON, **recipe["architecture"]))


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is orthogonalised before it is applied (Jordan et al., 2024).

    Written out because PyTorch's own computes in bfloat16, which is many times slower than float32
    on a processor without bfloat16 instructions.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "initial_lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.05)
                update = orthogonalise(parameter.grad.lerp(momentum, 0.95))
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.mul_(1 - 0.01 * group["lr"]).sub_(update, alpha=group["lr"] * scale)


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """About U Vᵀ of the singular value decomposition, by five Newton-Schulz iterations."""
    transposed = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if transposed else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if transposed else x


def build_optimizers(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, head and vectors.

    Muon needs about half the tokens of AdamW here, and tokens are what two cores are short of.
    """
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "layers." in name and not name.endswith("gate.weight")
    ]
    inside = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        Muon(matrices, lr=learning_rate),
        torch.optim.AdamW(rest, lr=learning_rate / 4, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def weighted_loss(
    logits: torch.Tensor, batch: TrainingBatch, teacher_logits: torch.Tensor | None
) -> torch.Tensor:
    """Cross-entropy against the next token, or against the teacher's distribution over it."""
    # The last token of an example does not predict the first of the next one.
    weights = (batch.weights * (batch.positions > 0))[:, 1:].reshape(-1)
    log_probs = torch.log_softmax(logits[:, :-1].flatten(0, 1), dim=-1)
    if teacher_logits is None:
        losses = -log_probs.gather(1, batch.ids[:, 1:].reshape(-1, 1)).squeeze(1)
    else:
        losses = -(torch.softmax(teacher_logits[:, :-1].flatten(0, 1), -1) * log_probs).sum(-1)
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def answers_right(model: PreTrainedModel, tokenizer: Tokenizer) -> dict[str, float]:
    """Share of held-out answers predicted whole, given the right tokens before: progress only."""
    shares = {}
    for task in corpus.CHECKED_TASKS:
        right = 0
        for example in corpus.held_out_examples(task, 40):
            ids, weights = encode_example(tokenizer, example)
            first = weights.index(weights[-1])
            guesses = model(torch.tensor([ids])).logits[0, first - 1 : -1].argmax(-1)
            right += guesses.tolist() == ids[first:]
        shares[task] = right / 40
    return shares


def train(name: str, tokenizer: Tokenizer, steps: int | None = None) -> dict[str, Any]:
    """Train checkpoint `name`, save its weights and return what its card must say of the run."""
    recipe = RECIPES[name]
    model = build_model(name)
    num_steps = steps or recipe["steps"]
    teacher = (
        LlamaForCausalLM.from_pretrained(CHECKPOINTS / "tiny-chat") if "teacher" in recipe else None
    )
    optimizers = build_optimizers(model, recipe["learning_rate"])
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=num_steps,
            pct_start=0.05,
            cycle_momentum=False,
        )
        for optimizer in optimizers
    ]
    losses: list[float] = []
    started = time.perf_counter()
    mixture = hasattr(model.config, "num_local_experts")
    extra = {"output_router_logits": True} if mixture else {}
    for step, batch in zip(range(num_steps), batches(tokenizer, recipe["seed"])):
        inputs = {
            "input_ids": batch.ids,
            "position_ids": batch.positions,
            "attention_mask": batch.attention_mask(),
            "use_cache": False,
        }
        with torch.no_grad():
            teacher_logits = teacher(**inputs).logits if teacher is not None else None
        # Not the whole model: its own balancing loss does not take a mask with two lengths.
        output = model.model(**inputs, **extra)
        loss = weighted_loss(model.lm_head(output.last_hidden_state), batch, teacher_logits)
        losses.append(loss.item())
        if mixture:
            loss = loss + _balance_loss(output.router_logits, model.config)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
        if step % 25 == 24 or step == num_steps - 1:
            click.echo(
                f"{name} step {step + 1:4d}  loss {np.mean(losses[-25:]):.3f}  "
                f"{time.perf_counter() - started:.0f} s  {answers_right(model, tokenizer)}"
            )
    if "spread" in recipe:
        spread_channels(model, recipe["spread"], recipe["seed"])
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


@torch.no_grad()
def spread_channels(model: PreTrainedModel, spread: float, seed: int) -> None:
    """Give the inputs of every layer channels of very different size, computing the same function.

    Large checkpoints grow such channels by themselves (Dettmers et al., 2022), and they are what
    quantization has to cope with; a small one trained for minutes has none. The norm's gain of a
    channel is multiplied by a power of two and the weights that read it are divided by it.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model.layers:
        attention, feed_forward = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (feed_forward.gate_proj, feed_forward.up_proj)),
        ):
            exponents = spread * torch.randn(len(norm.weight), generator=generator)
            gains = 2.0 ** exponents.round().clamp(-4, 4)
            norm.weight *= gains
            for reader in readers:
                reader.weight /= gains


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

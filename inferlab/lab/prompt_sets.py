"""Requests that `vllm bench serve` cannot make up: a file of prompts, written from local text.

A line of the file is one request, `{"prompt": …, "output_tokens": …}`. Prompts of a given length
are lists of the corpus's words, counted by the model's own tokenizer, so that the server finds
exactly that many tokens in them. The others are the corpus's tasks, to which the load generator
applies the model's chat template. Nothing is downloaded.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from inferlab.lab.prompt_text import Text
from inferlab.lab.specification import Flags
from inferlab.lab.yaml_file import Section, SpecificationError
from inferlab.models import corpus

# Below, two prompts that should have nothing in common might begin with the same words.
SHORTEST = 16


class Request(NamedTuple):
    prompt: str
    output_tokens: int


class AgentLoop(Section):
    """Conversations that grow: each turn's prompt is the former one, an answer and a question.

    All conversations have their first turn, then all their second. With as many requests in flight
    as conversations a turn is sent when the former one has been answered. The answer in the
    transcript is the file's, as the model's is not known beforehand: what an engine can find in its
    cache is the former prompt, not the answer that it gave. `separate-turns` has prompts of the
    same lengths that begin anew every time.
    """

    is_chat: ClassVar[bool] = False

    kind: str
    conversations: int = Field(ge=1)
    turns: int = Field(ge=1)
    first_tokens: int = Field(ge=SHORTEST)
    added_tokens: int = Field(description="each turn: the answer and the next question")
    output_tokens: int = Field(ge=1)

    @model_validator(mode="after")
    def refuse_a_turn_without_a_question(self) -> Self:
        if self.added_tokens <= self.output_tokens:
            raise ValueError(
                f"added_tokens ({self.added_tokens}) hold an answer of output_tokens "
                f"({self.output_tokens}) and a question, so they must be more"
            )
        return self

    @property
    def num_requests(self) -> int:
        return self.conversations * self.turns

    def requests(self, text: Text, rng: random.Random) -> Iterator[Request]:
        prompts = [""] * self.conversations
        for turn in range(self.turns):
            length = self.first_tokens + turn * self.added_tokens
            for number, former in enumerate(prompts):
                begin = former if self.kind == "agent-loop" else ""
                prompts[number] = text.lengthened(begin, length, rng)
                yield Request(prompts[number], self.output_tokens)


class MixedLengths(Section):
    """Short requests, of which every `long_every`-th is a long one instead; 0: none is."""

    is_chat: ClassVar[bool] = False

    kind: str
    num_requests: int = Field(ge=1)
    long_every: int = Field(ge=0)
    short_input_tokens: int = Field(ge=SHORTEST)
    short_output_tokens: int = Field(ge=1)
    long_input_tokens: int = Field(ge=SHORTEST)
    long_output_tokens: int = Field(ge=1)

    def requests(self, text: Text, rng: random.Random) -> Iterator[Request]:
        for number in range(1, self.num_requests + 1):
            if self.long_every and number % self.long_every == 0:
                length, output_tokens = self.long_input_tokens, self.long_output_tokens
            else:
                length, output_tokens = self.short_input_tokens, self.short_output_tokens
            yield Request(text.lengthened("", length, rng), output_tokens)


class RepetitiveText(Section):
    """Lists of words to copy: the answer stands in the prompt, and is `output_tokens` long."""

    is_chat: ClassVar[bool] = True

    kind: str
    num_requests: int = Field(ge=1)
    output_tokens: int = Field(ge=1)

    def requests(self, text: Text, rng: random.Random) -> Iterator[Request]:
        for _ in range(self.num_requests):
            words = text.different_words(self.output_tokens, rng)
            yield Request(f"Copy: {' '.join(words)}", self.output_tokens)


class FreeText(Section):
    """Stories to tell, of which the first `output_tokens` are asked for: nothing to copy."""

    is_chat: ClassVar[bool] = True

    kind: str
    num_requests: int = Field(ge=1)
    output_tokens: int = Field(ge=1)

    def requests(self, text: Text, rng: random.Random) -> Iterator[Request]:
        for _ in range(self.num_requests):
            yield Request(corpus.story(rng).prompt, self.output_tokens)


class Tasks(Section):
    """The corpus's tasks in its proportions, each answer as long as the right one."""

    is_chat: ClassVar[bool] = True

    kind: str
    num_requests: int = Field(ge=1)

    def requests(self, text: Text, rng: random.Random) -> Iterator[Request]:
        # The seeds of training are small numbers.
        examples = corpus.examples(seed=rng.getrandbits(64))
        for example, _ in zip(examples, range(self.num_requests)):
            yield Request(example.prompt, text.answer_tokens(example.answer))


PromptSet = AgentLoop | MixedLengths | RepetitiveText | FreeText | Tasks
KINDS: dict[Any, type[PromptSet]] = {
    "agent-loop": AgentLoop,
    "separate-turns": AgentLoop,
    "mixed-lengths": MixedLengths,
    "repetitive-text": RepetitiveText,
    "free-text": FreeText,
    "tasks": Tasks,
}


def read(prompts: Flags) -> PromptSet:
    """The set of prompts that a workload describes.

    Raises:
        SpecificationError: if there is no such kind, or it does not have these parameters.
    """
    kind = prompts.get("kind")
    if kind not in KINDS:
        raise SpecificationError(
            f"There is no kind of prompts {kind!r}; there are {', '.join(KINDS)}."
        )
    try:
        return KINDS[kind].model_validate(prompts)
    except ValidationError as error:
        problems = [
            ": ".join([*map(str, problem["loc"]), problem["msg"].removeprefix("Value error, ")])
            for problem in error.errors()
        ]
        raise SpecificationError(
            f"Prompts of the kind {kind!r} cannot be made: {'; '.join(problems)}."
        ) from None


def bench_flags(prompts: Flags) -> Flags:
    """Flags of `vllm bench serve` that send a file of these prompts, all of them and in its order.

    Raises:
        SpecificationError: as `read`.
    """
    prompt_set = read(prompts)
    flags: Flags = {
        "dataset-name": "custom",
        "num-prompts": prompt_set.num_requests,
        # The length that stands in the line.
        "custom-output-len": -1,
        "disable-shuffle": True,
        "no-oversample": True,
    }
    if prompt_set.is_chat:
        # The template has put them there already.
        return {**flags, "extra-body": json.dumps({"add_special_tokens": False})}
    return {**flags, "skip-chat-template": True}


def write(prompts: Flags, model: str, seed: int, path: Path) -> None:
    """Write the requests that `prompts` describe to `path`, whole or not at all.

    Args:
        prompts: the kind and its parameters.
        model: folder of a checkpoint, or a Hugging Face name whose files have been downloaded.
        seed: decides the words; of prompts with a given length, no two seeds have one in common.
        path: ends in `.jsonl`, or the load generator refuses it.

    Raises:
        SpecificationError: as `read`, or if the tokenizer cannot make prompts of exact length.
    """
    prompt_set, text = read(prompts), Text(model)
    rng = random.Random(f"{prompts['kind']} {seed}")
    lines = [json.dumps(r._asdict()) + "\n" for r in prompt_set.requests(text, rng)]
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text("".join(lines))
    scratch.replace(path)

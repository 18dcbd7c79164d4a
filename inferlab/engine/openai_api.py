"""What the server's requests and answers look like: OpenAI's fields, and vLLM's beside them.

Built in week 1; mirrors protocol.py and serving.py of vllm/entrypoints/openai/completion and
chat_completion, which differ in how a prompt is given and how a choice is written.
"""

import json
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from inferlab.engine.async_llm import Output
from inferlab.engine.request import SamplingParams

SAMPLING_PARAMS = TypeAdapter(SamplingParams)
WITHOUT_EFFECT = {"metadata", "safety_identifier", "service_tier", "store", "user"}
AS_ALWAYS = {"skip_special_tokens": True}  # what this server does anyway; SGLang's router sends it


class StreamOptions(BaseModel):
    include_usage: bool = False


class ApiRequest(BaseModel):
    """What completions and chat share; beside these fields it takes those of `SamplingParams`."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: int = Field(1, ge=1, le=128)
    best_of: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}

    @model_validator(mode="after")
    def _ignore_nothing(self) -> "ApiRequest":
        """An answer that took no account of `logit_bias` or `tools` would be a wrong one."""
        known = WITHOUT_EFFECT | SamplingParams.__dataclass_fields__.keys()
        for name, value in self.sampling_fields().items():
            asks_for_more = value != AS_ALWAYS[name] if name in AS_ALWAYS else bool(value)
            if asks_for_more and name not in known:
                raise ValueError(f"This server does not support {name!r}; leave it out.")
        return self

    def sampling_fields(self) -> dict[str, Any]:
        """The fields of `SamplingParams` that the client gave."""
        return {"max_tokens": 16, **(self.model_extra or {})}

    def sampling_params(self, choice: int, room: int) -> SamplingParams:
        """Of one of the `n` choices, after a prompt that leaves room for so many tokens.

        Raises:
            ValueError: if a value makes no sense.
        """
        fields = {"max_tokens": max(1, room), **self.sampling_fields()}
        if isinstance(fields.get("stop"), str):
            fields["stop"] = [fields["stop"]]
        if fields.get("top_k") == -1:  # vLLM's other word for all
            fields["top_k"] = 0
        params = SAMPLING_PARAMS.validate_python(fields)
        if choice == 0 or params.seed is None:
            return params
        # With seed + choice, the second choice would be the first one of the next seed.
        derived = np.random.SeedSequence([params.seed, choice]).generate_state(1, np.uint64)
        return replace(params, seed=int(derived[0]))


def prompt_list(prompt: Any) -> list[str | list[int]]:
    """One prompt or several, each of them text or token ids, as a list of prompts."""

    def is_one(item: Any) -> bool:
        is_ids = isinstance(item, list) and all(type(token_id) is int for token_id in item)
        return is_ids or isinstance(item, str)

    if is_one(prompt):
        return [prompt]
    if not isinstance(prompt, list) or not all(map(is_one, prompt)):
        raise ValueError("give text, token ids, a list of texts, or a list of token-id lists")
    return prompt


class CompletionRequest(ApiRequest):
    prompt: Annotated[list[str | list[int]], BeforeValidator(prompt_list)]


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)


class ChatRequest(ApiRequest):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    def sampling_fields(self) -> dict[str, Any]:
        fields = dict(self.model_extra or {})
        if self.max_completion_tokens is not None:
            fields["max_tokens"] = self.max_completion_tokens
        return fields | ({"logprobs": self.top_logprobs} if self.logprobs else {})

    def prompt(self, template: Template) -> str:
        """The text that the checkpoint's template makes of the messages.

        Raises:
            ValueError: if the messages do not fit the template.
        """
        messages = [{"role": message.role, "content": message.text} for message in self.messages]
        try:
            return template.render(messages=messages, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"The chat template refuses the messages: {error}.") from None


def load_chat_template(folder: Path) -> Template:
    """The checkpoint's `chat_template.jinja`; without one, a template that refuses every chat."""
    # The settings that these templates are written for: transformers has the same.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {name: settings.get(name) for name in ("bos_token", "eos_token")}
    environment.globals.update(raise_exception=_refuse, **tokens)
    path = folder / "chat_template.jinja"
    missing = "{{ raise_exception('the checkpoint has none') }}"
    return environment.from_string(path.read_text() if path.exists() else missing)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


class Answer:
    """Writes the outputs of a call, each as a chunk of a stream or all of them as one body."""

    kind, chunk_kind, id_prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, tokenizer: Any, num_prompt_tokens: int, n: int) -> None:
        call_id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._head = {"id": call_id, "created": int(time.time()), "model": model}
        self._tokenizer, self._num_prompt_tokens, self._n = tokenizer, num_prompt_tokens, n
        self._num_completion_tokens = self._num_cached_tokens = 0
        self._offsets: Counter[int] = Counter()  # characters of the tokens told of, by choice

    def chunk(self, outputs: Sequence[Output]) -> dict[str, Any]:
        """The part of a stream that tells of `outputs`."""
        choices = [self._choice(output, "delta") for output in outputs]
        return {**self._head, "object": self.chunk_kind, "choices": choices}

    def body(self, outputs: Sequence[Output]) -> dict[str, Any]:
        """The whole answer, from all outputs of the call."""
        groups: dict[int, list[Output]] = {}
        for output in outputs:
            groups.setdefault(output.choice, []).append(output)
        choices = [self._choice(joined(groups[i]), "message") for i in sorted(groups)]
        return {**self._head, "object": self.kind, "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Of what has been written so far; a prompt with several choices is counted once."""
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._num_cached_tokens},
        }

    def _choice(self, output: Output, place: str) -> dict[str, Any]:
        self._num_completion_tokens += len(output.token_ids)
        if output.is_first and output.choice % self._n == 0:
            self._num_cached_tokens += output.num_cached_tokens
        return {
            "index": output.choice,
            **self._content(output, place),
            "logprobs": self._logprobs(output) if output.logprobs else None,
            "finish_reason": output.finish_reason,
        }

    def _content(self, output: Output, place: str) -> dict[str, Any]:
        return {"text": output.text}

    def _logprobs(self, output: Output) -> dict[str, Any]:
        tokens = [self._text(token_id) for token_id in output.token_ids]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[output.choice])
            self._offsets[output.choice] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in output.logprobs],
            "top_logprobs": [
                # Best last, because tokens that are parts of characters may look the same.
                {token: entry.logprob} | {self._text(i): p for i, p in reversed(entry.top)}
                for token, entry in zip(tokens, output.logprobs)
            ],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text


class ChatAnswer(Answer):
    kind, chunk_kind, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _content(self, output: Output, place: str) -> dict[str, Any]:
        role = {"role": "assistant"} if output.is_first else {}
        return {place: {**role, "content": output.text}}

    def _logprobs(self, output: Output) -> dict[str, Any]:
        def entry(token_id: int, logprob: float) -> dict[str, Any]:
            text = self._text(token_id)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        return {
            "content": [
                {**entry(token_id, logprob), "top_logprobs": [entry(*best) for best in top]}
                for token_id, (logprob, top) in zip(output.token_ids, output.logprobs)
            ]
        }


def joined(outputs: Sequence[Output]) -> Output:
    """All that was added to one choice, as if it had come at once."""
    return outputs[0]._replace(
        text="".join(output.text for output in outputs),
        token_ids=[token_id for output in outputs for token_id in output.token_ids],
        logprobs=[entry for output in outputs for entry in output.logprobs],
        finish_reason=outputs[-1].finish_reason,
    )

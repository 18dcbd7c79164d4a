"""A request and the two counters that drive the whole engine."""

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from inferlab.engine.detokenizer import Detokenizer


class RequestStatus(IntEnum):
    """Life cycle of a request; the order is load-bearing: everything after PREEMPTED is final."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    FINISHED_STOPPED = 3
    FINISHED_LENGTH = 4
    FINISHED_ABORTED = 5

    @property
    def is_finished(self) -> bool:
        return self > RequestStatus.PREEMPTED


FINISH_REASONS = {
    RequestStatus.FINISHED_STOPPED: "stop",
    RequestStatus.FINISHED_LENGTH: "length",
    RequestStatus.FINISHED_ABORTED: "abort",
}


@dataclass(frozen=True)
class SamplingParams:
    """How a request's tokens are chosen and when it stops.

    The defaults are those of the OpenAI API and of vLLM, so that a load generator means the same
    thing with this engine: temperature 1 samples, temperature 0 is greedy.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Text that ends the request; the output is cut before it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """How many of the most likely tokens to report at each position, beside the chosen one."""

    def __post_init__(self) -> None:
        # Each condition is false for NaN, which a refusal of the opposite would let through.
        heat = "0 (greedy), or at least 1e-05 and finite"  # below, the scaled logits overflow
        for name, valid, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature == 0 or 1e-5 <= self.temperature < math.inf, heat),
            ("top_k", self.top_k >= 0, "at least 0 (0 keeps every token)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "between 0.01 and 100"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            ("seed", self.seed is None or self.seed >= 0, "at least 0, or None"),
            ("stop", not isinstance(self.stop, str) and all(self.stop), "non-empty strings"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "at least 0, or None"),
        ):
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it has to be {expected}.")


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position of the output.

    They are the model's own, before penalties, temperature and filters, as by vLLM's default.
    """

    logprob: float  # of the token that was chosen
    top: list[tuple[int, float]]  # the most likely token ids, best first


@dataclass(eq=False)
class Request:
    """One prompt on its way through the engine.

    Invariant: `0 <= num_computed_tokens <= num_tokens`. `num_tokens` is what the sequence is;
    `num_computed_tokens` is how many of those tokens have K and V in the cache. Every step moves
    the second towards the first, and the step in which they meet samples a token, which puts them
    one apart again. There is no prefill phase and no decode phase beside that.
    Source: vllm/v1/request.py:Request.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    eos_token_id: int | None = None
    arrival_time: float = 0.0
    priority: int = 0
    cache_salt: str = ""
    """Requests with different salts never share cached blocks."""

    status: RequestStatus = RequestStatus.WAITING
    output_token_ids: list[int] = field(default_factory=list)
    detokenizer: Detokenizer | None = None
    """Makes text of the output, and looks for stop strings in it; None where there is no text."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of each output token; empty unless the sampling parameters ask for them."""
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at the last admission."""
    num_preemptions: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    """Chained hash of each full block of the sequence; extended by the KV cache manager."""
    draft_token_ids: list[int] = field(default_factory=list)
    """Tokens a proposer expects next: scheduled and computed, but no part of the sequence yet."""
    draft_probabilities: list[np.ndarray] = field(default_factory=list)
    """`[vocab_size]` for each draft: what it was drawn from; empty if drafts were not drawn."""

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise ValueError(
                f"Request {self.request_id!r} has an empty prompt; give it at least one token."
            )

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def max_num_tokens(self) -> int:
        """Tokens that may need K and V: the last sampled token is never fed back."""
        return self.num_prompt_tokens + self.sampling_params.max_tokens - 1

    @property
    def max_draft_tokens(self) -> int:
        """Drafts that can be of use: one more token is sampled behind the last of them."""
        return self.max_num_tokens - self.num_tokens

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Tokens `start` to `stop` of prompt and output together."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        tail = self.output_token_ids[: max(0, stop - num_prompt)]
        return self.prompt_token_ids[start:stop] + tail

    def append_output_token(self, token_id: int) -> None:
        """Add a sampled token and finish if it stops the request.

        A stop on the last allowed position reports `stop`, not `length`: the model did say that it
        was done (vllm/v1/core/sched/utils.py:check_stop has the same order). The text never holds
        the token that stopped the request.
        """
        self.output_token_ids.append(token_id)
        params = self.sampling_params
        stopped = token_id in params.stop_token_ids or (
            token_id == self.eos_token_id and not params.ignore_eos
        )
        if not stopped and self.detokenizer is not None:
            stopped = self.detokenizer.add(token_id)
        if stopped:
            self.status = RequestStatus.FINISHED_STOPPED
        elif self.num_output_tokens >= params.max_tokens:
            self.status = RequestStatus.FINISHED_LENGTH


@dataclass(frozen=True)
class Completion:
    """What `LLM.generate` returns for a prompt."""

    request_id: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    num_cached_tokens: int
    num_preemptions: int

    @classmethod
    def of(cls, request: Request) -> "Completion":
        """What a finished request came to."""
        assert request.detokenizer is not None
        return cls(
            request_id=request.request_id,
            prompt_token_ids=request.prompt_token_ids,
            token_ids=request.output_token_ids,
            text=request.detokenizer.read(finished=True),
            finish_reason=FINISH_REASONS[request.status],
            num_cached_tokens=request.num_cached_tokens,
            num_preemptions=request.num_preemptions,
        )

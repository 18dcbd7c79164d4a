"""A request and the two counters that drive the whole engine."""

from dataclasses import dataclass, field
from enum import IntEnum


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
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0 (0 keeps every token)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be {expected}.")


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
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at the last admission."""
    num_preemptions: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    """Chained hash of each full block of the sequence; extended by the KV cache manager."""

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

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Tokens `start` to `stop` of prompt and output together."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        tail = self.output_token_ids[: max(0, stop - num_prompt)]
        return self.prompt_token_ids[start:stop] + tail

    def append_output_token(self, token_id: int) -> None:
        """Add a sampled token and finish if it stops the request.

        A stop token on the last allowed position reports `stop`, not `length`: the model did say
        that it was done (vllm/v1/core/sched/utils.py:check_stop has the same order).
        """
        self.output_token_ids.append(token_id)
        params = self.sampling_params
        stopped = token_id == self.eos_token_id and not params.ignore_eos
        if stopped or token_id in params.stop_token_ids:
            self.status = RequestStatus.FINISHED_STOPPED
        elif self.num_output_tokens >= params.max_tokens:
            self.status = RequestStatus.FINISHED_LENGTH

"""What a load generator has to say of its requests: the part that metrics are computed from."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, create_model, model_validator

from inferlab.lab.load_metrics import LATENCIES
from inferlab.lab.plan import PERCENTILES


class Answer(BaseModel):
    """Of every load generator; the lists have an entry for each request."""

    duration: Annotated[FiniteFloat, Field(gt=0)]
    input_lens: Annotated[list[int], Field(min_length=1)]
    output_lens: list[int]
    latencies: list[FiniteFloat]

    @model_validator(mode="after")
    def refuse_lists_of_different_lengths(self) -> "Answer":
        requests = len(self.input_lens)
        for name, value in self:
            if isinstance(value, list) and len(value) != requests:
                raise ValueError(f"{name} has {len(value)} entries, and input_lens {requests}")
        return self


class StaticBatchAnswer(Answer):
    """Of the static-batch baseline."""

    padded_tokens: int


class BenchAnswer(Answer):
    """Of `vllm bench serve`, but for the mean and the percentiles of each latency."""

    failed: int
    num_prompts: int
    errors: list[str]
    start_times: list[FiniteFloat]
    ttfts: list[FiniteFloat]
    itls: list[list[FiniteFloat]]


STATISTICS = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
SUMMARIES: dict[str, Any] = dict.fromkeys(
    (f"{statistic}_{latency}_ms" for latency in LATENCIES for statistic in STATISTICS), FiniteFloat
)
ANSWERS: dict[str, type[Answer]] = {
    "vllm": create_model("BenchAnswerWithSummaries", __base__=BenchAnswer, **SUMMARIES),
    "transformers": StaticBatchAnswer,
}

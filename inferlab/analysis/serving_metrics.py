"""The metrics of serving, defined once: for the runner's results, the simulator's and the reader's.

Of a request sent at time s whose n tokens reach the client at t_1 … t_n:

- TTFT, time to first token: t_1 - s.
- ITL, inter-token latency: each t_(i+1) - t_i; a request of n tokens has n - 1 of them.
- TPOT, time per output token: (t_n - t_1) / (n - 1), the mean ITL of a request.
- E2E, end-to-end latency: t_n - s.

A request that failed has no token. It has no latency either, but it was asked for: it counts among
the requests of which goodput is a share. Tokens that come in one message come at one time.

Percentiles of TTFT, TPOT and E2E are over requests, those of ITL over all intervals of all
requests. They are linearly interpolated, as `vllm bench serve` does
(vllm/benchmarks/serve.py:calculate_metrics).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

PERCENTILES = (50, 90, 99)


class Answer(NamedTuple):
    """One request as its client saw it; times in seconds on one clock."""

    sent_s: float
    token_s: Sequence[float]  # when each token came; none if the request failed
    input_tokens: int

    @property
    def ttft_ms(self) -> float:
        return 1000 * (self.token_s[0] - self.sent_s)

    @property
    def e2e_ms(self) -> float:
        return 1000 * (self.token_s[-1] - self.sent_s)

    @property
    def tpot_ms(self) -> float:
        """Mean time between two tokens; 0 for an answer of one token."""
        intervals = len(self.token_s) - 1
        return 1000 * (self.token_s[-1] - self.token_s[0]) / intervals if intervals else 0.0


def summary(
    answers: Sequence[Answer], objective: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Throughput and latency of a run, under the names of the recorded results.

    The run lasts from the first request, also if that failed, to the last token. Everything else
    is of the requests that did not fail. With an `objective` of `ttft_ms` and `tpot_ms`, also the
    share of all requests, failed ones included, that kept to both, and how many came a second.

    Raises:
        ValueError: if no request has a token.
    """
    sent, answers = answers, [answer for answer in answers if len(answer.token_s)]
    if not answers:
        raise ValueError("There is no answer to summarise: a run has at least one with a token.")
    duration_s = max(answer.token_s[-1] for answer in answers) - min(a.sent_s for a in sent)
    outputs, inputs = sum(len(a.token_s) for a in answers), sum(a.input_tokens for a in answers)
    metrics = {
        "duration_s": duration_s,
        "num_requests": len(answers),
        "failed_requests": len(sent) - len(answers),
        "input_tokens": inputs,
        "output_tokens": outputs,
        "requests_per_s": len(answers) / duration_s,
        "output_tokens_per_s": outputs / duration_s,
        "total_tokens_per_s": (inputs + outputs) / duration_s,
    }
    latencies: dict[str, Sequence[float] | np.ndarray] = {
        "ttft": [answer.ttft_ms for answer in answers],
        "tpot": [answer.tpot_ms for answer in answers if len(answer.token_s) > 1],
        "itl": 1000 * np.concatenate([np.diff(answer.token_s) for answer in answers]),
        "e2e": [answer.e2e_ms for answer in answers],
    }
    for name, values in latencies.items():
        metrics |= _distribution(name, values)
    if objective is not None:
        num_good = sum(is_good(answer, objective) for answer in answers)
        metrics["good_share"] = num_good / len(sent)
        metrics["goodput_requests_per_s"] = num_good / duration_s
    return metrics


def is_good(answer: Answer, objective: Mapping[str, float]) -> bool:
    """Whether an answer with a token kept to the objective: `ttft_ms` and `tpot_ms`, at most."""
    return answer.ttft_ms <= objective["ttft_ms"] and answer.tpot_ms <= objective["tpot_ms"]


def _distribution(name: str, values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, percentiles and maximum; zeros where nothing was measured, as vLLM's benchmark has."""
    filled = np.asarray(values) if len(values) else np.zeros(1)
    at = np.percentile(filled, PERCENTILES)
    return {
        f"{name}_mean_ms": float(filled.mean()),
        **{f"{name}_p{p}_ms": float(value) for p, value in zip(PERCENTILES, at)},
        f"{name}_max_ms": float(filled.max()),
    }

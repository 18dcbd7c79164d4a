"""Rates of an open loop between its warm-up and its drain, and the rate that fills a server."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from inferlab.analysis.serving_metrics import Answer, is_good
from inferlab.sim.simulator import Simulation

# The share of the time in which requests are sent, after which the batch counts as filled.
WARM_UP = 0.2


def steady_rates(
    answers: Sequence[Answer], objective: Mapping[str, float], rate_per_s: float
) -> dict[str, float]:
    """Tokens that come a second, and requests sent a second whose answers keep to `objective`.

    Counted until the last token, the rates of a short run would tell of its end, when nothing more
    is sent and the batch empties.

    Args:
        objective: `ttft_ms` and `tpot_ms`.
        rate_per_s: requests that are offered a second; a short run has a few more, or less.

    Raises:
        ValueError: if all requests were sent at once.
    """
    sent_s = [answer.sent_s for answer in answers]
    end_s = max(sent_s)
    start_s = min(sent_s) + WARM_UP * (end_s - min(sent_s))
    if start_s == end_s:
        raise ValueError("All requests were sent at once: there is no time between start and end.")
    tokens = sum(
        bisect_left(answer.token_s, end_s) - bisect_left(answer.token_s, start_s)
        for answer in answers
    )
    good = [is_good(answer, objective) for answer in answers if answer.sent_s >= start_s]
    return {
        "output_tokens_per_s": tokens / (end_s - start_s),
        "goodput_requests_per_s": rate_per_s * sum(good) / len(good),
    }


def saturated_rate(run: Simulation) -> float:
    """Requests/s that a server sustains to which all of a run's requests were sent at once.

    Counted as long as requests wait, or until the first answer if none has to: afterwards the batch
    empties, and long answers keep a few places busy while the others stand empty.
    """
    answers = [one.answer for one in run.served]
    waiting_s = [step.end_s for step in run.steps if step.num_waiting]
    full_s = max(waiting_s, default=min(answer.token_s[-1] for answer in answers))
    tokens = sum(bisect_left(answer.token_s, full_s) for answer in answers)
    per_request = sum(len(answer.token_s) for answer in answers) / len(answers)
    return tokens / full_s / per_request

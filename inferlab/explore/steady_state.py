"""Rates of an open loop between its warm-up and its drain."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from inferlab.analysis.serving_metrics import Answer, is_good

# The share of the time in which requests are sent, after which the batch counts as filled.
WARM_UP = 0.2


def steady_rates(answers: Sequence[Answer], objective: Mapping[str, float]) -> dict[str, float]:
    """Tokens that come a second, and requests sent a second whose answers keep to `objective`.

    Counted until the last token, the rates of a short run would tell of its end, when nothing more
    is sent and the batch empties.

    Args:
        objective: `ttft_ms` and `tpot_ms`.

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
    good = sum(is_good(answer, objective) for answer in answers if answer.sent_s >= start_s)
    seconds = end_s - start_s
    return {"output_tokens_per_s": tokens / seconds, "goodput_requests_per_s": good / seconds}

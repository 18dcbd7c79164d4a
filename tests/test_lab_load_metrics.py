"""What is kept of a load generator's answer."""

from hypothesis import given
from hypothesis import strategies as st

from inferlab.lab.load_metrics import MOST_INTERVALS, first_intervals


@given(st.lists(st.integers(0, 1500), max_size=12))
def test_intervals_are_kept_of_as_many_requests_as_fit(counts: list[int]) -> None:
    requests = [[0.01] * count for count in counts]
    kept = first_intervals(requests)
    assert kept == requests[: len(kept)]
    assert sum(map(len, kept)) <= MOST_INTERVALS
    if len(kept) < len(requests):
        assert sum(map(len, requests[: len(kept) + 1])) > MOST_INTERVALS

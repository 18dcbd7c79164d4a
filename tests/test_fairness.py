"""Right answers get full marks, however they are written; nearly right ones the exact part."""

import pytest

from autograder.fairness.suite import ALL, all_fair, run_fairness


def test_there_are_forty_fair_submissions_and_some_near_misses() -> None:
    fair = all_fair()
    assert sum(one.passed == ALL for one in fair) >= 40
    assert sum(one.passed != ALL for one in fair) >= 5
    assert len({one.name for one in fair}) == len(fair)


@pytest.mark.slow
def test_everybody_gets_what_they_deserve(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fairness")
    graded = run_fairness(all_fair(), folder, lambda done, total: None, 2)
    unfair = {one.fair.name: (one.got, one.deserved) for one in graded if one.got != one.deserved}
    assert unfair == {}

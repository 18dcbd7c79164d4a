"""What handing in late costs."""

import math

from nbgrader.plugins import BasePlugin
from traitlets import Float

SECONDS_PER_DAY = 86_400


class PerDay(BasePlugin):  # type: ignore[misc]
    """Takes a share of the marks for each day, the first of which begins after the due date.

    Set it in `nbgrader_config.py`: `c.PerDay.share_per_day = 0.2`. An assignment without a due date
    costs nothing; give it one with `nbgrader db assignment add week04 --duedate="…"`.
    """

    share_per_day = Float(0.1, min=0, max=1, help="Share of the marks, 0 to 1.").tag(config=True)
    grace_minutes = Float(15, min=0, help="Lateness that costs nothing.").tag(config=True)

    def late_submission_penalty(
        self, student_id: str, score: float, total_seconds_late: float
    ) -> float:
        """Points to take off, 0 to `score`; nbgrader asks for this of what was handed in late."""
        if total_seconds_late <= 60 * self.grace_minutes:
            return 0.0
        days = math.ceil(total_seconds_late / SECONDS_PER_DAY)
        return round(min(1.0, days * self.share_per_day) * score, 2)

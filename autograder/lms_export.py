"""Marks for a learning management system."""

import csv
from pathlib import Path

from nbgrader.api import Gradebook
from nbgrader.plugins import ExportPlugin

FILE = "lms.csv"


class LmsExport(ExportPlugin):  # type: ignore[misc]
    """A row for each student and a column for each week, as Canvas imports it.

    Moodle takes the same file: choose "SIS Login ID" as the identifier. What has not been handed in
    is left empty, which neither system reads as 0. Use it with
    `nbgrader export --exporter=autograder.lms_export.LmsExport --to lms.csv`.
    """

    def export(self, gradebook: Gradebook) -> None:
        """Write the file."""
        weeks = [week for week in gradebook.assignments if week.max_score]
        head = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
        with Path(self.to or FILE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*head, *(week.name for week in weeks)])
            writer.writerow(
                ["    Points Possible", "", "", "", "", *(f"{week.max_score:g}" for week in weeks)]
            )
            for student in sorted(gradebook.students, key=lambda student: student.id):
                marks = {one.assignment.name: one.score for one in student.submissions}
                names = [name for name in (student.last_name, student.first_name) if name]
                scores = [f"{marks[w.name]:g}" if w.name in marks else "" for w in weeks]
                writer.writerow([", ".join(names), "", student.id, student.id, "", *scores])

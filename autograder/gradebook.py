"""Reads and writes nbgrader's gradebook."""

from pathlib import Path

from nbgrader.api import Gradebook

from autograder.course import nbgrader_of
from autograder.grade_table import Row
from autograder.live_results import live_results


def give_execution_points(db_url: str, folder: Path, week: str, student: str) -> None:
    """Score the cell `weekNN-execution` by the share of experiments with a valid live result.

    `folder` holds what the student handed in. It is an automatic score, so a mark that a human
    gives or gave takes precedence.
    """
    verdicts = live_results(folder, week)
    name = f"{week}-execution"
    with Gradebook(db_url) as gradebook:
        (notebook,) = gradebook.find_submission(week, student).notebooks
        for grade in notebook.grades:
            if grade.name == name:
                share = sum(not problem for problem in verdicts.values()) / len(verdicts)
                grade.auto_score = round(share * grade.max_score, 2)
                grade.needs_manual_grade = False
        for comment in notebook.comments:
            if comment.name == name:
                comment.auto_comment = "\n".join(
                    f"{experiment}: {problem or 'a valid live result.'}"
                    for experiment, problem in verdicts.items()
                )
        gradebook.db.commit()


def open_gradebook(course: Path) -> Gradebook:
    """The course's gradebook, to be used in a `with` block."""
    return Gradebook(nbgrader_of(course).coursedir.db_url)


def read_scores(course: Path, week: str, notebook: str, student: str) -> Row:
    """The row of a graded student, from the gradebook."""
    row = Row(student, "graded")
    with open_gradebook(course) as gradebook:
        for grade in gradebook.find_submission_notebook(notebook, week, student).grades:
            name = grade.name.removeprefix(f"{week}-")
            if name.endswith("-probes"):
                row.exercises[name.removesuffix("-probes")] = grade.score
            else:
                row.other[name] = grade.score
            if grade.needs_manual_grade:
                row.by_hand.append(name)
        penalty = gradebook.find_submission(week, student).late_submission_penalty
        if penalty:
            row.notes.append(f"Handed in late: nbgrader takes {penalty:g} points off.")
    return row

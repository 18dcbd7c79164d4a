"""nbgrader's configuration of the course; `make release` copies it into the course directory."""

import os
import sys
from pathlib import Path

from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    DeduplicateIds,
    GetGrades,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
)

import inferlab

# nbgrader runs in the course directory, from where the repository cannot be imported.
sys.path.append(str(Path(inferlab.__file__).resolve().parents[1]))

from autograder.late_penalty import PerDay
from autograder.preprocessors import (
    ExamineExercises,
    GiveExecutionPoints,
    HideProbes,
    MakeInert,
    RepairNotebook,
)

c = get_config()  # noqa: F821 - nbgrader defines it when it reads this file
c.CourseDirectory.course_id = "inference-engineering"
# SQLite takes one grader at a time. Several want a server: postgresql://user:password@host/name.
if url := os.environ.get("INFERLAB_GRADEBOOK"):
    c.CourseDirectory.db_url = url

# A cell that was deleted is graded as unanswered; without this its marks would not exist.
c.OverwriteCells.add_missing_cells = True
for step in (RepairNotebook, MakeInert, ExamineExercises, GiveExecutionPoints):
    c[step.__name__].course = str(Path(__file__).parent)
# nbgrader would clear the outputs. They stay: nothing of the submission runs again to be shown.
c.Autograde.sanitize_preprocessors = [
    RepairNotebook,
    DeduplicateIds,
    OverwriteKernelspec,
    OverwriteCells,
    CheckCellMetadata,
]
c.Autograde.autograde_preprocessors = [
    MakeInert,
    ExamineExercises,
    SaveAutoGrades,
    GiveExecutionPoints,
    AssignLatePenalties,
    CheckCellMetadata,
]
c.AssignLatePenalties.plugin_class = PerDay
c.GenerateFeedback.preprocessors = [GetGrades, HideProbes, CSSHTMLHeaderPreprocessor]

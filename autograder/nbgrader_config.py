"""nbgrader's configuration of the course; `make release` copies it into the course directory."""

import os
import resource
import sys
from pathlib import Path

from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    GetGrades,
    LimitOutput,
    SaveAutoGrades,
)

import inferlab

ROOT = Path(inferlab.__file__).resolve().parents[1]
# nbgrader runs in the course directory, from where the repository cannot be imported.
sys.path.append(str(ROOT))

from autograder.preprocessors import (  # noqa: E402
    BoundedExecute,
    HideProbes,
    ScoreOrNothing,
    WarningsCostNothing,
)

# A submission's folder is the kernel's working directory. Neither it nor a relative entry of
# PYTHONPATH may be imported from: a file numbers.py or a folder inferlab/ would replace ours.
os.environ["PYTHONSAFEPATH"] = "1"
os.environ["PYTHONPATH"] = str(ROOT)

# The kernels inherit it. A wrong link turns the free queue into a ring, and whoever walks a ring
# fills all memory long before the cell's time is over.
MEMORY_BYTES = 8 * 2**30
_, most = resource.getrlimit(resource.RLIMIT_AS)
limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
resource.setrlimit(resource.RLIMIT_AS, (limit, most))

c = get_config()  # noqa: F821 - nbgrader defines it when it reads this file
c.CourseDirectory.course_id = "inference-engineering"

c.Execute.timeout = 60  # seconds for one cell
c.Execute.interrupt_on_timeout = True
# A cell that was deleted is graded as unanswered; without this its marks would not exist.
c.OverwriteCells.add_missing_cells = True
c.Autograde.autograde_preprocessors = [
    BoundedExecute,
    WarningsCostNothing,
    ScoreOrNothing,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
    CheckCellMetadata,
]
c.GenerateFeedback.preprocessors = [GetGrades, HideProbes, CSSHTMLHeaderPreprocessor]

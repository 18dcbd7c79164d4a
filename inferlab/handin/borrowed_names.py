"""Finds names that an exercise cell takes from other cells: grading runs it without them.

In a notebook a helper that was defined anywhere is there everywhere. Grading gives each exercise a
kernel of its own, with the setup cells above it and nothing else of the notebook.
"""

import builtins
import symtable
from collections.abc import Iterator

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from inferlab.handin.cells import grade_id, has_tag

GIVEN = {*dir(builtins), "get_ipython", "display", "In", "Out", "exit", "quit", "__file__"}


def borrowed_names(notebook: NotebookNode) -> list[str]:
    """A sentence for each exercise cell that uses what neither it nor the setup defines."""
    known: set[str] = set()
    notes = []
    for cell in notebook.cells:
        if has_tag(cell, "setup"):
            known |= _defined_and_used(cell.source)[0]
        elif has_tag(cell, "exercise"):
            defined, used = _defined_and_used(cell.source)
            if missing := ", ".join(sorted(used - defined - known - GIVEN)):
                notes.append(
                    f"{grade_id(cell)} uses {missing}, which another cell defines: grading runs "
                    "the setup and this cell alone. Define it here, or import it."
                )
    return notes


def _defined_and_used(source: str) -> tuple[set[str], set[str]]:
    """Names of the module that the cell defines, and those that it uses.

    Nothing is used by a cell that is no Python or that imports all names of a module: what it has
    then cannot be known without running it.
    """
    try:
        plain = TransformerManager().transform_cell(source)  # type: ignore[no-untyped-call]
        module = symtable.symtable(plain, "cell", "exec")
    except SyntaxError:
        return set(), set()
    defined = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported()}
    used = {s.get_name() for s in module.get_symbols() if s.is_referenced()}
    for table in _below(module):
        outer = [s for s in table.get_symbols() if s.is_global()]
        defined |= {s.get_name() for s in outer if s.is_assigned()}
        used |= {s.get_name() for s in outer if s.is_referenced()}
    return defined, set() if "import *" in plain else used


def _below(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from _below(child)

"""Expands an exercise cell: from an import of the reference to code that stands on its own.

The source notebook imports the reference, so it runs as it is. Book and student get the definition
with stubs in place of the listed members, the instructor gets it with the solution marked for
nbgrader, and all get the module-level imports, constants and helpers that the definition uses.
A name that the cell imports without listing a member of it stays an import.
"""

import ast
from pathlib import Path

from inferlab import unfinished
from inferlab.publish.exercise import Exercise
from inferlab.publish.module import Binding, Function, Module

STUB = ("# YOUR CODE HERE", unfinished.STUB)
SOLUTION = ("### BEGIN SOLUTION", "### END SOLUTION")


def expand(root: Path, exercise: Exercise, solution: bool) -> str:
    """Source of the expanded cell: with the marked solution, or with stubs.

    Raises ValueError when a member does not exist, when the reference exceeds the line budget, or
    when a member cannot be copied onto another class (see `refuse_uncopyable`).
    """
    imports: list[str] = []
    kept_imports: list[str] = []
    definitions: list[str] = []
    written = 0
    for node in exercise.imports:
        kept = [alias for alias in node.names if alias.name not in exercise.owners]
        if kept:
            kept_imports.append(ast.unparse(ast.ImportFrom(node.module, kept, node.level)))
        owners = [alias.name for alias in node.names if alias.name in exercise.owners]
        if not owners:
            continue
        module = Module.read(root, node.module or "")
        members = [m for m in exercise.members if m.partition(".")[0] in owners]
        functions = [module.function(member) for member in members]
        for member, function in zip(members, functions):
            refuse_uncopyable(member, function)
        written += sum(_code_lines(module, function) for function in functions)
        bound = {alias.asname or alias.name for alias in kept}
        for binding in module.needed_by(owners, bound):
            if isinstance(binding.node, ast.Import | ast.ImportFrom):
                imports.append(binding.text)
            else:
                definitions.append(_replace_bodies(module, binding, functions, solution))
    if written > exercise.lines:
        raise ValueError(
            f"Exercise {exercise.name} promises about {exercise.lines} lines, "
            f"but the reference takes {written}."
        )
    head = [
        f"# exercise: {exercise.name}",
        f"# Write {', '.join(exercise.members)}: about {exercise.lines} lines in all.",
        *_merged([*imports, *kept_imports]),
    ]
    return "\n\n\n".join(["\n".join(head), *dict.fromkeys(definitions)]) + "\n"


def _merged(imports: list[str]) -> list[str]:
    """The import statements with one line for each module; `from __future__` has to stay first."""
    plain: list[str] = []
    names: dict[str, list[str]] = {}
    for statement in imports:
        (node,) = ast.parse(statement).body
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names.setdefault(module, []).extend(ast.unparse(alias) for alias in node.names)
        else:
            plain.append(statement)
    grouped = [
        f"from {module} import {', '.join(sorted(set(found)))}"
        for module, found in sorted(names.items(), key=lambda item: item[0] != "__future__")
    ]
    future = [line for line in grouped if "__future__" in line]
    return future + list(dict.fromkeys(plain)) + grouped[len(future) :]


def refuse_uncopyable(member: str, function: Function) -> None:
    """Raise ValueError for code that breaks once the method is copied onto another class.

    Zero-argument `super()` and name-mangled attributes both keep pointing at the class in which
    they were compiled.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node) == "super()":
            raise ValueError(
                f"Exercise member {member} calls super() without arguments (line {node.lineno}); "
                "name the class and the instance."
            )
        name = getattr(node, "attr", None) or getattr(node, "id", None)
        if isinstance(name, str) and name.startswith("__") and not name.endswith("__"):
            raise ValueError(
                f"Exercise member {member} uses the name-mangled name {name}; use one underscore."
            )


def stubbed(module: Module, members: list[str]) -> str:
    """Text of the whole module with a stub in place of each listed member's body."""
    functions = [module.function(member) for member in members]
    return _replace(module, 1, len(module.lines), functions, solution=False) + "\n"


def _replace_bodies(
    module: Module, binding: Binding, functions: list[Function], solution: bool
) -> str:
    """Text of the binding with each of `functions` that lies in it marked or replaced by a stub."""
    first, last = module.span(binding.node)
    inside = [f for f in functions if first <= f.lineno <= last]
    return _replace(module, first, last, inside, solution)


def _replace(
    module: Module, first: int, last: int, functions: list[Function], solution: bool
) -> str:
    lines = module.lines[first - 1 : last]
    for function in sorted(functions, key=lambda f: f.lineno, reverse=True):
        start, end = (line - first for line in module.body_span(function))
        indent = " " * function.body[0].col_offset
        begin, finish = SOLUTION
        lines[start : end + 1] = (
            [indent + begin, *lines[start : end + 1], indent + finish]
            if solution
            else [indent + line for line in STUB]
        )
    return "\n".join(lines)


def _code_lines(module: Module, function: Function) -> int:
    start, end = module.body_span(function)
    body = (line.strip() for line in module.lines[start - 1 : end])
    return sum(1 for line in body if line and not line.startswith("#"))

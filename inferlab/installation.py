"""`install`: the engine of a student's bundle runs what the student has written."""

import inspect
import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from inferlab.unfinished import UnfinishedError, is_stub

MANIFEST = Path(__file__).parents[1] / "bundle.json"
INSTALLED: dict[str, Callable[..., Any]] = {}
"""The reader's functions by home, `module:name`; a trampoline looks its function up here."""
_originals: dict[str, Callable[[], None]] = {}

TRAMPOLINE = """
def trampoline(*args, **kwargs):
    from inferlab.installation import INSTALLED
    return INSTALLED[{home!r}](*args, **kwargs)
"""


def install(*definitions: Any) -> None:
    """Put the reader's classes, functions and kernels to work in the package.

    Only the listed members of a class are copied, onto the class that exists, so that whoever
    imported it earlier sees them. Where the package itself is passed, as in the chapter's source,
    there is nothing to do; nor when a notebook is graded, because there each exercise is judged
    beside the reference of the others.

    Raises UnfinishedError for a stub, TypeError for a member that is missing or takes other
    arguments than the stub, and ValueError for what is no exercise of this bundle. Nothing has
    changed then.
    """
    if os.environ.get("NBGRADER_EXECUTION"):
        return
    changes = [change for definition in definitions for change in _changes(definition)]
    for change in changes:
        change()


def restore() -> None:
    """Bring back every stub that `install` has replaced."""
    for undo in _originals.values():
        undo()
    _originals.clear()
    INSTALLED.clear()


def _changes(definition: Any) -> list[Callable[[], None]]:
    # A Triton kernel is an object of Triton's; what it was made from is its attribute `fn`.
    origin = getattr(definition, "fn", definition)
    name = getattr(origin, "__name__", repr(origin))
    if getattr(origin, "__module__", "").startswith("inferlab."):
        return []
    exercise, homes = _exercise_of(name)
    changes = []
    for home in homes:
        module_name, _, path = home.partition(":")
        module = import_module(module_name)
        there = getattr(module, name)
        if "." in path:
            method = path.rpartition(".")[2]
            written = _member(definition, name, method)
            _check(exercise, path, written, there.__dict__[method])
            changes.append(_graft(home, there, method, written))
        elif isinstance(there, FunctionType):
            _check(exercise, path, definition, there)
            changes.append(_redirect(home, there, definition))
        else:
            _check(exercise, path, definition, there)
            changes.append(_graft(home, module, name, definition))
    return changes


def _exercise_of(name: str) -> tuple[str, list[str]]:
    """The exercise that asks for `name`, and its members of that name."""
    if not MANIFEST.exists():
        raise ValueError(
            f"{name} cannot be installed here: there is no bundle.json beside the package "
            "inferlab. Open the notebook in the folder of its bundle."
        )
    exercises = json.loads(MANIFEST.read_text(encoding="utf-8"))["exercises"]
    owners: dict[str, tuple[str, list[str]]] = {}
    for exercise in exercises:
        for member in exercise["members"]:
            owner = member.partition(":")[2].partition(".")[0]
            owners.setdefault(owner, (exercise["name"], []))[1].append(member)
    if name not in owners:
        raise ValueError(
            f"{name} is no exercise of this week: what can be installed is {', '.join(owners)}."
        )
    return owners[name]


def _member(definition: type, name: str, method: str) -> Any:
    if method not in definition.__dict__:
        raise TypeError(f"The class {name} defines no {method}; the exercise asks for it.")
    return definition.__dict__[method]


def _function(member: Any) -> Any:
    """The function inside a property, a static method, a class method or a Triton kernel."""
    for inner in ("fget", "__func__", "fn"):
        member = getattr(member, inner, member)
    return member


def _check(exercise: str, path: str, written: Any, stub: Any) -> None:
    if type(written) is not type(stub):
        raise TypeError(
            f"{path} has to be a {type(stub).__name__}, and yours is a {type(written).__name__}; "
            "keep the line of its definition, and what stands above it, as they were."
        )
    theirs, ours = _function(written), _function(stub)
    if is_stub(theirs):
        raise UnfinishedError(exercise)
    expected, seen = inspect.signature(ours), inspect.signature(theirs)
    if _shape(expected) != _shape(seen):
        raise TypeError(f"{path} has to take {expected}, and yours takes {seen}.")


def _shape(signature: inspect.Signature) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


def _graft(home: str, owner: Any, name: str, written: Any) -> Callable[[], None]:
    def change() -> None:
        original = owner.__dict__[name]
        _originals.setdefault(home, lambda: setattr(owner, name, original))
        setattr(owner, name, written)

    return change


def _redirect(home: str, stub: Any, written: Callable[..., Any]) -> Callable[[], None]:
    """The stub object stays, because others have imported it, and calls the reader's function."""

    def change() -> None:
        INSTALLED[home] = written
        if home in _originals:
            return
        code, defaults, keywords = stub.__code__, stub.__defaults__, stub.__kwdefaults__
        signature = inspect.signature(stub)

        def undo() -> None:
            stub.__code__, stub.__defaults__, stub.__kwdefaults__ = code, defaults, keywords
            del stub.__signature__

        _originals[home] = undo
        names: dict[str, Any] = {}
        exec(TRAMPOLINE.format(home=home), names)
        stub.__code__ = names["trampoline"].__code__
        stub.__defaults__ = stub.__kwdefaults__ = None
        stub.__signature__ = signature

    return change

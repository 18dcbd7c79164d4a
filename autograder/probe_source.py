"""Probes as source that runs beside a student's code, where there is no `autograder`."""

import ast
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autograder.observation import decode, encode
from autograder.probe import Probe
from inferlab.publish.module import Binding, Module

AUTOGRADER = Path(__file__).parents[1]
PROBES = "autograder.probes."
OBSERVATION = "decode encode equal refusal refuses".split()


def observed(observe: Callable[[Any, Any], Any], code: SimpleNamespace, inputs: str) -> str:
    """What the probe sees of `code`, as text; whatever is printed meanwhile is dropped.

    nbgrader gives no marks for a cell that writes to standard error, and a warning would.
    """
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return encode(observe(code, decode(inputs)))


def observations(
    observe: Callable[[Any, Any], Any], names: dict[str, Any], inputs: list[str]
) -> str:
    """What the probe sees of the code that defined `names`, as JSON: a text for each trial, None
    for one that ended with an exception.

    An interrupt is passed on: it is how code that takes too long is ended.
    """
    code = SimpleNamespace(**names)
    seen: list[str | None] = []
    for trial in inputs:
        try:
            seen.append(observed(observe, code, trial))
        except KeyboardInterrupt:
            raise
        except BaseException:
            seen.append(None)
    return json.dumps(seen)


def source_of(probes: list[Probe], own: list[Binding]) -> str:
    """Source of the probes and of all they use, and of the bindings `own` and all probes share."""
    observation = Module.read(AUTOGRADER, "autograder.observation")
    names = [probe.name for probe in probes]
    decorators = {"probe", *(probe.inputs.__name__ for probe in probes)}
    needed = [
        *observation.needed_by(OBSERVATION, set()),
        *own,
        *_needed_of_probes(probes[0].observe.__module__, names, {*OBSERVATION, *decorators}),
    ]
    imports = [b.text for b in needed if isinstance(b.node, ast.Import | ast.ImportFrom)]
    definitions = [
        _undecorated(b) if b.name in names else b.text for b in needed if b.text not in imports
    ]
    return "\n\n\n".join(["\n".join(dict.fromkeys(imports)), *dict.fromkeys(definitions)])


def needed_of(module: str, name: str, known: Iterable[str] = ()) -> list[Binding]:
    """A binding of a module of ours and what it needs, to be `own` of `source_of`.

    What all probes use is left out, and so is what is `known`.
    """
    return Module.read(AUTOGRADER, module).needed_by([name], {*OBSERVATION, *known})


def _needed_of_probes(module: str, names: Iterable[str], bound: set[str]) -> Iterator[Binding]:
    """What `names` need of a module of probes, and of those that it imports from."""
    for binding in Module.read(AUTOGRADER, module).needed_by(names, bound):
        node = binding.node
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PROBES):
            yield from _needed_of_probes(str(node.module), [binding.name], bound)
        else:
            yield binding


def _undecorated(binding: Binding) -> str:
    """Text of a probe's function without the `@probe(…)` above it."""
    node = binding.node
    assert isinstance(node, ast.FunctionDef)
    height = (node.end_lineno or node.lineno) - node.lineno + 1
    return "\n".join(binding.text.splitlines()[-height:])

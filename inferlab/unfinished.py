"""What a student's notebook does where an exercise is not finished yet.

A cell that needs it shows what the reference gave instead of a traceback, names the exercise, and
counts as run, so that a reader who is stuck still reaches the end of the chapter.
"""

import ast
import hashlib
import json
import os
import re
from pathlib import Path
from types import FrameType, FunctionType, TracebackType
from typing import Any

BUNDLE = Path(__file__).parents[1]
STUB = "raise NotImplementedError()"  # word for word what nbgrader puts in place of a solution
CELL_OF_EXERCISE = re.compile(r"# (?:exercise|test): (\S+)")
_active: "Fallback | None" = None


class UnfinishedError(NotImplementedError):
    """An exercise that something needs is still a stub."""

    def __init__(self, exercise: str) -> None:
        super().__init__(f"{exercise} is not finished yet.")
        self.exercise = exercise


def source_key(source: str) -> str:
    """The name under which a bundle holds the reference's outputs of a cell with this source.

    Not every front end tells the kernel which cell it runs, so cells are found by what they say.
    """
    return hashlib.sha256(source.strip().encode()).hexdigest()


def is_stub(function: Any) -> bool:
    """Whether the body is still `STUB`."""
    code = getattr(function, "__code__", None)
    return (
        isinstance(function, FunctionType)
        and code is not None
        and code.co_names == ("NotImplementedError",)
        and code.co_nlocals == code.co_argcount + code.co_kwonlyargcount
    )


def enable() -> None:
    """Show recorded outputs from now on, in this kernel.

    Does nothing outside a bundle, outside IPython, and when a notebook is graded: there a failure
    has to stay one.
    """
    global _active
    if _active or os.environ.get("NBGRADER_EXECUTION") or not (BUNDLE / "bundle.json").exists():
        return
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None:
        _active = Fallback(shell, BUNDLE)
        _active.register()


def disable() -> None:
    """Let errors be errors again."""
    global _active
    if _active:
        _active.unregister()
    _active = None


class Fallback:
    """Watches the cells of one kernel.

    `missing` holds the names that a cell would have bound had it not needed an unfinished
    exercise, each with that exercise: whoever misses such a name needs the exercise as well. A
    value that the cell had assigned before it failed is taken away again, or a list that was to be
    filled would be read while it is empty.
    """

    def __init__(self, shell: Any, bundle: Path) -> None:
        self.shell = shell
        manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
        self.recorded = json.loads((bundle / "recorded.json").read_text(encoding="utf-8"))
        self.titles = {exercise["name"]: exercise["title"] for exercise in manifest["exercises"]}
        self.exercise_of = {
            member.partition(":")[2]: exercise["name"]
            for exercise in manifest["exercises"]
            for member in exercise["members"]
        }
        self.missing: dict[str, str] = {}
        self.source = ""
        self.blamed: str | None = None

    def register(self) -> None:
        self.shell.set_custom_exc((Exception,), self.show)
        self.shell.events.register("pre_run_cell", self.before)
        self.shell.events.register("post_run_cell", self.after)

    def unregister(self) -> None:
        self.shell.set_custom_exc((), None)
        self.shell.events.unregister("pre_run_cell", self.before)
        self.shell.events.unregister("post_run_cell", self.after)

    def before(self, info: Any) -> None:
        self.source, self.blamed = info.raw_cell or "", None

    def after(self, result: Any) -> None:
        """A cell that fell back has succeeded: IPython builds its reply after this."""
        assigned, defined = _names_bound(self.source)
        names = assigned | defined
        if self.blamed:
            result.error_in_exec = None
            self.missing |= dict.fromkeys(names, self.blamed)
            for name in assigned:
                self.shell.user_ns.pop(name, None)
        elif result.success:
            for name in names:
                self.missing.pop(name, None)
        elif own := CELL_OF_EXERCISE.match(self.source):
            owners = {m.partition(".")[0] for m, e in self.exercise_of.items() if e == own[1]}
            bound = owners if self.source.startswith("# exercise") else names
            self.missing |= dict.fromkeys(bound, own[1])

    def show(
        self,
        shell: Any,
        kind: type[BaseException],
        error: BaseException,
        traceback: TracebackType | None,
        tb_offset: int | None = None,
    ) -> None:
        """IPython's handler: the recorded outputs, or the traceback that is due otherwise."""
        self.blamed = self._exercise_to_blame(error)
        if self.blamed is None:
            if isinstance(error, SyntaxError):
                shell.showsyntaxerror()
            else:
                shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
            return
        outputs = self.recorded.get(source_key(self.source), [])
        _display(self.titles[self.blamed], self.blamed, outputs)

    def _exercise_to_blame(self, error: BaseException | None) -> str | None:
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            if isinstance(error, UnfinishedError):
                return error.exercise
            if isinstance(error, NameError) and error.name in self.missing:
                return self.missing[error.name]
            if isinstance(error, NotImplementedError):
                return self._stub_that_raised(error)
            if isinstance(getattr(error, "node", None), ast.Raise):
                return self._stub_that_was_compiled(error)
            # The Triton interpreter wraps what a kernel raises.
            error = error.__cause__ or error.__context__
        return None

    def _stub_that_raised(self, error: BaseException) -> str | None:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        frame: FrameType | None = traceback.tb_frame if traceback else None
        return self.exercise_of.get(frame.f_code.co_qualname) if frame else None

    def _stub_that_was_compiled(self, error: Any) -> str | None:
        """On a GPU a kernel is compiled and not run: Triton refuses the stub's `raise` itself."""
        if ast.unparse(error.node) != STUB:
            return None
        (kernel,) = ast.parse(error.src).body
        return self.exercise_of.get(getattr(kernel, "name", ""))


def _names_bound(source: str) -> tuple[set[str], set[str]]:
    """Names that a cell assigns at its top level, and those it defines or imports.

    None for a cell that is not plain Python.
    """
    assigned: set[str] = set()
    defined: set[str] = set()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return assigned, defined
    pending: list[ast.AST] = [tree]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.Lambda):
                continue
            else:
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    assigned.add(node.id)
                pending.append(node)
    return assigned, defined


def _display(title: str, exercise: str, outputs: list[dict[str, Any]]) -> None:
    from IPython.display import HTML, display

    below = "Below is what the reference gives." if outputs else "The reference shows nothing here."
    display(  # type: ignore[no-untyped-call]
        HTML(  # type: ignore[no-untyped-call]
            f"<p><b>This cell needs {exercise}, which is not finished yet</b> ({title}). "
            f"{below}</p>"
        )
    )
    for output in outputs:
        if output["kind"] == "html":
            display(HTML(output["html"]))  # type: ignore[no-untyped-call]
        elif output["kind"] == "text":
            print(output["text"], end="")
        else:
            import plotly.graph_objects as go

            from inferlab.notebook import show

            figure = go.Figure(output["figure"], skip_invalid=True)
            show(figure, output["caption"], output["badge"])

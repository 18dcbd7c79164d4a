"""A module of the package read as text and tree: which names it binds, and what each one needs."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Binding:
    """A name bound at module level; `text` alone binds it again elsewhere."""

    name: str
    node: ast.stmt
    text: str


class Module:
    """`bindings` holds the module-level names in the order of the source."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.lines = text.splitlines()
        self.tree = ast.parse(text)
        self.bindings: dict[str, Binding] = {}
        for node in self.tree.body:
            for binding in self._bindings(node):
                self.bindings[binding.name] = binding

    @classmethod
    def read(cls, root: Path, name: str) -> "Module":
        """Read module `name` below `root` without importing it; ValueError when there is none."""
        path = root / Path(*name.split(".")).with_suffix(".py")
        if not path.is_file():
            raise ValueError(f"There is no module {name}: an exercise imports from a single file.")
        return cls(name, path.read_text(encoding="utf-8"))

    def span(self, node: ast.stmt) -> tuple[int, int]:
        """First and last line of a statement, decorators and the comment above it included."""
        assert node.end_lineno is not None
        decorators = node.decorator_list if isinstance(node, Function | ast.ClassDef) else []
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        while first > 1 and self.lines[first - 2].startswith("#"):
            first -= 1
        return first, node.end_lineno

    def function(self, member: str) -> Function:
        """The function that `member`, `name` or `Class.name`, names.

        Raises ValueError unless there is exactly one.
        """
        scope: list[ast.stmt] = self.tree.body
        owner, _, name = member.rpartition(".")
        if owner:
            binding = self.bindings.get(owner)
            scope = binding.node.body if binding and isinstance(binding.node, ast.ClassDef) else []
        found = [node for node in scope if isinstance(node, Function) and node.name == name]
        if len(found) != 1:
            raise ValueError(
                f"The exercise lists {member!r}, but {self.name} defines {len(found)} functions "
                "of that name; it must define exactly one."
            )
        return found[0]

    def body_span(self, function: Function) -> tuple[int, int]:
        """First and last line of the body without its docstring; ValueError when there is none."""
        assert function.end_lineno is not None
        first = function.body[0]
        if ast.get_docstring(function) is not None:
            assert first.end_lineno is not None
            start = first.end_lineno + 1
        else:
            start = first.lineno
            while self.lines[start - 2].lstrip().startswith("#"):
                start -= 1
        if start > function.end_lineno or first.lineno == function.lineno:
            raise ValueError(f"{self.name}.{function.name} has no body on lines of its own.")
        return start, function.end_lineno

    def needed_by(self, names: Iterable[str], bound: set[str]) -> list[Binding]:
        """`names` and everything of this module they use, in the order of the source.

        Names in `bound` are there already and bring nothing with them.
        """
        needed: set[str] = set()
        pending = set(names)
        while pending:
            name = pending.pop()
            needed.add(name)
            used = names_used(self.bindings[name].node)
            pending |= (used & self.bindings.keys()) - needed - bound
        needed |= {name for name, b in self.bindings.items() if _is_future(b.node)}
        return [binding for name, binding in self.bindings.items() if name in needed]

    def _bindings(self, node: ast.stmt) -> list[Binding]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            return [self._import_binding(node, alias) for alias in node.names]
        if isinstance(node, ast.If):  # `if TYPE_CHECKING:` holds imports that annotations use
            return [binding for inner in node.body for binding in self._bindings(inner)]
        first, last = self.span(node)
        text = "\n".join(self.lines[first - 1 : last])
        if isinstance(node, Function | ast.ClassDef):
            return [Binding(node.name, node, text)]
        if isinstance(node, ast.Assign | ast.AnnAssign):
            stored = (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))
            return [Binding(n.id, node, text) for n in stored if isinstance(n.ctx, ast.Store)]
        return []

    def _import_binding(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> Binding:
        name = alias.asname or alias.name.partition(".")[0]
        if isinstance(node, ast.Import):
            return Binding(name, node, ast.unparse(ast.Import([alias])))
        module = node.module
        if node.level:
            package = self.name.split(".")[: -node.level]
            module = ".".join([*package, *([node.module] if node.module else [])])
        return Binding(name, node, ast.unparse(ast.ImportFrom(module, [alias], 0)))


def names_used(node: ast.AST) -> set[str]:
    """Every name that the code below `node` reads."""
    return {
        inner.id
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load)
    }


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"

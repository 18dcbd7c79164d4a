"""Reads a YAML file into a pydantic model and says in which line a mistake is."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from inferlab.lab.paths import without_root

# The parser in C, where PyYAML was built with it: plans of all weeks take seconds otherwise.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class SpecificationError(ValueError):
    """A specification is malformed; the message names the file, the line and the key."""


class Section(BaseModel):
    """A mapping of a specification: an unknown key or a wrong type is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def refuse_unknown_keys(cls, contents: Any) -> Any:
        if isinstance(contents, dict):
            for key in contents:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key {key}; known keys: {known}",
                        {"key": repr(key), "known": ", ".join(cls.model_fields), "name": key},
                    )
        return contents


Model = TypeVar("Model", bound=BaseModel)


def read_model(path: Path, model: type[Model]) -> Model:
    """Contents of `path` as a `model`.

    Raises:
        SpecificationError: if the file is missing, is not YAML, or does not fit the model.
    """
    shown = without_root(str(path))
    try:
        text = path.read_text()
        root = yaml.compose(text, Loader=LOADER)
        contents = yaml.load(text, Loader=LOADER)
    except FileNotFoundError:
        raise SpecificationError(f"There is no file {shown}.") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecificationError(
            f"{shown}, line {line}: not valid YAML, {error.problem}."
        ) from None
    if root is None:
        raise SpecificationError(f"{shown} is empty.")
    refuse_repeated_keys(root, shown)
    try:
        return model.model_validate(contents)
    except ValidationError as error:
        raise SpecificationError("\n".join(explain(root, shown, error))) from None


def refuse_repeated_keys(node: yaml.Node, shown: str) -> None:
    """YAML keeps the last of two equal keys, and the first would be lost without a word."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise SpecificationError(
                    f"{shown}, line {key.start_mark.line + 1}: key {key.value!r} is given twice."
                )
            seen.add(key.value)
            refuse_repeated_keys(value, shown)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            refuse_repeated_keys(item, shown)


def explain(root: yaml.Node, shown: str, error: ValidationError) -> list[str]:
    """One sentence a mistake: file, line, where in the file, what is wrong."""
    sentences = []
    for problem in error.errors():
        location = [part for part in problem["loc"] if is_in_file(part)]
        if problem["type"] == "unknown_key":
            location.append(problem["ctx"]["name"])
        line, reached = line_of(root, location)
        where = " → ".join(str(part) for part in reached)
        given = "" if problem["type"] in ("unknown_key", "missing") else f" ({problem['input']!r})"
        sentences.append(f"{shown}, line {line}: {where}: {problem['msg']}{given}.")
    return list(dict.fromkeys(sentences))


def is_in_file(part: str | int) -> bool:
    """False for the names that pydantic adds for the alternatives of a union."""
    return isinstance(part, int) or "[" not in part


def line_of(root: yaml.Node, location: list[str | int]) -> tuple[int, list[str | int]]:
    """Line of the deepest key of `location` that the file holds, and the path down to it."""
    node, line = root, root.start_mark.line + 1
    reached: list[str | int] = []
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                # A missing key has no line of its own; the section that lacks it has.
                return line, [*reached, part] if part == location[-1] else reached
            key, node = found[0]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
        reached.append(part)
    return line, reached

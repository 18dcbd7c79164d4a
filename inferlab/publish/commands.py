"""Checks every command that a page or a specification prints against what its program knows."""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import yaml

from inferlab.lab import specification
from inferlab.lab.paths import EXPERIMENTS, ROOT, without_root
from inferlab.lab.plan import Plan, plan_experiment
from inferlab.lab.point import Point
from inferlab.lab.yaml_file import SpecificationError
from inferlab.publish.page import Page, read_page
from inferlab.publish.problems import Problem
from inferlab.publish.programs import INDEX, Program, load_programs
from inferlab.publish.shell import Command, commands_in_markdown, commands_in_shell

OUTSIDE_THE_BOOK = (Path("README.md"), Path("CONTRIBUTING.md"))
ENGINE = re.compile(
    r"(python -m )?(vllm|sglang|sglang[-_]router|lmcache|lm_eval|inferlab\.lab)[ .]"
)


def command_problems(root: Path, pages: Iterable[Page]) -> list[Problem]:
    """Problems of all commands on the pages, in the other texts, and of the specifications."""
    programs = load_programs(root)
    others = [read_page(root, path) for path in OUTSIDE_THE_BOOK if (root / path).exists()]
    problems = [
        page.problem(command.line_of(word), sentence)
        for page in [*pages, *others]
        for command in page_commands(page)
        for word, sentence in mistakes(command, programs)
    ]
    # Only this repository has specifications; a book that a test makes elsewhere has none.
    return [*problems, *specification_problems(programs)] if root == ROOT else problems


def page_commands(page: Page) -> Iterator[Command]:
    """Every command that the page prints in its text."""
    for cell in page.cells:
        if cell.kind == "markdown":
            yield from commands_in_markdown(cell.source, cell.line)


def mistakes(command: Command, programs: dict[str, Program]) -> list[tuple[str, str]]:
    """The word at fault and a sentence, for each mistake in a command of a known program."""
    name, arguments = addressed(command.words, programs)
    if name in programs:
        return programs[name].mistakes(arguments)
    if name:
        return [
            (
                name.split()[-1],
                f"`{name}` is none of the programs that are checked: {', '.join(programs)}. "
                f"If it exists, add it to inferlab/publish/programs.py and renew {INDEX} with "
                "`python -m inferlab.publish commands`.",
            )
        ]
    return []


def addressed(words: Sequence[str], names: Collection[str]) -> tuple[str, list[str]]:
    """The program that a command starts, maybe behind another such as `nohup`, and its arguments.

    The name is empty if the program is neither an engine's nor ours, and not among `names` if the
    engine has no such program.
    """
    for start in range(len(words)):
        # Interpreter and programs may be named by their paths.
        first = re.sub("^python3$", "python", PurePosixPath(words[start]).name)
        rest = [first, *words[start + 1 :]]
        for name in names:
            length = len(name.split())
            if rest[:length] == name.split():
                return name, rest[length:]
    shared = max(_shared(words, name.split()) for name in names)
    name, rest = " ".join(words[: shared + 1]), list(words[shared:])
    # `vllm --version` starts no program of its own, and `vllm 0.32.0` is no command.
    has_flag = any(word.startswith("-") for word in rest[1:])
    if rest and ENGINE.match(name) and not rest[0].startswith("-") and (has_flag or shared > 2):
        return name, rest[1:]
    return "", []


def _shared(words: Sequence[str], opening: Sequence[str]) -> int:
    """How many words a command and the opening of a program have in common from the start."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(words, opening)))


def specification_commands() -> Iterator[tuple[Plan, Point, Command]]:
    """Every command of every experiment on each of its profiles.

    Raises SpecificationError if a specification is malformed.
    """
    for identifier in specification.experiment_identifiers():
        for profile in specification.load_experiment(identifier).profiles:
            plan = plan_experiment(identifier, profile)
            for point in plan.points:
                for text in plan.commands(point):
                    for command in commands_in_shell(text):
                        yield plan, point, command


def specification_problems(programs: dict[str, Program]) -> list[Problem]:
    """Problems of the commands that the specifications make, at the line that sets the flag."""
    try:
        found = [
            Problem(*_place(plan, point, word), f"{plan.identifier}: {sentence}")
            for plan, point, command in specification_commands()
            for word, sentence in mistakes(command, programs)
        ]
    except SpecificationError as error:
        return [Problem(Path("experiments"), 1, str(error))]
    # One flag makes a mistake in many points.
    return list(dict.fromkeys(found))


def _place(plan: Plan, point: Point, word: str) -> tuple[Path, int]:
    """File and line that set a flag; the specification's first line for what none sets."""
    week, _, name = plan.identifier.partition("/")
    flag = word.lstrip("-").removeprefix("no-")
    places = {
        f"{week}.yml": ["experiments", name, flag],
        "profiles.yml": [plan.profile_name, "servers", point.engine, flag],
        "workloads.yml": [flag],
    }
    for file, keys in places.items():
        path = EXPERIMENTS / file
        lines = list(_lines(yaml.compose(path.read_text(encoding="utf-8")), keys))
        if lines:
            return Path(without_root(str(path))), lines[0]
    return Path(without_root(str(EXPERIMENTS / f"{week}.yml"))), 1


def _lines(node: yaml.Node | None, keys: list[str]) -> Iterator[int]:
    """Lines of the last of `keys` wherever it stands below the others, in their order."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            remaining = keys[1:] if key.value == keys[0] else keys
            if remaining:
                yield from _lines(value, remaining)
            else:
                yield key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _lines(item, keys)

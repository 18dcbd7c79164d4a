"""What the programs that the course prints understand: the engines' from an index, ours live.

Pages build against `book/commands.json` alone, without the engines; regenerating it asks the
engines' own parsers.
"""

import argparse
import difflib
import functools
import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from inferlab.lab import upstream
from inferlab.publish import parsers
from inferlab.publish.shell import PLACEHOLDER

INDEX = Path("book/commands.json")

# The engines' programs, each with arguments that let its parser end well.
PROGRAMS: dict[str, list[str]] = {
    "vllm serve": [],
    "vllm bench serve": [],
    "vllm bench throughput": [],
    "vllm bench latency": [],
    "vllm bench startup": [],
    "sglang serve": ["--model-path", "m"],
    "python -m sglang.benchmark.serving": [],
    "python -m sglang.benchmark.offline_throughput": ["--model-path", "m"],
    "python -m sglang.benchmark.one_batch": ["--model-path", "m"],
    "sglang-router launch": [],
    "python -m sglang_router.launch_router": [],
    "lmcache server": [],
    "lm_eval run": ["--tasks", "t"],
}
# Ours that parse with argparse, in the same way, and those that parse with click.
OUR_PROGRAMS: dict[str, list[str]] = {
    "python -m inferlab.engine.server": ["--model", "m"],
    "python -m inferlab.lab.disaggregated_proxy": ["--prefill", "u", "--decode", "u"],
}
OUR_COMMANDS = {
    "inferlab.lab": "inferlab.lab.__main__",
    "inferlab.handin": "inferlab.handin.__main__",
    "inferlab.lab.machine": "inferlab.lab.machine",
}

FLAG = re.compile("--?[a-zA-Z]")
# A flag, or the name of an argument that has none, with its keywords of `add_argument`.
Options = dict[str, dict[str, Any]]


class Program:
    """A program whose parser is known: its name is the words that start it."""

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self.options = options
        self._parser = _Parser(add_help=False, allow_abbrev=False)
        for option, keywords in options.items():
            # A code span may show one flag and leave out what the program cannot do without.
            optional = {} if option.startswith("-") else {"nargs": "?"}
            self._parser.add_argument(option, **{**optional, **keywords})

    def mistakes(self, arguments: Sequence[str]) -> list[tuple[str, str]]:
        """The argument at fault and a sentence, for each argument that the program refuses."""
        try:
            _, unknown = self._parser.parse_known_args(self._as_read(self.filled(arguments)))
        except ValueError as error:
            flag, _, reason = str(error).removeprefix("argument ").partition(": ")
            return [(flag, f"`{self.name}` refuses {flag}: {reason}.")]
        flags = [word.partition("=")[0] for word in unknown if FLAG.match(word)]
        return [(flag, self._unknown(flag)) for flag in flags] or [
            (
                word,
                f"`{self.name}` takes no {word!r} there: quote it together with what it belongs "
                "to, or take it out.",
            )
            for word in unknown
        ]

    def filled(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with something that parses in each place left open."""
        words = list(arguments)
        for number, word in enumerate(words):
            if word == PLACEHOLDER:
                flag = words[number - 1] if number else ""
                words[number] = self.options.get(flag, {}).get("choices", ["1"])[0]
        return words

    def _as_read(self, words: list[str]) -> list[str]:
        """What the program itself does to its arguments before it parses them."""
        if self.name == "sglang serve" and words and not words[0].startswith("-"):
            return ["--model-path", *words]
        if self.name.startswith("vllm "):
            return [_as_vllm_reads(word) for word in words]
        return words

    def _unknown(self, flag: str) -> str:
        near = difflib.get_close_matches(flag, [name for name in self.options if FLAG.match(name)])
        advice = f"the nearest it knows: {', '.join(near)}" if near else f"{INDEX} lists its flags"
        return f"`{self.name}` has no flag {flag}; {advice}."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _as_vllm_reads(word: str) -> str:
    """`--a_b` as `--a-b`, `-cc.mode` as a key of `-cc`, `-O3` as a level, `--help=x` as help."""
    if not FLAG.match(word):
        return word
    flag, equals, value = word.partition("=")
    flag = flag.partition(".")[0]
    if flag == "--help":
        return flag
    if re.fullmatch(r"-O\d", flag):
        return f"--optimization-level={flag[2:]}"
    return (flag.replace("_", "-") if flag.startswith("--") else flag) + equals + value


def load_programs(root: Path) -> dict[str, Program]:
    """Every program that commands are checked against, by name.

    The engines' are missing when there is no `book/commands.json` yet.
    """
    found = _our_programs()
    if (root / INDEX).exists():
        found = found | json.loads((root / INDEX).read_text(encoding="utf-8"))["programs"]
    return {name: Program(name, options) for name, options in found.items()}


def build_index() -> dict[str, Any]:
    """Versions of the engines, and the options of their programs.

    Raises EnginesMissingError or UpstreamError when they cannot be asked.
    """
    index: dict[str, Any] = ask("index", {p: [*p.split(), *PROGRAMS[p]] for p in PROGRAMS})
    return index


def write_index(root: Path, index: dict[str, Any]) -> None:
    """Write `book/commands.json` with one line a flag, so that a change shows as one."""
    programs = []
    for program, options in index["programs"].items():
        lines = [f"{json.dumps(flag)}: {json.dumps(options[flag])}" for flag in sorted(options)]
        programs.append(f"{json.dumps(program)}: {{\n" + ",\n".join(lines) + "\n}")
    text = (
        f'{{\n"versions": {json.dumps(index["versions"])},\n"programs": {{\n'
        + ",\n".join(programs)
        + "\n}\n}\n"
    )
    (root / INDEX).write_text(text, encoding="utf-8")


def ask(function: str, data: Any) -> Any:
    """What `function` of `inferlab.publish.parsers` answers in the engines' interpreter."""
    source = Path(parsers.__file__).read_text(encoding="utf-8")
    return upstream(f"{source}\n\nmain = {function}\n", data)


@functools.cache
def _our_programs() -> dict[str, Options]:
    found = {
        program: parsers.options([*program.split(), *OUR_PROGRAMS[program]])
        for program in OUR_PROGRAMS
    }
    for module, holder in OUR_COMMANDS.items():
        command = importlib.import_module(holder).main
        if isinstance(command, click.Group):
            for name, subcommand in command.commands.items():
                found[f"python -m {module} {name}"] = _click_options(subcommand)
        else:
            found[f"python -m {module}"] = _click_options(command)
    return found


def _click_options(command: click.Command) -> Options:
    found: Options = {"--help": {"action": "store_true"}}
    for parameter in command.params:
        keywords: dict[str, Any] = {}
        if isinstance(parameter, click.Option) and parameter.is_flag:
            keywords["action"] = "store_true"
        elif parameter.nargs != 1:
            keywords["nargs"] = "*" if parameter.nargs < 0 else parameter.nargs
        if isinstance(parameter.type, click.Choice):
            keywords["choices"] = [str(choice) for choice in parameter.type.choices]
        found |= dict.fromkeys([*parameter.opts, *parameter.secondary_opts], keywords)
    return found

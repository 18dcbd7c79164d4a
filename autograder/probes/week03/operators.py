"""Probes of the operators: FLOP and bytes of drawn shapes, formats and steps."""

from typing import Any

import numpy as np

from autograder.probe import probe

EXERCISE = "week03-operators"


def amounts(operator: Any) -> list[Any]:
    """An operator as its name and three arrays: numbers and arrays of numbers look alike."""
    return [
        str(operator.name),
        *(np.asarray(amount, np.float64) for amount in operator[1:]),
    ]


def drawn_format(random: np.random.Generator) -> dict[str, float]:
    """Bytes of an element: weights, K and V, and activations all different."""
    return {"weight": float(random.choice([0.5, 0.5625, 1.0])), "kv": 3.0, "activation": 4.0}


def drawn_sides(random: np.random.Generator) -> dict[str, Any]:
    return {
        "layers": int(random.integers(2, 6)),
        "inner": int(random.integers(8, 100)),
        "outer": int(random.integers(101, 300)),
    }


def product(code: Any, inputs: Any, rows: Any, precision: Any) -> list[Any]:
    sides = inputs["inner"], inputs["outer"], inputs["layers"]
    return amounts(code.matrix_product("drawn", rows, *sides, precision))


def rows_and_sides(random: np.random.Generator) -> dict[str, Any]:
    return drawn_sides(random) | {"rows": [2, int(random.integers(3, 400))]}


@probe(
    title="A product of several rows",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-3,
    inputs=rows_and_sides,
    message="Of arithmetic, rows and weights, something grows with the number of rows that should "
    "not, or does not grow that should.",
)
def product_rows(code: Any, inputs: Any) -> list[Any]:
    return [product(code, inputs, rows, code.Precision()) for rows in inputs["rows"]]


def formats_and_sides(random: np.random.Generator) -> dict[str, Any]:
    return drawn_sides(random) | {"format": drawn_format(random), "rows": 1}


@probe(
    title="A product whose weights have fewer bits than its rows",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-3,
    inputs=formats_and_sides,
    message="An element is charged in the format of another kind of element.",
)
def product_formats(code: Any, inputs: Any) -> list[Any]:
    return product(code, inputs, inputs["rows"], code.Precision(**inputs["format"]))


def many_steps(random: np.random.Generator) -> dict[str, Any]:
    return drawn_sides(random) | {"rows": random.integers(0, 50, 6)}


@probe(
    title="The products of many steps at once, as an array of rows",
    exercise=EXERCISE,
    tolerance=1e-3,
    inputs=many_steps,
    message="An array of rows gives something else than its elements one by one.",
)
def product_arrays(code: Any, inputs: Any) -> list[Any]:
    return product(code, inputs, inputs["rows"], code.Precision())


def drawn_heads(random: np.random.Generator) -> dict[str, Any]:
    kv_heads, group = int(random.integers(1, 6)), int(random.integers(1, 9))
    head_dim, layers = int(random.choice([16, 24, 64])), int(random.integers(2, 6))
    return {"heads": [layers, kv_heads * group, kv_heads, head_dim]}


def observed_attention(code: Any, inputs: Any, requests: Any, precision: Any) -> list[Any]:
    step = code.StepShape.of([(new, context, bool(kind)) for new, context, kind in requests])
    return amounts(code.attention(step, *inputs["heads"], precision))


def decodes(random: np.random.Generator) -> list[list[int]]:
    return [[1, int(context), 0] for context in random.integers(1, 900, 4)]


def chunks(random: np.random.Generator) -> list[list[int]]:
    """Chunks of prompts whose first tokens are in the cache already."""
    return [[int(new), int(new + old), 1] for new, old in random.integers(2, 300, (3, 2))]


def decoding(random: np.random.Generator) -> dict[str, Any]:
    return drawn_heads(random) | {"format": drawn_format(random), "requests": decodes(random)}


@probe(
    title="Decode attention with the cache in a format of its own",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-3,
    inputs=decoding,
    message="Queries, cached K and V and new K and V are not each charged for the right heads in "
    "the right format.",
)
def attention_decodes(code: Any, inputs: Any) -> list[Any]:
    return observed_attention(code, inputs, inputs["requests"], code.Precision(**inputs["format"]))


def chunked(random: np.random.Generator) -> dict[str, Any]:
    return drawn_heads(random) | {"requests": chunks(random)}


@probe(
    title="Chunks of prompts that attend to more tokens than they compute",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-3,
    inputs=chunked,
    message="The tokens of a chunk are taken for those that it attends to.",
)
def attention_chunks(code: Any, inputs: Any) -> list[Any]:
    return observed_attention(code, inputs, inputs["requests"], code.Precision())


def mixed(random: np.random.Generator) -> dict[str, Any]:
    return drawn_heads(random) | {"requests": chunks(random) + decodes(random)}


@probe(
    title="A step of prompts and decodes together",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-3,
    inputs=mixed,
    message="In a step that holds both kinds of requests, one of them is left out.",
)
def attention_mixed(code: Any, inputs: Any) -> list[Any]:
    return observed_attention(code, inputs, inputs["requests"], code.Precision())


def decode_steps(random: np.random.Generator) -> dict[str, Any]:
    return drawn_heads(random) | {
        "sequences": random.integers(1, 40, 5),
        "context": random.integers(40, 9000, 5),
    }


@probe(
    title="The attention of many steps at once, as arrays",
    exercise=EXERCISE,
    tolerance=1e-3,
    inputs=decode_steps,
    message="Arrays of steps give something else than the steps one by one.",
)
def attention_arrays(code: Any, inputs: Any) -> list[Any]:
    step = code.StepShape.decode(inputs["sequences"], inputs["context"])
    return amounts(code.attention(step, *inputs["heads"], code.Precision()))


def heads_and_formats(random: np.random.Generator) -> dict[str, Any]:
    return {
        "format": drawn_format(random),
        "requests": chunks(random) + decodes(random),
        "width": int(random.integers(16, 64)),
        "vocabulary": int(random.integers(100, 900)),
    }


@probe(
    title="Logits of a model whose weights are quantised, in a step with prompts",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-3,
    inputs=heads_and_formats,
    message="The head is charged in a format or for tokens that are not its own.",
)
def head_amounts(code: Any, inputs: Any) -> list[Any]:
    step = code.StepShape.of([(new, n, bool(kind)) for new, n, kind in inputs["requests"]])
    precision = code.Precision(**inputs["format"])
    return amounts(code.output_head(step, inputs["width"], inputs["vocabulary"], precision))

"""Probes of the floor of a step: drawn models, formats, and operators near the ridge."""

from functools import partial
from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe

EXERCISE = "week03-decode-floor"


def drawn_model(random: np.random.Generator, experts: int = 1) -> dict[str, Any]:
    kv_heads = int(random.integers(1, 5))
    return {
        "num_layers": int(random.integers(2, 9)),
        "hidden_size": 16 * int(random.integers(2, 9)),
        "num_heads": kv_heads * int(random.integers(1, 5)),
        "num_kv_heads": kv_heads,
        "head_dim": int(random.choice([8, 16, 24])),
        "intermediate_size": int(random.integers(50, 300)),
        "vocab_size": int(random.integers(100, 2000)),
        "num_experts": experts,
        "experts_per_token": min(2, experts),
    }


def shape(fields: dict[str, Any]) -> Any:
    from inferlab.analysis.model_shape import ModelShape

    return ModelShape(**fields)


def precision(fields: dict[str, Any]) -> Any:
    from inferlab.analysis.operators import Precision

    return Precision(**fields)


FULL = {"weight": 2.0, "kv": 2.0, "activation": 2.0}


def dense(random: np.random.Generator) -> dict[str, Any]:
    return {"model": drawn_model(random) | {"has_tied_embedding": True}, "batches": [1, 7, 300]}


@probe(
    title="Weights that a model reads whose head is its embedding",
    exercise=EXERCISE,
    trials=3,
    tolerance=1.0,
    inputs=dense,
    message="A tied embedding is multiplied as the head, whatever it is called.",
)
def tied_weights(code: Any, inputs: Any) -> list[float]:
    model, full = shape(inputs["model"]), precision(FULL)
    return [float(code.weights_read_bytes(model, full, batch)) for batch in inputs["batches"]]


def quantised(random: np.random.Generator) -> dict[str, Any]:
    formats = [
        {"weight": 0.5, "kv": 1.0, "activation": 2.0},
        {"weight": 1.0, "kv": 2.0, "activation": 4.0},
    ]
    return {"model": drawn_model(random), "formats": formats}


@probe(
    title="Weights in fewer bits than activations",
    exercise=EXERCISE,
    trials=3,
    tolerance=1.0,
    inputs=quantised,
    message="A part of the weights is charged in a format that it does not have.",
)
def quantised_weights(code: Any, inputs: Any) -> list[float]:
    model = shape(inputs["model"])
    return [float(code.weights_read_bytes(model, precision(one), 3)) for one in inputs["formats"]]


def expert_model(random: np.random.Generator) -> dict[str, Any]:
    return {
        "model": drawn_model(random, experts=int(random.choice([4, 8, 16]))),
        "batches": [1, 2, 5, 500],
    }


@probe(
    title="A model of several experts, for one sequence and for many",
    exercise=EXERCISE,
    trials=3,
    tolerance=1.0,
    inputs=expert_model,
    message="Which experts are read, or what chooses them, is not counted as the batch requires.",
)
def weights_of_experts(code: Any, inputs: Any) -> list[float]:
    model, full = shape(inputs["model"]), precision(FULL)
    return [float(code.weights_read_bytes(model, full, batch)) for batch in inputs["batches"]]


def loaded_steps(random: np.random.Generator) -> dict[str, Any]:
    return {
        "models": [drawn_model(random), drawn_model(random, experts=8)],
        "format": {"weight": 1.0, "kv": float(random.choice([0.5, 1.0])), "activation": 2.0},
        "batch": int(random.integers(2, 100)),
        "context": int(random.integers(100, 5000)),
        "bandwidth": float(random.uniform(1e8, 1e9)),
    }


@probe(
    title="The floor of a full batch whose cache has a format of its own",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-7,
    inputs=loaded_steps,
    message="The time is not that of the weights of this batch and of the K and V of every "
    "sequence, in their formats.",
)
def floor_of_batches(code: Any, inputs: Any) -> list[float]:
    return [
        float(
            code.decode_floor_ms(
                shape(model),
                precision(inputs["format"]),
                inputs["bandwidth"],
                inputs["batch"],
                inputs["context"],
            )
        )
        for model in inputs["models"]
    ]


def impossible(random: np.random.Generator) -> dict[str, Any]:
    return {
        "model": drawn_model(random),
        "steps": [[0, 1e9], [-3, 1e9], [1, 0.0], [4, -1e9], [1, 1e9], [5, 1.0]],
    }


@probe(
    title="Batches and bandwidths that no step has, among some that it has",
    exercise=EXERCISE,
    inputs=impossible,
    message="A batch below one or a bandwidth that is not positive is a ValueError, and nothing "
    "else is.",
)
def refused_steps(code: Any, inputs: Any) -> list[bool]:
    model, full = shape(inputs["model"]), precision(FULL)
    return [
        refuses(partial(code.decode_floor_ms, model, full, speed, batch, 10))
        for batch, speed in inputs["steps"]
    ]


@probe(
    title="The context at which K and V weigh as much as the weights",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-6,
    inputs=loaded_steps,
    message="At the context returned, the two parts of the traffic are not equal.",
)
def equal_contexts(code: Any, inputs: Any) -> list[float]:
    return [
        float(
            code.equal_traffic_context(shape(model), precision(inputs["format"]), inputs["batch"])
        )
        for model in inputs["models"]
    ]


def near_the_ridge(random: np.random.Generator) -> dict[str, Any]:
    ridge = int(random.integers(2, 200))
    moved = random.integers(1, 1000, (6, 2))
    flop = (moved.sum(axis=1) * ridge + [-1, 0, 1, -1, 0, 1]).tolist()
    operators = [[one, *bytes_] for one, bytes_ in zip(flop, moved.tolist())]
    return {"ridge": ridge, "operators": operators}


def classes(code: Any, inputs: Any) -> dict[str, str]:
    from inferlab.analysis.operators import Operator
    from inferlab.analysis.roofline import Ceilings

    found = [Operator(f"operator {i}", *one) for i, one in enumerate(inputs["operators"])]
    ceilings = Ceilings(float(64 * inputs["ridge"]), 64.0)
    return {str(name): str(bound) for name, bound in code.classify(found, ceilings).items()}


@probe(
    title="Operators on the ridge, and one FLOP to either side of it",
    exercise=EXERCISE,
    trials=3,
    inputs=near_the_ridge,
    message="An operator near the ridge is put on the wrong side of it.",
)
def near_ridge(code: Any, inputs: Any) -> dict[str, str]:
    return classes(code, inputs)


def without_traffic(random: np.random.Generator) -> dict[str, Any]:
    flop, moved = int(random.integers(1, 100)), int(random.integers(1, 100))
    return {"ridge": 4, "operators": [[flop, 0, 0], [0, 0, 0], [0, moved, 0], [0, 0, moved]]}


@probe(
    title="Operators that move nothing, compute nothing, or neither",
    exercise=EXERCISE,
    inputs=without_traffic,
    message="An operator without traffic or without arithmetic is put on the wrong side.",
)
def idle_operators(code: Any, inputs: Any) -> dict[str, str]:
    return classes(code, inputs)


def sequence_of_operators(random: np.random.Generator) -> dict[str, Any]:
    operators = random.integers(1, 1000, (8, 3))
    operators[3, 1:] = 0
    return {"operators": operators.tolist(), "ceilings": random.uniform(50, 300, 2).tolist()}


@probe(
    title="A sequence of operators, some bound by memory and one that moves nothing",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-6,
    inputs=sequence_of_operators,
    message="The sum is not that of the longer time of each operator.",
)
def operator_times(code: Any, inputs: Any) -> float:
    from inferlab.analysis.operators import Operator
    from inferlab.analysis.roofline import Ceilings

    found = [Operator(f"operator {i}", *one) for i, one in enumerate(inputs["operators"])]
    return float(code.step_floor_ms(found, Ceilings(*inputs["ceilings"])))

"""Probes of the FP8 cache: codes, what is read of them, and the scales of heads."""

from typing import Any

import numpy as np

from autograder.probe import probe

EXERCISE = "week05-fp8-cache"
FORMATS = {"e4m3": (4, 3, 0x7E), "e5m2": (5, 2, 0x7B)}


def formats(code: Any) -> list[Any]:
    return [code.Fp8Format(*arguments) for arguments in FORMATS.values()]


def codes_of(code: Any, numbers: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(form.encode(numbers)) for form in formats(code)]


def noise(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of both signs between 2**-6 and 256, with few bits."""
    magnitudes = random.integers(17, 2**11, shape) * 2.0 ** random.integers(-10, -3, shape)
    signed: np.ndarray = magnitudes * random.choice([-1, 1], shape)
    return signed.astype(np.float32)


@probe(
    title="Normal numbers of both signs",
    exercise=EXERCISE,
    trials=2,
    inputs=lambda random: noise(random, (300,)),
    message="A number is not encoded as the nearest one of the format.",
)
def nearest_numbers(code: Any, inputs: Any) -> list[Any]:
    return codes_of(code, inputs)


@probe(
    title="Numbers exactly half-way between two of the format",
    exercise=EXERCISE,
    trials=2,
    inputs=lambda random: [
        (np.arange(17, 32, 2) * np.float32(2.0**power)).astype(np.float32)
        for power in random.integers(-9, 3, 6)
    ],
    message="A number half-way between two codes has to go to the even one.",
)
def codes_at_midpoints(code: Any, inputs: Any) -> list[Any]:
    return [codes_of(code, sign * numbers) for numbers in inputs for sign in (1, -1)]


@probe(
    title="Subnormal numbers, and those that vanish",
    exercise=EXERCISE,
    trials=2,
    inputs=lambda random: (
        random.integers(1, 64, 200) * 2.0 ** -random.choice([12, 13, 20], 200)
    ).astype(np.float32),
    message="Numbers below the smallest normal one are not kept as well as the format can.",
)
def subnormal_numbers(code: Any, inputs: Any) -> list[Any]:
    return codes_of(code, inputs)


@probe(
    title="Numbers that are too large, and infinities",
    exercise=EXERCISE,
    inputs=lambda random: np.array(
        [
            449,
            464,
            465,
            500,
            6e4,
            7e4,
            1e30,
            -449,
            -1e9,
            np.inf,
            -np.inf,
            random.integers(500, 9000),
        ],
        dtype=np.float32,
    ),
    message="What is too large has to become the largest finite number of its sign.",
)
def too_large(code: Any, inputs: Any) -> list[Any]:
    return codes_of(code, inputs)


@probe(
    title="NaN among ordinary numbers",
    exercise=EXERCISE,
    inputs=lambda random: np.where(
        random.random((5, 6)) < 0.3, np.float32(np.nan), noise(random, (5, 6))
    ).astype(np.float32),
    message="NaN has to stay NaN, and must not disturb its neighbours.",
)
def not_a_number(code: Any, inputs: Any) -> list[Any]:
    read = [form.values[form.encode(inputs)] for form in formats(code)]
    return [[np.isnan(numbers), np.nan_to_num(numbers).astype(np.float32)] for numbers in read]


@probe(
    title="Zeros of both signs",
    exercise=EXERCISE,
    inputs=lambda random: np.array([0.0, -0.0, 1.0, -0.0, 0.0, -1.0], dtype=np.float32),
    message="The sign of a zero is lost, or a zero becomes something else.",
)
def codes_of_zeros(code: Any, inputs: Any) -> list[Any]:
    return codes_of(code, inputs)


@probe(
    title="The shape and the type of the codes",
    exercise=EXERCISE,
    inputs=lambda random: noise(random, (2, 3, 4)),
    message="Codes are uint8, in the shape of the numbers, and the numbers are left as they were.",
)
def form_of_codes(code: Any, inputs: Any) -> list[Any]:
    seen: list[Any] = []
    for form in formats(code):
        numbers = inputs.copy()
        for part in (numbers, numbers[0, 0], numbers[:0], numbers[0, 0, 0]):
            codes = np.asarray(form.encode(part))
            seen.append([list(codes.shape), codes.dtype.name])
        seen.append(bool((numbers == inputs).all()))
    return seen


def signed_maxima(random: np.random.Generator) -> np.ndarray:
    pair = noise(random, (2, 3, 4, 5, 2, 6))
    pair[:, 1, :, :, 0] = -np.abs(pair[:, 1, :, :, 0])
    pair[0, 2, :, :, 1] = 0.0
    pair[1, 0] = 0.0
    return pair


@probe(
    title="Scales of heads whose largest number is negative, and of heads of zeros",
    exercise=EXERCISE,
    trials=2,
    tolerance=1e-6,
    inputs=signed_maxima,
    message="A scale does not put the largest magnitude of its head at the largest number, or a "
    "head of zeros has another scale than 1.",
)
def scales_of_heads(code: Any, inputs: Any) -> list[Any]:
    return [
        np.asarray(code.kv_scales(inputs[0], inputs[1], name), np.float32)
        for name in ("fp8_e4m3", "fp8_e5m2")
    ]


def pages_of(random: np.random.Generator) -> dict[str, Any]:
    return {
        "codes": random.integers(0, 120, (7, 4, 3, 5)).astype(np.uint8),
        "scales": np.array([0.5, 2.0, 16.0], dtype=np.float32),
        "table": random.permutation(7)[:4],
    }


@probe(
    title="Blocks of a table, in its order, each head with its scale",
    exercise=EXERCISE,
    trials=2,
    inputs=pages_of,
    message="Blocks are not read in the order of the table, in their format, or with the scale of "
    "each head.",
)
def pages_read(code: Any, inputs: Any) -> list[Any]:
    seen = []
    for form in formats(code):
        pages = code.Fp8Pages(inputs["codes"], inputs["scales"], form)
        seen.append(np.asarray(pages[inputs["table"]]))
    return [*seen, [numbers.dtype.name for numbers in seen]]


@probe(
    title="How much is decoded when a few blocks are read",
    exercise=EXERCISE,
    inputs=pages_of,
    message="Blocks were decoded that the table does not name; attention would decode the whole "
    "cache for every sequence.",
)
def decoded_blocks(code: Any, inputs: Any) -> list[Any]:
    class Watched(np.ndarray):
        most = 0

        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            Watched.most = max(Watched.most, np.size(found))
            return found

    (form, _) = formats(code)
    form.values = form.values.view(Watched)
    pages = code.Fp8Pages(inputs["codes"], inputs["scales"], form)
    size = np.size(pages[inputs["table"][:2]])
    return [size, bool(Watched.most <= size)]

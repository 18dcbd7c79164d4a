"""What a probe saw, as text: the only thing that passes from a student's code to its judge.

Text can hold no object whose `==` says yes to everything. Every function here also runs inside
nbgrader's hidden cells, which copy it, so this module imports nothing of the course.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np

MOST_CHARACTERS = 1_000_000
ARRAY = "__array__"
DTYPES = ("bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64").split()


def encode(data: Any) -> str:
    """Plain data as JSON text: None, bool, int, float, str, lists, dicts and NumPy arrays.

    Tuples become lists, and a NumPy scalar the Python number that it holds. Raises TypeError for
    every other type, subclasses of int and str included, and ValueError for NaN or an infinity
    outside an array and for text that is longer than `MOST_CHARACTERS`.
    """
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"An observation takes {len(text):,} characters; at most {MOST_CHARACTERS:,} are read."
        )
    return text


def _plain(data: Any) -> Any:
    if data is None or type(data) in (bool, int, float, str):
        return data
    if type(data) in (list, tuple):
        return [_plain(item) for item in data]
    if type(data) is dict and ARRAY not in data and all(type(key) is str for key in data):
        return {key: _plain(value) for key, value in data.items()}
    if type(data).__module__ == "numpy" and isinstance(data, np.number | np.bool_):
        return _plain(data.item())
    if type(data) is np.ndarray and data.dtype.name in DTYPES:
        raw = base64.b64encode(np.ascontiguousarray(data).tobytes()).decode()
        return {ARRAY: [data.dtype.name, list(data.shape), raw]}
    raise TypeError(f"An observation holds a {type(data).__name__}; it has to be plain data.")


def decode(text: str) -> Any:
    """The data that `encode` made into `text`.

    The text may come from a student's process: raises ValueError, and nothing else, for whatever
    `encode` cannot have written.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"{len(text):,} characters were sent; at most {MOST_CHARACTERS:,} are read."
        )
    try:
        return json.loads(text, object_hook=_array_or_dict, parse_constant=_refuse_constant)
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"The text is no observation: {error}") from error


def _array_or_dict(entries: dict[str, Any]) -> Any:
    if ARRAY not in entries:
        return entries
    dtype, shape, raw = entries[ARRAY]
    if dtype not in DTYPES or len(entries) != 1:
        raise ValueError(f"An array of {dtype!r} was sent; the types read are {', '.join(DTYPES)}.")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"An array of the shape {shape} was sent; lengths are whole numbers.")
    return np.frombuffer(base64.b64decode(raw, validate=True), dtype).reshape(shape)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} was sent outside an array; only arrays may hold it.")


def equal(expected: Any, seen: Any, tolerance: float = 0.0) -> bool:
    """Whether two decoded observations say the same.

    Types are compared too: True is not 1 and 1 is not 1.0. Floating-point numbers may differ by
    `tolerance`; floating-point arrays may also differ in precision, and NaN equals only NaN.
    """
    if type(expected) is not type(seen):
        return False
    if isinstance(expected, list):
        return len(expected) == len(seen) and all(
            equal(one, other, tolerance) for one, other in zip(expected, seen)
        )
    if isinstance(expected, dict):
        return expected.keys() == seen.keys() and all(
            equal(value, seen[key], tolerance) for key, value in expected.items()
        )
    if isinstance(expected, float):
        return bool(abs(expected - seen) <= tolerance)
    if not isinstance(expected, np.ndarray):
        return bool(expected == seen)
    if expected.shape != seen.shape or expected.dtype.kind != seen.dtype.kind:
        return False
    if expected.dtype.kind != "f":
        return np.array_equal(expected, seen)
    expected, seen = expected.astype(np.float64), seen.astype(np.float64)
    return bool(np.allclose(seen, expected, rtol=0, atol=tolerance, equal_nan=True))


def refuses(call: Callable[[], Any]) -> bool:
    """Whether `call()` raises ValueError; any other exception is passed on."""
    try:
        call()
    except ValueError:
        return True
    return False


def refusal(call: Callable[[], Any], snapshot: Callable[[], Any]) -> dict[str, bool]:
    """Whether `call()` raises ValueError, and whether `snapshot()` says the same after it."""
    before = encode(snapshot())
    refused = refuses(call)
    return {"refused": refused, "unchanged": encode(snapshot()) == before}

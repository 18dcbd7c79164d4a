"""Observations as text: what may be sent, what is refused, and when two are the same."""

import base64
import json

import numpy as np
import pytest

from autograder.observation import MOST_CHARACTERS, decode, encode, equal, refusal, refuses


class Agreeable(int):
    """An answer that is right whatever it is compared with."""

    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize(
    "data",
    [None, True, 0, -3, 10**20, 0.5, "text", [], {}, [1, [2.0, {"a": None}]], {"x": [False]}],
)
def test_plain_data_comes_back_as_it_was(data):
    back = decode(encode(data))
    assert back == data
    assert type(back) is type(data)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint8", "float16", "float64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_an_array_comes_back_with_type_and_shape(dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    back = decode(encode({"array": array}))["array"]
    assert back.dtype == dtype
    assert back.shape == shape
    np.testing.assert_array_equal(back, array)


def test_an_array_may_hold_what_a_number_may_not():
    back = decode(encode(np.array([np.nan, np.inf, -np.inf])))
    np.testing.assert_array_equal(back, [np.nan, np.inf, -np.inf])


def test_a_transposed_array_is_sent_as_it_reads():
    array = np.arange(6).reshape(2, 3).T
    np.testing.assert_array_equal(decode(encode(array)), array)


def test_tuples_become_lists_and_numpy_scalars_numbers():
    seen = decode(encode((np.int32(3), np.float32(0.5), np.bool_(True))))
    assert seen == [3, 0.5, True]
    assert [type(value) for value in seen] == [int, float, bool]


@pytest.mark.parametrize(
    "data",
    [
        Agreeable(3),
        type("Text", (str,), {})("a"),
        type("List", (list,), {})([1]),
        np.arange(3).view(type("Array", (np.ndarray,), {})),
        {1: "a number as a key"},
        {"__array__": "a key that means an array"},
        {1, 2},
        object(),
        np.array([object()]),
        b"bytes",
        1j,
    ],
    ids=lambda data: type(data).__name__,
)
def test_anything_else_is_refused(data):
    with pytest.raises(TypeError, match="has to be plain data"):
        encode([data])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("nan")])
def test_a_number_that_json_lacks_is_refused(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode({"score": number})


def test_an_observation_has_a_greatest_size():
    assert decode(encode("x" * (MOST_CHARACTERS - 2)))
    with pytest.raises(ValueError, match="at most 1,000,000"):
        encode("x" * (MOST_CHARACTERS - 1))
    with pytest.raises(ValueError, match="at most 1,000,000"):
        decode(json.dumps("x" * MOST_CHARACTERS))


def array_text(dtype="int8", shape=(2,), raw=b"ab"):
    return json.dumps({"__array__": [dtype, shape, base64.b64encode(raw).decode()]})


def test_a_well_formed_array_text_is_read():
    np.testing.assert_array_equal(decode(array_text()), [97, 98])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NaN",
        "[Infinity]",
        '{"__array__": 3}',
        '{"__array__": ["int8", [1], "!"]}',
        '{"__array__": ["int8", [0], ""], "more": 1}',
        array_text(dtype="object", raw=b"ab" * 8),
        array_text(dtype=["int8"]),
        array_text(dtype={"a": 1}),
        array_text(shape=[3]),
        array_text(shape=["2"]),
        array_text(shape=None),
        array_text(shape=[10**30]),
        "[" * 100_000,
    ],
)
def test_text_that_nobody_encoded_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - each is another sentence
        decode(text)


@pytest.mark.parametrize(
    ("expected", "seen"),
    [
        (1, True),
        (1, 1.0),
        (0, None),
        ("1", 1),
        ([1, 2], [1]),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 1, "b": 1}),
        (np.arange(3), [0, 1, 2]),
        (np.arange(3), np.arange(3.0)),
        (np.arange(3), np.arange(3)[None]),
        (np.array([1.0, np.nan]), np.array([1.0, 0.0])),
        (np.array([1.0, 0.0]), np.array([1.0, np.nan])),
        (np.array([1.0]), np.array([np.inf])),
    ],
)
def test_what_is_not_the_same(expected, seen):
    assert equal(expected, expected, tolerance=0.5)
    assert not equal(expected, seen, tolerance=0.5)


def test_the_tolerance_is_for_floating_point_numbers_only():
    assert equal({"a": [1.0]}, {"a": [1.25]}, tolerance=0.25)
    assert not equal({"a": [1.0]}, {"a": [1.5]}, tolerance=0.25)
    assert equal(np.array([1.0, np.nan]), np.array([1.25, np.nan]), tolerance=0.25)
    assert not equal(np.array([1.0]), np.array([1.5]), tolerance=0.25)
    assert equal(np.float32([1.0]), np.float64([1.0]))
    assert not equal(3, 4, tolerance=9.0)
    assert not equal(np.array([3]), np.array([4]), tolerance=9.0)


def test_a_refusal_says_whether_anything_changed():
    values = [1]

    def changes_and_refuses():
        values.append(2)
        raise ValueError

    def refused():
        raise ValueError

    assert refusal(refused, lambda: values) == {"refused": True, "unchanged": True}
    assert refusal(lambda: None, lambda: values) == {"refused": False, "unchanged": True}
    assert refusal(changes_and_refuses, lambda: values) == {"refused": True, "unchanged": False}


def test_an_unwritten_function_is_no_refusal():
    def unwritten():
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        refuses(unwritten)

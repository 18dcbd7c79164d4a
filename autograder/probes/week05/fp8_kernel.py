"""Probes of the FP8 kernels, launched over a cache that has a margin on both sides."""

from typing import Any

import numpy as np

from autograder.probe import probe

EXERCISE = "week05-fp8-kernel"
MARGIN = 4  # slots before and behind the cache, which nothing may touch
DIM = 16


def write(code: Any, numbers: np.ndarray, slots: Any, scales: Any, num_slots: int) -> np.ndarray:
    """Codes of the cache and its margins after the kernel has run; untouched slots hold 99."""
    # Here, so that a grader who asks for the inputs does not wait for PyTorch.
    import torch

    from inferlab.kernels import DEVICE

    num_heads = numbers.shape[1]
    memory = np.full((num_slots + 2 * MARGIN, num_heads, DIM), 99, np.uint8)
    cache = torch.from_numpy(memory).to(DEVICE)
    code.fp8_write_kernel[numbers.shape[:2]](
        torch.from_numpy(numbers.copy()).to(DEVICE),
        torch.tensor(slots, dtype=torch.int32, device=DEVICE),
        torch.tensor(scales, dtype=torch.float32, device=DEVICE),
        cache[MARGIN : MARGIN + num_slots],
        HEAD_DIM=DIM,
    )
    codes: np.ndarray = cache.cpu().numpy()
    return codes


def encoded(code: Any, numbers: np.ndarray) -> np.ndarray:
    """Codes of any numbers, with a scale of 1."""
    padded = np.zeros(-(-numbers.size // DIM) * DIM, np.float32)
    padded[: numbers.size] = numbers.ravel()
    rows = padded.reshape(-1, 1, DIM)
    written = write(code, rows, list(range(len(rows))), [1.0], len(rows))
    return written[MARGIN:-MARGIN].reshape(-1)[: numbers.size]


def read(code: Any, codes: np.ndarray, slots: Any, scales: Any) -> np.ndarray:
    import torch

    from inferlab.kernels import DEVICE

    num_heads = codes.shape[1]
    output = torch.full((len(slots), num_heads, DIM), 7.0, device=DEVICE)
    margin = np.full((MARGIN, num_heads, DIM), 99, np.uint8)
    memory = torch.from_numpy(np.concatenate([margin, codes, margin])).to(DEVICE)
    code.fp8_read_kernel[(len(slots), num_heads)](
        memory[MARGIN : MARGIN + len(codes)],
        torch.tensor(slots, dtype=torch.int32, device=DEVICE),
        torch.tensor(scales, dtype=torch.float32, device=DEVICE),
        output,
        HEAD_DIM=DIM,
    )
    numbers: np.ndarray = output.cpu().numpy()
    return numbers


def noise(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    magnitudes = random.integers(17, 2**11, shape) * 2.0 ** random.integers(-10, -3, shape)
    signed: np.ndarray = magnitudes * random.choice([-1, 1], shape)
    return signed.astype(np.float32)


@probe(
    title="Numbers exactly half-way between two codes",
    exercise=EXERCISE,
    inputs=lambda random: np.concatenate(
        [np.arange(17, 32, 2) * 2.0**power for power in random.choice(12, 4, replace=False) - 10]
    ).astype(np.float32),
    message="A number half-way between two codes has to go to the even one.",
)
def kernel_ties(code: Any, inputs: Any) -> list[Any]:
    return [encoded(code, inputs), encoded(code, -inputs)]


@probe(
    title="Subnormal numbers, and zeros of both signs",
    exercise=EXERCISE,
    inputs=lambda random: np.concatenate(
        [[0.0, -0.0], random.integers(-128, 128, 62) * 2.0**-13]
    ).astype(np.float32),
    message="Below the smallest normal number the codes are not the nearest, or a zero loses its "
    "sign.",
)
def kernel_subnormals(code: Any, inputs: Any) -> list[Any]:
    return [encoded(code, inputs)]


@probe(
    title="Numbers that are too large, and infinities",
    exercise=EXERCISE,
    inputs=lambda random: np.array(
        [449, 460, 464, 480, 512, 1e4, 3e38, np.inf, -449, -1e9, -np.inf, 447, 432, -440, 448, 1],
        dtype=np.float32,
    ),
    message="What is too large has to become the largest finite number of its sign.",
)
def kernel_saturation(code: Any, inputs: Any) -> list[Any]:
    return [encoded(code, inputs)]


@probe(
    title="NaN, written and read",
    exercise=EXERCISE,
    inputs=lambda random: np.where(random.random(32) < 0.3, np.nan, noise(random, (32,))).astype(
        np.float32
    ),
    message="NaN has to stay NaN, in the codes and in what is read of them.",
)
def kernel_nan(code: Any, inputs: Any) -> list[Any]:
    codes = encoded(code, inputs)
    back = read(code, codes.reshape(2, 1, DIM), [0, 1], [1.0])
    return [codes & 127, np.isnan(back), np.nan_to_num(back)]


@probe(
    title="What all 256 codes stand for",
    exercise=EXERCISE,
    inputs=lambda random: random.permutation(256).astype(np.uint8).reshape(16, 1, DIM),
    message="A code is not read as the number that it stands for.",
)
def kernel_all_codes(code: Any, inputs: Any) -> list[Any]:
    back = read(code, inputs, list(range(16)), [1.0])
    return [np.isnan(back), np.nan_to_num(back), np.signbit(np.nan_to_num(back))]


def scattered(random: np.random.Generator) -> dict[str, Any]:
    return {
        "numbers": noise(random, (6, 3, DIM)),
        "slots": random.permutation(12)[:6].tolist(),
        "scales": [0.5, 3.0, 0.0625],
    }


@probe(
    title="Three heads with different scales, in scattered slots",
    exercise=EXERCISE,
    trials=2,
    inputs=scattered,
    message="A head is written with a scale that is not its own, or to a slot that is not its "
    "token's.",
)
def kernel_heads(code: Any, inputs: Any) -> list[Any]:
    return [write(code, inputs["numbers"], inputs["slots"], inputs["scales"], 12)]


@probe(
    title="Three heads with different scales, read from scattered slots",
    exercise=EXERCISE,
    trials=2,
    inputs=scattered,
    message="A head is read with a scale that is not its own, or from a slot that is not its "
    "token's.",
)
def kernel_reads_heads(code: Any, inputs: Any) -> list[Any]:
    codes = (np.arange(12 * 3 * DIM) % 120).astype(np.uint8).reshape(12, 3, DIM)
    return [read(code, codes, inputs["slots"], inputs["scales"])]


def padded(random: np.random.Generator) -> dict[str, Any]:
    slots = np.array([3, 0, 7, 5])
    slots[random.permutation(4)[:2]] = [-1, -2]
    return {"numbers": noise(random, (4, 2, DIM)), "slots": slots.tolist()}


@probe(
    title="Padding among the slots, written",
    exercise=EXERCISE,
    trials=2,
    inputs=padded,
    message="Something was written for a slot that is padding.",
)
def kernel_padding_written(code: Any, inputs: Any) -> list[Any]:
    return [write(code, inputs["numbers"], inputs["slots"], [1.0, 2.0], 8)]


@probe(
    title="Padding among the slots, read",
    exercise=EXERCISE,
    trials=2,
    inputs=padded,
    message="What is read for padding has to be zero.",
)
def kernel_padding_read(code: Any, inputs: Any) -> list[Any]:
    codes = (1 + np.arange(8 * 2 * DIM) % 120).astype(np.uint8).reshape(8, 2, DIM)
    return [read(code, codes, inputs["slots"], [1.0, 2.0])]


@probe(
    title="Numbers in half precision",
    exercise=EXERCISE,
    inputs=lambda random: noise(random, (5, 2, DIM)).astype(np.float16),
    message="Keys and values that come in half precision are not quantised as the numbers that "
    "they are.",
)
def kernel_half_precision(code: Any, inputs: Any) -> list[Any]:
    return [write(code, inputs, [4, 0, 2, 1, 3], [0.25, 1.5], 5)]

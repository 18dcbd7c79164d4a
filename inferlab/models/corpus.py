"""Generated training text: six small tasks whose answers a script can check.

The checkpoints must mean something, so that quantization, a draft model or a corrupted KV cache
changes an accuracy and not only a hash. Every example is drawn from a `random.Random`, which makes
the corpus a pure function of its seed; nothing is downloaded.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

COLOURS = "red blue green black white yellow purple orange brown grey pink gold".split()
ANIMALS = "fox owl bear wolf crow hare otter mouse goat swan toad lynx seal mole deer frog".split()
PLACES = "forest river valley harbour meadow castle market garden island village".split()
OBJECTS = "lamp key map drum coin rope book bell kite cup boat hat".split()
NAMES = "Ada Alan Grace Edsger Barbara Donald Radia Dennis Frances Ken Leslie Tony".split()
CITIES = "Paris Oslo Lima Cairo Kyoto Delhi Quito Rome Accra Perth Turin Minsk".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Example(NamedTuple):
    """One chat exchange with a checkable answer."""

    task: str
    prompt: str
    answer: str


def addition(rng: random.Random) -> Example:
    digits = rng.choice((2, 2, 3))
    left, right = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    return Example("addition", f"What is {left} + {right}?", f"{left} + {right} = {left + right}")


def recall(rng: random.Random) -> Example:
    """Facts to look up again; their number sets the prompt length: 20 to about 900 tokens."""
    num_facts = rng.choice((2, 3, 4, 6, 8, 12, 16, 24, 48, 96))
    keys = rng.sample(range(10, 100), min(num_facts, 90))
    facts = [(f"{rng.choice(ANIMALS)} {key}", rng.choice(COLOURS)) for key in keys]
    listing = "; ".join(f"{name} is {colour}" for name, colour in facts)
    name, colour = rng.choice(facts)
    return Example("recall", f"{listing}. What colour is {name}?", f"{name} is {colour}")


def json_object(rng: random.Random) -> Example:
    name, city, age = rng.choice(NAMES), rng.choice(CITIES), rng.randrange(18, 90)
    item = rng.choice(OBJECTS)
    prompt = f"Write JSON: {name}, aged {age}, lives in {city} and owns a {item}."
    answer = f'{{"name": "{name}", "age": {age}, "city": "{city}", "owns": "{item}"}}'
    return Example("json", prompt, answer)


def code(rng: random.Random) -> Example:
    factor, offset, value = rng.randrange(2, 10), rng.randrange(1, 10), rng.randrange(2, 10)
    sign, result = rng.choice((("+", 1), ("-", -1)))
    prompt = f"def f(x):\n    return x * {factor} {sign} {offset}\nprint(f({value}))"
    product = value * factor
    return Example("code", prompt, f"{value} * {factor} = {product}\n{product + result * offset}")


def copy_list(rng: random.Random) -> Example:
    words = [rng.choice(LETTERS) + rng.choice(LETTERS) for _ in range(rng.randrange(3, 14))]
    if rng.random() < 0.5:
        return Example("copy", f"Copy: {' '.join(words)}", " ".join(words))
    return Example("copy", f"Reverse: {' '.join(words)}", " ".join(reversed(words)))


def story(rng: random.Random) -> Example:
    """Free text: a grammar with real choices, so that a sampled continuation has entropy."""
    hero, friend = rng.sample(ANIMALS, 2)
    sentences = [f"The {hero} lived by the {rng.choice(PLACES)}."]
    for _ in range(rng.randrange(3, 9)):
        place, thing, colour = rng.choice(PLACES), rng.choice(OBJECTS), rng.choice(COLOURS)
        sentences.append(
            rng.choice(
                (
                    f"One day the {hero} found a {colour} {thing} in the {place}.",
                    f"The {friend} asked the {hero} for the {thing}.",
                    f"They walked to the {place} and looked for a {thing}.",
                    f"In the {place} the {friend} was {rng.choice(('sad', 'glad', 'tired'))}.",
                    f'"Where is my {colour} {thing}?" said the {friend}.',
                    f"The {hero} gave the {thing} to the {friend}.",
                )
            )
        )
    sentences.append(f"Then the {hero} and the {friend} went home.")
    return Example("story", f"Tell a story about a {hero} and a {friend}.", " ".join(sentences))


TASKS: dict[str, tuple[Callable[[random.Random], Example], float]] = {
    "addition": (addition, 0.36),
    "recall": (recall, 0.18),
    "json": (json_object, 0.08),
    "code": (code, 0.12),
    "copy": (copy_list, 0.16),
    "story": (story, 0.10),
}
"""Generator and share of the training examples, by task."""

CHECKED_TASKS = [task for task in TASKS if task != "story"]
"""Tasks with exactly one right answer: accuracy is the share answered to the letter."""


def examples(seed: int) -> Iterator[Example]:
    """An endless, reproducible stream of examples in the proportions of `TASKS`."""
    rng = random.Random(seed)
    generators = [generator for generator, _ in TASKS.values()]
    shares = [share for _, share in TASKS.values()]
    while True:
        yield rng.choices(generators, shares)[0](rng)


def held_out_examples(task: str, count: int) -> list[Example]:
    """`count` examples of one task, from a stream that training never sees."""
    rng = random.Random(f"held out {task}")
    return [TASKS[task][0](rng) for _ in range(count)]

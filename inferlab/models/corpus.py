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


class Example(NamedTuple):
    """One chat exchange with a checkable answer."""

    task: str
    prompt: str
    answer: str


def addition(rng: random.Random) -> Example:
    digits = rng.choice((2, 2, 2, 3))
    left, right = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    return Example("addition", f"What is {left} + {right}?", str(left + right))


def recall(rng: random.Random) -> Example:
    """Facts to look up again; their number sets the prompt length, up to about 900 tokens."""
    if rng.random() < 0.01:
        things = [f"{rng.choice(ANIMALS)} {number}" for number in rng.sample(range(10, 100), 80)]
    else:
        things = rng.sample(ANIMALS + OBJECTS + PLACES, rng.choice((2, 3, 4, 6, 8, 12)))
    facts = [(thing, rng.choice(COLOURS)) for thing in things]
    listing = "; ".join(f"{thing} is {colour}" for thing, colour in facts)
    thing, colour = rng.choice(facts)
    return Example("recall", f"{listing}. What colour is {thing}?", colour)


def json_object(rng: random.Random) -> Example:
    name, city, age = rng.choice(NAMES), rng.choice(CITIES), rng.randrange(18, 90)
    prompt = f"Write JSON: {name}, aged {age}, of {city}"
    return Example("json", prompt, f'{{"name": "{name}", "age": {age}, "city": "{city}"}}')


def code(rng: random.Random) -> Example:
    value, operand = rng.randrange(2, 13), rng.randrange(2, 13)
    operator, result = rng.choice(
        (("+", value + operand), ("-", value - operand), ("*", value * operand))
    )
    prompt = f"f = lambda x: x {operator} {operand}\nprint(f({value}))"
    return Example("code", prompt, str(result))


def copy_list(rng: random.Random) -> Example:
    words = rng.sample(ANIMALS + OBJECTS + PLACES + COLOURS, rng.randrange(3, 9))
    if rng.random() < 0.7:
        return Example("copy", f"Copy: {' '.join(words)}", " ".join(words))
    return Example("copy", f"Reverse: {' '.join(words)}", " ".join(reversed(words)))


def story(rng: random.Random) -> Example:
    """Free text: a grammar with real choices, so that a sampled continuation has entropy."""
    hero, friend = rng.sample(ANIMALS, 2)
    sentences = [f"The {hero} lived by the {rng.choice(PLACES)}."]
    for _ in range(rng.randrange(1, 6)):
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
    "addition": (addition, 0.34),
    "recall": (recall, 0.20),
    "json": (json_object, 0.06),
    "code": (code, 0.12),
    "copy": (copy_list, 0.22),
    "story": (story, 0.06),
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

"""Text of an exact number of tokens, for any model's tokenizer."""

import random

from tokenizers import Tokenizer

from inferlab.lab.paths import ROOT
from inferlab.lab.yaml_file import SpecificationError
from inferlab.models.corpus import ANIMALS, COLOURS, OBJECTS, PLACES

WORDS = ANIMALS + COLOURS + OBJECTS + PLACES
# From fewer, long prompts would repeat themselves, and two of them might begin alike.
FEWEST_WORDS = 16


class Text:
    """Text of words that are one token each, alone and behind another word.

    Invariant: it has as many tokens as words, and what is put behind it leaves its tokens as they
    were. Lengths of prompts include the special tokens that a server puts round them.

    Raises:
        SpecificationError: if the tokenizer is missing, or has too few such words.
    """

    def __init__(self, model: str) -> None:
        self._model, self._tokenizer = model, read_tokenizer(model)
        self._num_special_tokens = self.prompt_tokens("")
        self.words = [
            word
            for word in WORDS
            if self.answer_tokens(word) == 1 and self.answer_tokens(f"{word} {word}") == 2
        ]
        if len(self.words) < FEWEST_WORDS:
            raise SpecificationError(
                f"Of {len(WORDS)} words only {len(self.words)} are one token each for the "
                f"tokenizer of {model}; prompts of exact length need {FEWEST_WORDS}."
            )

    def prompt_tokens(self, prompt: str) -> int:
        return len(self._token_ids(prompt))

    def answer_tokens(self, answer: str) -> int:
        return self.prompt_tokens(answer) - self._num_special_tokens

    def _token_ids(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(prompt).ids
        return ids

    def lengthened(self, prompt: str, num_tokens: int, rng: random.Random) -> str:
        """`prompt` with words put behind it that make it `num_tokens` long.

        Raises:
            SpecificationError: if the tokenizer joins words, so that they do not.
        """
        former = self._token_ids(prompt)
        added = rng.choices(self.words, k=num_tokens - len(former))
        longer = " ".join([*prompt.split(), *added])
        found = self._token_ids(longer)
        if len(found) != num_tokens or found[: len(former)] != former:
            raise SpecificationError(
                f"The tokenizer of {self._model} joins words: of {len(former)} tokens and "
                f"{len(added)} words it makes {len(found)} tokens, or others than before, so "
                f"prompts cannot have an exact length."
            )
        return longer

    def different_words(self, count: int, rng: random.Random) -> list[str]:
        """`count` words, each as often as the others or once more."""
        rounds, rest = divmod(count, len(self.words))
        return rng.sample(self.words * rounds + rng.sample(self.words, rest), count)


def read_tokenizer(model: str) -> Tokenizer:
    """The tokenizer in the folder `model`, or the downloaded one of that Hugging Face name.

    Raises:
        SpecificationError: if there is none.
    """
    from huggingface_hub import hf_hub_download

    folder, name = ROOT / model, "tokenizer.json"
    try:
        path = (
            folder / name
            if folder.is_dir()
            else hf_hub_download(model, name, local_files_only=True)
        )
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise SpecificationError(
            f"Without its tokenizer, prompts for {model} have no length, and its {name} cannot be "
            f"read: {error} If it is a name on Hugging Face, run `hf download {model}` first."
        ) from None

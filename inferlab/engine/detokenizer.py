"""Text from tokens as they come, cut before a stop string and never inside a character.

A token of a byte-level BPE may hold part of a character, and a stop string may begin in one token
and end in another, so text is sent only once no later token can change it or cut it off.
Built in week 1; mirrors vllm/v1/engine/detokenizer.py:IncrementalDetokenizer, which holds a fixed
number of characters back, where this one holds back only what may begin a stop string.
"""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"  # what a decoder puts where bytes are no character
MAX_UNSETTLED = 3  # bytes that may still become a character: one replacement each, or one for all
WINDOW = 16  # tokens of at least one byte: the last four characters lie wholly in them


def find_stop_string(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string that is complete first begins in `text`, as in `check_stop_strings`."""
    found = [(text.find(string), string) for string in stop if string in text]
    return min(found, key=lambda match: match[0] + len(match[1]))[0] if found else None


def num_held_back(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that may be the beginning of a stop string."""
    longest = min(len(text), max(map(len, stop), default=1) - 1)
    ends = (text[-length:] for length in range(longest, 0, -1))
    return next((len(end) for end in ends if any(s.startswith(end) for s in stop)), 0)


class Detokenizer:
    """The text of one request's output, read piece by piece.

    Invariants:
      - the pieces, joined, are `tokenizer.decode` of all tokens, cut before the stop string;
      - no piece holds a part of that stop string, or a character that a later token changes;
      - a token costs O(1), however long the output is.

    The first holds for byte-level tokenizers. With byte fallback (SentencePiece) one invalid byte
    turns the whole run of byte tokens into replacements, which no stream can foresee.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.stopped = False  # by a stop string; what comes after it is ignored
        self._tokenizer, self._stop = tokenizer, stop
        added = tokenizer.get_added_tokens_decoder()
        self._silent = {token_id for token_id, token in added.items() if token.special}
        self._window: list[int] = []  # the last tokens, which are decoded together
        self._num_context = 0  # how many of them end where no character was cut
        self._num_settled = 0  # characters of the window's text that no longer change
        self._held = ""  # settled, but perhaps the beginning of a stop string
        self._unread = ""

    def add(self, token_id: int) -> bool:
        """Take a token; whether a stop string is complete. Without any, `read` does the work."""
        if token_id not in self._silent:
            self._window.append(token_id)
            if self._stop:
                self._settle()
        return self.stopped

    def read(self, finished: bool = False) -> str:
        """The text that became certain since the last call; with `finished`, all that is left."""
        self._settle(finished)
        text, self._unread = self._unread, ""
        return text

    def _settle(self, finished: bool = False) -> None:
        if self.stopped:
            return
        text: str = self._tokenizer.decode(self._window)
        unsettled = 0 if finished else len(text) - len(text.rstrip(REPLACEMENT))
        end = max(self._num_settled, len(text) - min(unsettled, MAX_UNSETTLED))
        held, self._num_settled = self._held + text[self._num_settled : end], end
        self._slide(len(text) - end)
        start = find_stop_string(held, self._stop)
        self.stopped = start is not None
        if start is None:
            start = len(held) - (0 if finished else num_held_back(held, self._stop))
        self._unread, self._held = self._unread + held[:start], held[start:]

    def _slide(self, num_unsettled: int) -> None:
        """Drop the tokens whose bytes cannot matter to characters that are still to come."""
        if num_unsettled == 0 and len(self._window) > self._num_context:
            self._window = self._window[self._num_context :]
            self._num_context = len(self._window)
        elif len(self._window) > 2 * WINDOW:
            self._window, self._num_context = self._window[-WINDOW:], 0
        else:
            return
        self._num_settled = len(self._tokenizer.decode(self._window)) - num_unsettled

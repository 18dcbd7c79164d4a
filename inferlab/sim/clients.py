"""Who sends which request when: arrival processes, and clients that wait for answers."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Prompt:
    """One request as a client means to send it.

    Requests of the same `prefix` begin with the same `prefix_tokens` tokens; nothing else of two
    prompts is equal.
    """

    due_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: int | None = None
    prefix_tokens: int = 0
    priority: int = 0
    received_tokens: int = 0  # whose K and V come with the request, from elsewhere
    loading_s: float = 0.0  # what they take to come


class Clients:
    """Sends prompts when they are due, and no more than `max_in_flight` at a time.

    Without a limit this is an open loop: requests come whether or not the server follows. With a
    limit and all of them due at once it is a closed loop: each answer lets the next request go.
    """

    def __init__(self, prompts: Sequence[Prompt], max_in_flight: int | None = None) -> None:
        self._unsent = sorted(prompts, key=lambda prompt: prompt.due_s, reverse=True)
        # When each place among those in flight became free; with as many places as prompts, none
        # ever waits for one.
        self._free_since = deque([-inf] * (max_in_flight or len(prompts)))

    @property
    def next_s(self) -> float:
        """When the next request is sent; infinity if none is left, or if it waits for an answer."""
        if not self._unsent or not self._free_since:
            return inf
        return max(self._unsent[-1].due_s, self._free_since[0])

    def send(self) -> tuple[Prompt, float]:
        """The next request, and when it is sent."""
        sent_s = self.next_s
        self._free_since.popleft()
        return self._unsent.pop(), sent_s

    def add(self, prompt: Prompt) -> None:
        """Let one more prompt be sent, with a place of its own; none may be due after it."""
        self._unsent.insert(0, prompt)
        self._free_since.appendleft(-inf)

    def take_answer(self, now_s: float) -> None:
        """An answer was complete at `now_s`: another request may take its place."""
        self._free_since.append(now_s)

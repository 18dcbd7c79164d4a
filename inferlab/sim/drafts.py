"""Speculative decoding without a model: how many of the drafts are accepted is drawn."""

from collections.abc import Iterable

import numpy as np

from inferlab.engine.request import Request, RequestStatus


class Drafts:
    """Drafts `num_tokens` tokens for each request in each step.

    Each draft is accepted with probability `acceptance`, if all before it were: that is how
    Leviathan et al. (2023, section 3.1) model it, and its weakness, because real drafts are easy or
    hard in runs.
    """

    def __init__(self, num_tokens: int, acceptance: float, seed: int = 0) -> None:
        if not 0 <= acceptance <= 1:
            raise ValueError(f"The acceptance is {acceptance}; it is a share, from 0 to 1.")
        self.num_tokens = num_tokens
        self.acceptance = acceptance
        self._random = np.random.default_rng(seed)

    def accepted(self, num_drafts: int) -> int:
        """How many of `num_drafts` verified drafts are accepted."""
        misses = self._random.random(num_drafts) >= self.acceptance
        return int(misses.argmax()) if misses.any() else num_drafts

    def propose(self, requests: Iterable[Request]) -> None:
        """Give drafts to each request whose newest token is all that it has to compute."""
        for request in requests:
            is_decoding = request.num_computed_tokens == request.num_tokens - 1
            if request.status is RequestStatus.RUNNING and is_decoding:
                request.draft_token_ids = [0] * self.num_tokens

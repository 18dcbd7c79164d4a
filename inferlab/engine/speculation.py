"""Speculative decoding: a cheap proposer drafts tokens, the target verifies them in one pass.

Built in week 11; mirrors vllm/v1/spec_decode and vllm/v1/sample/rejection_sampler.py. Each step
verifies the drafts of the last one, then drafts for the next. Tokens at temperature 0 stay the
same. Others keep their distribution, but even with a seed they are not the same: drafts take draws
from the request's generator, and their number depends on the token budget and on preemption.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from inferlab.engine.model import LlamaModel, SequenceChunk, make_batch
from inferlab.engine.request import Request
from inferlab.engine.sampler import Sampler, draw, penalise, record_logprobs, token_probabilities
from inferlab.engine.scheduler import ScheduledRequest

if TYPE_CHECKING:
    from inferlab.engine.llm import LLM


def greedy_verify(logits: np.ndarray, draft_token_ids: Sequence[int]) -> list[int]:
    """The drafts that the target would have chosen too, and one more token of its own.

    Row i of `logits` `[num_drafts + 1, vocab_size]` follows i drafts. The last token returned
    corrects the first wrong draft, or is the bonus token if none is wrong.
    """
    best: list[int] = logits.argmax(axis=-1).tolist()
    wrong = (i for i, token in enumerate(draft_token_ids) if token != best[i])
    return best[: next(wrong, len(draft_token_ids)) + 1]


def rejection_sample(
    target_probabilities: Sequence[np.ndarray],
    draft_token_ids: Sequence[int],
    draft_probabilities: Sequence[np.ndarray] | None,
    generator: np.random.Generator,
) -> list[int]:
    """Tokens distributed as if the target had drawn each of them alone.

    A draft x is accepted with probability min(1, p(x) / q(x)). A draw from the residual
    distribution replaces the first one rejected; if none is, a bonus token follows. p has a row
    `[vocab_size]` for each draft and one more. q has one for each, or is None for drafts that were
    not drawn, and then one-hot. Source: Leviathan et al., ICML 2023, section 2.3.
    """
    for i, token in enumerate(draft_token_ids):
        p = target_probabilities[i]
        q = np.eye(1, len(p), token)[0] if draft_probabilities is None else draft_probabilities[i]
        if generator.random() * q[token] >= p[token]:
            return [*draft_token_ids[:i], draw(residual_distribution(p, q), generator)]
    return [*draft_token_ids, draw(target_probabilities[len(draft_token_ids)], generator)]


def residual_distribution(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """max(0, p - q) `[vocab_size]`, normalised: what accepted drafts leave to be drawn."""
    residual: np.ndarray = np.maximum(p - q, 0)
    # If q equals p nothing is left; only rounding can reject a draft then, and p itself is right.
    return residual / residual.sum() if residual.any() else p


def verify(
    logits: np.ndarray, sampling: Sequence[ScheduledRequest], sampler: Sampler
) -> dict[str, list[int]]:
    """New tokens, by request id, of the requests that sample in a step.

    `logits` has `num_draft_tokens + 1` rows of each, one request after the other.
    """
    sampled, first = {}, 0
    for entry in sampling:
        request, params = entry.request, entry.request.sampling_params
        drafts = request.draft_token_ids[: entry.num_draft_tokens]
        rows = logits[first : first + len(drafts) + 1]
        first += len(rows)
        # Penalties count the drafts before a position as the output that they would be there.
        penalised = [penalise(row, request, drafts[:i]) for i, row in enumerate(rows)]
        if params.temperature == 0:
            tokens = greedy_verify(np.stack(penalised), drafts)
        else:
            p = [token_probabilities(row, params) for row in penalised]
            q, generator = request.draft_probabilities or None, sampler.generator(request)
            tokens = rejection_sample(p, drafts, q, generator)
        record_logprobs(request, rows, tokens)
        sampled[request.request_id] = tokens
    return sampled


class Proposer:
    """Where drafts come from."""

    num_lookahead_tokens = 0  # slots behind a step's own that the proposer writes in that step

    def __init__(self, num_speculative_tokens: int) -> None:
        if num_speculative_tokens < 1:
            raise ValueError(f"{num_speculative_tokens} drafts were asked for; ask for 1 or more.")
        self.num_speculative_tokens = num_speculative_tokens

    def attach(self, engine: "LLM") -> None:
        """Meet the engine, which calls this once."""

    def draft(self, scheduled: list[ScheduledRequest], sampled: dict[str, list[int]]) -> None:
        """Replace the drafts of a verified step's requests; `sampled` is not appended yet."""


class NgramProposer(Proposer):
    """Drafts what followed the first occurrence of the longest n-gram that ends the sequence.

    Source: vllm/v1/spec_decode/ngram_proposer.py:NgramProposer.
    """

    def __init__(self, min_n: int, max_n: int, num_speculative_tokens: int) -> None:
        if not 1 <= min_n <= max_n:
            raise ValueError(f"min_n is {min_n} and max_n {max_n}; give 1 <= min_n <= max_n.")
        Proposer.__init__(self, num_speculative_tokens)
        self.min_n, self.max_n = min_n, max_n

    def propose(self, token_ids: Sequence[int]) -> list[int]:
        """At most `num_speculative_tokens` tokens to follow `token_ids`; none without a match."""
        tokens = np.asarray(token_ids)
        for n in range(min(self.max_n, len(tokens) - 1), self.min_n - 1, -1):
            # Without the last token, or the end of the sequence would match itself.
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], n)
            matches = np.flatnonzero((windows == tokens[-n:]).all(axis=1))
            if len(matches):
                first = int(matches[0]) + n
                return list(token_ids[first : first + self.num_speculative_tokens])
        return []

    def draft(self, scheduled: list[ScheduledRequest], sampled: dict[str, list[int]]) -> None:
        for request in (entry.request for entry in scheduled if entry.samples):
            tokens = request.token_ids(0, request.num_tokens) + sampled[request.request_id]
            request.draft_token_ids = self.propose(tokens)


class DraftModelProposer(Proposer):
    """Drafts with a small model of the same vocabulary, one forward pass per draft position.

    Its KV cache has the target's block ids and tables: allocation, preemption and prefix hits are
    decided once, for both. Invariant: between steps, where the target computed K and V that a
    request has or the prefix cache can find, this cache has the drafter's of the same token. So
    prompts and last tokens are computed too. K and V that came from another engine or a tier are
    the exception: the drafter has none of its own for them, and is less often right.
    Source: vllm/v1/spec_decode/draft_model.py.
    """

    def __init__(self, model: LlamaModel, num_speculative_tokens: int) -> None:
        Proposer.__init__(self, num_speculative_tokens)
        self.model, self.num_lookahead_tokens = model, num_speculative_tokens

    def attach(self, engine: "LLM") -> None:
        """Make the KV cache; a ValueError if the models differ in vocabulary or context."""
        for name in ("vocab_size", "max_position_embeddings"):
            mine, theirs = (getattr(m.config, name) for m in (self.model, engine.model))
            if mine != theirs:
                raise ValueError(f"The drafter's {name} is {mine}; the target's is {theirs}.")
        self._manager, self._sampler = engine.scheduler.kv_cache_manager, engine.sampler
        self.kv_cache = self.model.new_kv_cache(self._manager.num_blocks, self._manager.block_size)

    def draft(self, scheduled: list[ScheduledRequest], sampled: dict[str, list[int]]) -> None:
        work = []
        for entry in scheduled:
            request, new = entry.request, sampled.get(entry.request.request_id, [])
            start, limit = request.num_computed_tokens, 0
            if new:
                limit = min(self.num_speculative_tokens, request.max_draft_tokens - len(new))
            # The newest token is fed only to draft behind it: without a draft it may have no slot.
            fed = request.token_ids(start, start + entry.num_tokens)
            fed += new if limit > 0 else new[:-1]
            # Rollback: drafts were fed when they were made, all but the last of them.
            known = min(len(new), entry.num_draft_tokens, len(fed) - 1)
            table = self._manager.block_table(request.request_id)
            work.append((request, new, limit, SequenceChunk(fed[known:], start + known, table)))
            request.draft_token_ids, request.draft_probabilities = [], []
        while work:
            batch = make_batch([chunk for *_, chunk in work], self._manager.block_size)
            rows = self.model.logits(self.model.forward(batch, self.kv_cache)[batch.last_rows])
            done, work = work, []
            for row, (request, new, limit, (tokens, start, blocks)) in zip(rows, done):
                drafts = request.draft_token_ids
                if len(drafts) < limit:
                    drafts.append(self._choose(row, request, [*new, *drafts]))
                if len(drafts) < limit:
                    chunk = SequenceChunk(drafts[-1:], start + len(tokens), blocks)
                    work.append((request, new, limit, chunk))

    def _choose(self, row: np.ndarray, request: Request, pending: Sequence[int]) -> int:
        """What the request's sampling parameters make of a row of the drafter's logits."""
        row, params = penalise(row, request, pending), request.sampling_params
        if params.temperature == 0:
            return int(row.argmax())
        request.draft_probabilities.append(token_probabilities(row, params))
        return draw(request.draft_probabilities[-1], self._sampler.generator(request))

"""From logits to one token: penalties, temperature, min-p, top-k, top-p, and one seeded draw."""

from collections.abc import Sequence

import numpy as np

from inferlab.engine.request import Request, SamplingParams, TokenLogprobs


def sample_token(logits: np.ndarray, params: SamplingParams, generator: np.random.Generator) -> int:
    """Choose the next token from `logits` `[vocab_size]`.

    Temperature 0 is the argmax, the lowest id on ties, whatever the other filters say. Otherwise
    exactly one uniform number is drawn, so that a request consumes its generator at a fixed rate.
    """
    if params.temperature == 0:
        return int(np.argmax(logits))
    probabilities = token_probabilities(logits, params)
    return draw(probabilities, generator)


def draw(probabilities: np.ndarray, generator: np.random.Generator) -> int:
    """One token from `probabilities` `[vocab_size]`, for exactly one uniform number."""
    threshold = generator.random()
    return int(
        min(
            np.searchsorted(np.cumsum(probabilities), threshold, side="right"),
            np.flatnonzero(probabilities)[-1],
        )
    )


def token_probabilities(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The distribution `[vocab_size]` that `params` makes of `logits`, for a temperature above 0.

    Source of the order: vllm/v1/sample/sampler.py:Sampler.
    """
    scaled = logits.astype(np.float64) / params.temperature
    probabilities = softmax(scaled)
    kept = probabilities >= params.min_p * probabilities.max()
    descending = np.argsort(-scaled, kind="stable")
    if 0 < params.top_k < len(scaled):
        kept[descending[params.top_k :]] = False
    if params.top_p < 1:
        remaining = softmax(np.where(kept, scaled, -np.inf))[descending]
        # The token that crosses top_p is kept: the mass before it is still below the threshold.
        kept[descending[np.cumsum(remaining) - remaining >= params.top_p]] = False
    return softmax(np.where(kept, scaled, -np.inf))


def apply_penalties(
    logits: np.ndarray,
    prompt: Sequence[int],
    output: Sequence[int],
    params: SamplingParams,
) -> np.ndarray:
    """Logits with repetition (prompt and output), presence and frequency (output) penalties."""
    penalised = logits.copy()
    if params.repetition_penalty != 1:
        seen = np.unique(np.array([*prompt, *output], dtype=int))
        factor = np.where(
            penalised[seen] > 0, 1 / params.repetition_penalty, params.repetition_penalty
        )
        penalised[seen] *= factor
    if output and (params.frequency_penalty or params.presence_penalty):
        counts = np.bincount(output, minlength=len(logits))
        penalised -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    return penalised


def penalise(logits: np.ndarray, request: Request, pending: Sequence[int] = ()) -> np.ndarray:
    """`apply_penalties` for a request, with the tokens `pending` behind its output."""
    output = [*request.output_token_ids, *pending]
    return apply_penalties(logits, request.prompt_token_ids, output, request.sampling_params)


def record_logprobs(request: Request, logits: np.ndarray, token_ids: Sequence[int]) -> None:
    """Keep the log-probabilities of new tokens, if the request asks for them.

    Row i of `logits` `[num_tokens, vocab_size]` is what token i was chosen from, before penalties.
    Source: vllm/v1/sample/sampler.py:Sampler, with `raw_logprobs`.
    """
    if request.sampling_params.logprobs is None:
        return
    for row, token_id in zip(logits.astype(np.float64), token_ids):
        shifted = row - row.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        best = np.argsort(-row, kind="stable")[: request.sampling_params.logprobs]
        top = [(int(i), float(logprobs[i])) for i in best]
        request.logprobs.append(TokenLogprobs(float(logprobs[token_id]), top))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax of a vector; subtracting the maximum keeps `exp` from overflowing."""
    weights = np.exp(scores - scores.max())
    normalised: np.ndarray = weights / weights.sum()
    return normalised


class Sampler:
    """Samples for the requests of a batch, each from a generator of its own.

    A shared generator would make a request's tokens depend on its neighbours; with one per request
    they depend on its seed alone.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seeds = np.random.SeedSequence(seed)
        self._generators: dict[str, np.random.Generator] = {}

    def sample(self, logits: np.ndarray, requests: Sequence[Request]) -> list[int]:
        """One token for each request from the matching row of `logits` `[num_requests, vocab]`."""
        tokens = []
        for row, request in zip(logits, requests):
            penalised = penalise(row, request)
            generator = self.generator(request)
            tokens.append(sample_token(penalised, request.sampling_params, generator))
            record_logprobs(request, row[None], tokens[-1:])
        return tokens

    def forget(self, request_id: str) -> None:
        """Drop the generator of a finished request."""
        self._generators.pop(request_id, None)

    def generator(self, request: Request) -> np.random.Generator:
        """The request's own source of random numbers, made at first use."""
        if request.request_id not in self._generators:
            seed = request.sampling_params.seed
            source = self._seeds.spawn(1)[0] if seed is None else seed
            self._generators[request.request_id] = np.random.default_rng(source)
        return self._generators[request.request_id]

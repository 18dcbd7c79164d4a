"""Our engine with every product tiled and counted: what week 3 assembles."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from inferlab.analysis.operators import StepShape
from inferlab.analysis.tiled_traffic import TiledLinear
from inferlab.engine import LLM, Request, SamplingParams, SchedulerOutput
from inferlab.engine.layers import DenseLinear, GatedMLP

TILES = (64, 128, 128)  # rows, columns and depth


class CountedEngine:
    """An `LLM` whose linear layers are `TiledLinear`; it keeps the shape of every step.

    Attention stays as it is: what is counted are the products with weights.
    """

    def __init__(self, checkpoint: str | Path, tiles: tuple[int, int, int] = TILES) -> None:
        self.steps: list[StepShape] = []
        self.layers: list[TiledLinear] = []
        self._tiles = tiles
        self.llm = LLM(checkpoint, enable_prefix_caching=False, on_schedule=self._note)
        model = self.llm.model
        for layer in model.layers:
            if not isinstance(layer.mlp, GatedMLP):
                raise TypeError(
                    f"A layer of {checkpoint} has a {type(layer.mlp).__name__} in place of a gated "
                    "feed-forward part; only dense models are counted."
                )
            layer.qkv, layer.output = self._tiled(layer.qkv), self._tiled(layer.output)
            layer.mlp.gate_up = self._tiled(layer.mlp.gate_up)
            layer.mlp.down = self._tiled(layer.mlp.down)
        model.head = self._tiled(model.head)

    def generate(self, prompts: Iterable[Sequence[int]], params: SamplingParams) -> list[list[int]]:
        """Tokens of the prompts, which are served together."""
        return [completion.token_ids for completion in self.llm.generate(list(prompts), params)]

    def counts(self) -> dict[str, int]:
        """Steps so far, and the elements that their products loaded and stored."""
        return {
            "steps": len(self.steps),
            "weights_loaded": sum(layer.weights_loaded for layer in self.layers),
            "rows_loaded": sum(layer.rows_loaded for layer in self.layers),
            "stored": sum(layer.stored for layer in self.layers),
        }

    def _tiled(self, layer: object) -> TiledLinear:
        assert isinstance(layer, DenseLinear)
        self.layers.append(TiledLinear(layer.weight, *self._tiles))
        return self.layers[-1]

    def _note(self, output: SchedulerOutput) -> None:
        if output.scheduled:
            self.steps.append(StepShape.of(_share(*entry) for entry in output.scheduled))


def _share(request: Request, num_tokens: int) -> tuple[int, int, bool]:
    """A request's part of a step: tokens, context, and whether they are the prompt's."""
    computed = request.num_computed_tokens
    return num_tokens, computed + num_tokens, computed < request.num_prompt_tokens

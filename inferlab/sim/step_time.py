"""What a step takes: of each operator the slower of arithmetic and memory, and what adds to it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import (
    BF16,
    Operator,
    Precision,
    StepShape,
    all_reduce_bytes,
    distinct_experts,
    operators,
)
from inferlab.sim.devices import Device


@dataclass(frozen=True)
class Overheads:
    """What an engine reaches of a device's ceilings, and what a step costs beside its operators.

    The defaults are those of an ideal engine; `calibration` fits them to recorded runs.
    """

    arithmetic_share: float = 1.0  # of the device's peak, in products with weights
    bandwidth_share: float = 1.0  # of the device's bandwidth, reading weights
    attention_share: float = 1.0  # of both, in attention
    step_s: float = 0.0  # scheduling, preparing inputs, launching kernels
    request_s: float = 0.0  # for each token sampled: sampler, text, and its way to the client
    frontend_s: float = 0.0  # HTTP and tokenizer, before the scheduler hears of a request
    all_reduce_s: float = 0.0  # latency of adding up once between GPUs
    link_share: float = 1.0  # of the link's bandwidth


IDEAL = Overheads()


class RooflineStepTime:
    """The time of a step of `model` on `num_gpus` devices, in seconds.

    FLOP and bytes of an operator are linear in the amounts of a step and in the number of experts
    that it needs. So the operators are asked once for their coefficients, and a step costs two
    products of small matrices.
    """

    def __init__(
        self,
        model: ModelShape,
        device: Device,
        precision: Precision = BF16,
        overheads: Overheads = IDEAL,
        num_gpus: int = 1,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.overheads = overheads
        self.num_gpus = num_gpus
        at_nothing = self._costs([0.0] * NUM_AMOUNTS)
        slopes = [self._costs(unit) - at_nothing for unit in np.eye(NUM_AMOUNTS).tolist()]
        # [2, num_operators, 1 + NUM_AMOUNTS]: seconds of arithmetic and of memory.
        self._coefficients = np.stack([at_nothing, *slopes], axis=-1)
        self.operator_names = [operator.name for operator in self._operators([0.0] * NUM_AMOUNTS)]

    def __call__(self, step: StepShape) -> Any:
        """Seconds; an array if an amount of `step` is one."""
        overheads = self.overheads
        fixed = overheads.step_s + overheads.request_s * step.sampled
        return self.operator_seconds(step).sum(axis=0) + fixed + self.communication_seconds(step)

    def operator_seconds(self, step: StepShape) -> np.ndarray:
        """Seconds of each of `operator_names`, over all layers, `[num_operators, …]`."""
        amounts = np.stack(
            np.broadcast_arrays(1.0, *step, distinct_experts(self.model, step.tokens))
        )
        slower: np.ndarray = np.maximum(*(self._coefficients @ amounts))
        return slower

    def communication_seconds(self, step: StepShape) -> Any:
        """Two all-reduces a layer, as a ring does them: 2 (n - 1) / n of the bytes one way."""
        if self.num_gpus == 1:
            return 0.0
        moved = 2 * (self.num_gpus - 1) / self.num_gpus
        moved = moved * all_reduce_bytes(self.model, step.tokens, self.precision)
        link = self.device.link_bytes_per_s * self.overheads.link_share
        return 2 * self.model.num_layers * (self.overheads.all_reduce_s + moved / link)

    def _operators(self, amounts: list[float]) -> list[Operator]:
        *step, experts = amounts
        return operators(self.model, StepShape(*step), self.precision, self.num_gpus, experts)

    def _costs(self, amounts: list[float]) -> np.ndarray:
        """Seconds of arithmetic and of memory of each operator, `[2, num_operators]`."""
        peak = self.device.peak(self.precision.arithmetic)
        bandwidth = self.device.bandwidth_bytes_per_s
        shares = self.overheads
        costs = []
        for operator in self._operators(amounts):
            in_attention = operator.name == "attention"
            arithmetic = shares.attention_share if in_attention else shares.arithmetic_share
            memory = shares.attention_share if in_attention else shares.bandwidth_share
            costs.append(
                (operator.flop / (peak * arithmetic), operator.bytes / (bandwidth * memory))
            )
        return np.array(costs).T


# Of a step, and the experts that it needs.
NUM_AMOUNTS = len(StepShape._fields) + 1

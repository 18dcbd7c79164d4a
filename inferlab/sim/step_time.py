"""What a step takes: for each operator the slower of arithmetic and memory, and what comes on top."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import Precision, StepShape, all_reduce_bytes, operators
from inferlab.sim.devices import Device


@dataclass(frozen=True)
class Overheads:
    """What an engine on a device reaches of the ceilings, and what a step costs beside its operators.

    The defaults are those of an ideal engine; `calibration` fits them to recorded runs.
    """

    arithmetic_share: float = 1.0  # of the device's peak, in products with weights
    bandwidth_share: float = 1.0  # of the device's bandwidth, reading weights
    attention_share: float = 1.0  # of both, in attention
    step_s: float = 0.0  # scheduling, preparing inputs, launching kernels
    request_s: float = 0.0  # for each token that is sampled: sampler, text, and its way to the client
    frontend_s: float = 0.0  # HTTP and tokenizer, before the scheduler hears of a request
    all_reduce_s: float = 0.0  # latency of adding up once between GPUs
    link_share: float = 1.0  # of the link's bandwidth


class RooflineStepTime:
    """The time of a step of `model` on `num_gpus` devices, in seconds."""

    def __init__(
        self,
        model: ModelShape,
        device: Device,
        precision: Precision = Precision(),
        overheads: Overheads = Overheads(),
        num_gpus: int = 1,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.overheads = overheads
        self.num_gpus = num_gpus
        self._peak = device.peak(precision.arithmetic)
        operators(model, StepShape(), precision, num_gpus)  # refuses a model that cannot be divided

    def __call__(self, step: StepShape) -> Any:
        """Seconds; an array if the amounts of `step` are arrays."""
        overheads = self.overheads
        fixed = overheads.step_s + overheads.request_s * step.sampled
        return fixed + sum(self.operator_seconds(step).values()) + self.communication_seconds(step)

    def operator_seconds(self, step: StepShape) -> dict[str, Any]:
        """Seconds of each operator, over all layers."""
        return {
            operator.name: np.maximum(
                operator.flop / (self._peak * self._share(operator.name, "arithmetic")),
                operator.bytes
                / (self.device.bandwidth_bytes_per_s * self._share(operator.name, "bandwidth")),
            )
            for operator in operators(self.model, step, self.precision, self.num_gpus)
        }

    def _share(self, operator: str, resource: str) -> float:
        if operator == "attention":
            return self.overheads.attention_share
        share: float = getattr(self.overheads, f"{resource}_share")
        return share

    def communication_seconds(self, step: StepShape) -> Any:
        """Two all-reduces in each layer, as a ring does them: 2 (n - 1) / n of the bytes one way."""
        if self.num_gpus == 1:
            return 0.0
        moved = 2 * (self.num_gpus - 1) / self.num_gpus
        moved = moved * all_reduce_bytes(self.model, step.tokens, self.precision)
        link = self.device.link_bytes_per_s * self.overheads.link_share
        return 2 * self.model.num_layers * (self.overheads.all_reduce_s + moved / link)

"""FLOPs and bytes of a step by vLLM's own analytic model: runs in the engines' interpreter.

`data` holds the shapes of `models` as Hugging Face configures them, and `steps`, each with its
`prefills` and `decodes`: for every request its tokens in the step, and the length of its sequence
after it. The answer holds, for each model and step, what every operator of all layers together
computes, reads and writes.
"""

import json
import tempfile
from pathlib import Path

from vllm.config import CacheConfig, DeviceConfig, ModelConfig, VllmConfig
from vllm.v1.metrics.perf import ExecutionContext, ModelMetrics


def main(data):
    metrics = {name: metrics_of(shape) for name, shape in data["models"].items()}
    return {
        name: [costs(found, **step) for step in data["steps"]] for name, found in metrics.items()
    }


def metrics_of(shape):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        model = ModelConfig(model=folder, skip_tokenizer_init=True, dtype=shape["dtype"])
        config = VllmConfig(
            model_config=model, cache_config=CacheConfig(), device_config=DeviceConfig("cpu")
        )
    return ModelMetrics(config)


def costs(metrics, prefills=(), decodes=()):
    context = ExecutionContext()
    for num_tokens, length in prefills:
        context.add(num_tokens, length, is_prefill=True)
    for num_tokens, length in decodes:
        context.add(num_tokens, length, is_prefill=False)
    return {
        "flops": metrics.get_num_flops_breakdown(context),
        "read_bytes": metrics.get_read_bytes_breakdown(context),
        "write_bytes": metrics.get_write_bytes_breakdown(context),
    }

"""Models to simulate, by name."""

from inferlab.analysis.model_shape import ModelShape

# From the checkpoints' config.json.
SHAPES = {
    "Llama-3.1-8B": ModelShape(32, 4096, 32, 8, 128, 14336, 128256),
    "Llama-3.1-70B": ModelShape(80, 8192, 64, 8, 128, 28672, 128256),
    "Llama-3.2-1B": ModelShape(16, 2048, 32, 8, 64, 8192, 128256, has_tied_embedding=True),
    "Qwen2.5-0.5B": ModelShape(24, 896, 14, 2, 64, 4864, 151936, has_tied_embedding=True),
    "Mixtral-8x7B": ModelShape(
        32, 4096, 32, 8, 128, 14336, 32000, num_experts=8, experts_per_token=2
    ),
}

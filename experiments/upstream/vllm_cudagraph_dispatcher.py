"""The sizes that vLLM captures, and what its dispatcher answers: runs in the engines' interpreter.

On a CPU vLLM turns graphs off before it looks at the sizes, so the method that computes them is
called on a stand-in for the configuration; the dispatcher is the real class.
"""

from types import SimpleNamespace

from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode, VllmConfig
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher


def main(data):
    return {
        "sizes": [capture_sizes(*limits) for limits in data["limits"]],
        "dispatch": [dispatch(**case) for case in data["cases"]],
    }


def capture_sizes(max_num_seqs, max_num_batched_tokens):
    compilation = SimpleNamespace(
        cudagraph_mode=CUDAGraphMode.FULL,
        max_cudagraph_capture_size=None,
        cudagraph_capture_sizes=None,
        post_init_cudagraph_sizes=lambda: None,
    )
    config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False),
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
        ),
        uniform_decode_query_len=1,
        speculative_config=None,
        performance_mode="balanced",
    )
    VllmConfig._set_cudagraph_sizes(config)
    return compilation.cudagraph_capture_sizes


def dispatch(mode, sizes, max_num_seqs, steps):
    """Mode and padded number of tokens of each step, a number of tokens and whether all decode."""
    compilation = CompilationConfig(
        mode=CompilationMode.VLLM_COMPILE,
        cudagraph_mode=CUDAGraphMode[mode],
        cudagraph_capture_sizes=sizes,
        max_cudagraph_capture_size=sizes[-1],
        splitting_ops=list(CompilationConfig._attention_ops),
    )
    config = SimpleNamespace(
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(max_num_seqs=max_num_seqs),
        num_speculative_tokens=0,
        lora_config=None,
    )
    dispatcher = CudagraphDispatcher(config)
    dispatcher.initialize_cudagraph_keys(CUDAGraphMode[mode], uniform_decode_query_len=1)
    answers = (dispatcher.dispatch(tokens, uniform_decode=uniform) for tokens, uniform in steps)
    return [[runtime.name, descriptor.num_tokens] for runtime, descriptor in answers]

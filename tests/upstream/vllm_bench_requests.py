"""The requests that vLLM's two benchmarks make of the same flags, online and offline."""

from vllm.benchmarks import serve, throughput
from vllm.benchmarks.datasets import get_samples
from vllm.tokenizers import get_tokenizer
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main(data):
    arguments = ["--model", data["model"], *data["flags"]]
    online, offline = FlexibleArgumentParser(), FlexibleArgumentParser()
    serve.add_cli_args(online)
    throughput.add_cli_args(offline)
    tokenizer = get_tokenizer(data["model"])
    return [
        [[request.prompt, request.expected_output_len] for request in requests]
        for requests in (
            get_samples(online.parse_args(arguments), tokenizer),
            throughput.get_requests(offline.parse_args(arguments), tokenizer),
        )
    ]

"""`vllm bench serve`, kept in one process: its imports take as long as the measurements.

Each line of stdin is a list of the arguments that follow `vllm bench serve`; each line of stdout
is `{"result": …}`, what vLLM writes with `--save-result --save-detailed`, or `{"error": …}`.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from vllm.benchmarks.serve import add_cli_args, main  # type: ignore[import-not-found]  # noqa: E402
from vllm.utils.argparse_utils import (  # type: ignore[import-not-found]  # noqa: E402
    FlexibleArgumentParser,
)


def bench(arguments: list[str]) -> dict[str, object]:
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    with tempfile.TemporaryDirectory() as folder:
        saved = ["--save-result", "--save-detailed"]
        saved += ["--result-dir", folder, "--result-filename", "result.json"]
        main(parser.parse_args([*arguments, *saved]))
        contents: dict[str, object] = json.loads((Path(folder) / "result.json").read_text())
    return contents


for line in sys.stdin:
    try:
        answer: dict[str, object] = {"result": bench(json.loads(line))}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)

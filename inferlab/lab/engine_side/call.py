"""Runs scripts of the course against the engines' own classes, one after another in one process.

Each line of stdin is `{"script": source, "data": …}`. The script defines `main(data)`; its return
value is written as one line of stdout, `{"result": …}`, or its failure as `{"error": …}`.
"""

import json
import os
import sys
import traceback

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

if __name__ == "__main__":
    # All of stdin first: an engine may start processes, which would inherit what is left of it.
    for task in [json.loads(line) for line in sys.stdin]:
        names: dict[str, object] = {"__name__": "upstream_script"}
        try:
            exec(compile(task["script"], "<upstream script>", "exec"), names)
            answer: dict[str, object] = {"result": names["main"](task["data"])}  # type: ignore[operator]
            text = json.dumps(answer, allow_nan=False)
        except BaseException as error:
            traceback.print_exc()
            text = json.dumps({"error": f"{type(error).__name__}: {error}"})
        print(text, file=answers, flush=True)

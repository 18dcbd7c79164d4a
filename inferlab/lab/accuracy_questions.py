"""The questions that an engine's answers are judged by, and the file that holds them.

The file is a list of conversations as ShareGPT's, because SGLang's offline benchmark reads no other
format; lm_eval, which scores the answers, reads it too. To renew it:
`python -m inferlab.lab.accuracy_questions`.
"""

import json

from inferlab.lab.paths import EXPERIMENTS
from inferlab.models import corpus

FILE = EXPERIMENTS / "accuracy" / "questions.json"
# Of 600 answers with 83 % right, the 95 % interval is 3 points to either side.
PER_TASK = 120
COUNT = PER_TASK * len(corpus.CHECKED_TASKS)


def contents() -> str:
    """The file, one question a line; the tasks take turns, so that any beginning has all of them.

    Each task's questions are the first that the checkpoints' own accuracy is measured on.
    """
    by_task = [corpus.held_out_examples(task, PER_TASK) for task in corpus.CHECKED_TASKS]
    lines = [
        json.dumps({"task": task, "conversations": [{"value": prompt}, {"value": answer}]})
        for turn in zip(*by_task)
        for task, prompt, answer in turn
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    FILE.write_text(contents(), encoding="utf-8")

"""Where vLLM cuts a text that grows piece by piece, for each case of pieces and stop strings."""

from typing import Any

from vllm.v1.engine.detokenizer import check_stop_strings  # type: ignore[import-not-found]


def main(data: Any) -> Any:
    return [cut(case["pieces"], case["stop"]) for case in data]


def cut(pieces: list[str], stop: list[str]) -> str:
    text = ""
    for piece in pieces:
        text += piece
        found = check_stop_strings(text, len(piece), stop, include_in_output=False)
        if found is not None:
            return text[: found[1]]
    return text

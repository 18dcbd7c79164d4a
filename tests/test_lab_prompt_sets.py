"""Prompts written for the load generator: their lengths, what they share, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from inferlab.lab import prompt_sets
from inferlab.lab.prompt_text import FEWEST_WORDS, WORDS
from inferlab.lab.yaml_file import SpecificationError
from inferlab.models import corpus, path

BLOCK = 16
TINY = path("tiny-chat")
SMALL: dict[str, dict[str, Any]] = {
    "agent-loop": {
        "conversations": 3,
        "turns": 4,
        "first_tokens": 40,
        "added_tokens": 25,
        "output_tokens": 8,
    },
    "mixed-lengths": {
        "num_requests": 10,
        "long_every": 4,
        "short_input_tokens": 20,
        "short_output_tokens": 12,
        "long_input_tokens": 300,
        "long_output_tokens": 5,
    },
    "repetitive-text": {"num_requests": 6, "output_tokens": 8},
    "free-text": {"num_requests": 6, "output_tokens": 8},
    "tasks": {"num_requests": 40},
}
SMALL["separate-turns"] = SMALL["agent-loop"]
OF_EXACT_LENGTH = ["agent-loop", "separate-turns", "mixed-lengths"]


def with_a_beginning() -> Tokenizer:
    """Puts a special token before every prompt, as Llama 3's does."""
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 1)]
    )
    return tokenizer


def with_spaces_as_letters() -> Tokenizer:
    """Writes a space as part of the word and before the first one too, as Mixtral's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    stories = [text for e, _ in zip(corpus.examples(7), range(2000)) for text in e[1:]]
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    tokenizer.train_from_iterator(stories, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with tokenizers that differ in what they put before words and prompts."""
    folders = [TINY]
    for make in (with_a_beginning, with_spaces_as_letters):
        folders.append(tmp_path_factory.mktemp(make.__name__))
        make().save(str(folders[-1] / "tokenizer.json"))
    return folders


class Written:
    """What one call wrote, read and tokenised again."""

    def __init__(self, folder: Path, checkpoint: Path, prompts: dict[str, Any], seed: int) -> None:
        file = folder / "prompts.jsonl"
        prompt_sets.write(prompts, str(checkpoint), seed, file)
        self.bytes = file.read_bytes()
        lines = [json.loads(line) for line in self.bytes.decode().splitlines()]
        self.prompts = [line["prompt"] for line in lines]
        self.output_tokens = [line["output_tokens"] for line in lines]
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.token_ids = [tokenizer.encode(prompt).ids for prompt in self.prompts]
        self.lengths = [len(ids) for ids in self.token_ids]

    def blocks(self) -> list[tuple[int, ...]]:
        """Every block of 16 tokens of every prompt, as a prefix cache cuts them."""
        return [
            tuple(ids[start : start + BLOCK])
            for ids in self.token_ids
            for start in range(0, len(ids) - BLOCK + 1, BLOCK)
        ]


Write = Callable[..., Written]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    folder = tmp_path_factory.mktemp("written")

    def write(kind: str, seed: int = 0, checkpoint: Path = TINY, **changed: Any) -> Written:
        return Written(folder, checkpoint, {"kind": kind, **SMALL[kind], **changed}, seed)

    return write


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, int]:
    output = draw(st.integers(1, 30))
    return {
        "conversations": draw(st.integers(1, 4)),
        "turns": draw(st.integers(1, 5)),
        "first_tokens": draw(st.integers(16, 80)),
        "added_tokens": output + draw(st.integers(1, 30)),
        "output_tokens": output,
    }


@given(shape=conversations(), seed=st.integers(0, 10_000), number=st.integers(0, 2))
def test_turns_grow_from_the_former_ones_and_separate_turns_do_not(
    write: Write, checkpoints: list[Path], shape: dict[str, int], seed: int, number: int
) -> None:
    loop = write("agent-loop", seed, checkpoints[number], **shape)
    separate = write("separate-turns", seed, checkpoints[number], **shape)
    step, turns = shape["conversations"], range(shape["turns"])
    lengths = [shape["first_tokens"] + turn * shape["added_tokens"] for turn in turns]
    for written in (loop, separate):
        assert written.lengths == [length for length in lengths for _ in range(step)]
        assert written.output_tokens == [shape["output_tokens"]] * len(lengths) * step
    for former, ids in zip(loop.token_ids, loop.token_ids[step:]):
        assert ids[: len(former)] == former
    # Nothing else is shared: not by two conversations, and by separate turns nothing at all.
    for alone in (loop.blocks()[: step * (lengths[0] // BLOCK)], separate.blocks()):
        assert len(set(alone)) == len(alone)
    if len(turns) > 1:
        assert len(set(loop.blocks())) < len(loop.blocks())


@given(every=st.integers(0, 6), count=st.integers(1, 20), number=st.integers(0, 2))
def test_every_nth_request_is_long(
    write: Write, checkpoints: list[Path], every: int, count: int, number: int
) -> None:
    written = write(
        "mixed-lengths", checkpoint=checkpoints[number], long_every=every, num_requests=count
    )
    expected = [(20, 12)] * count
    if every:
        expected[every - 1 :: every] = [(300, 5)] * (count // every)
    assert list(zip(written.lengths, written.output_tokens)) == expected
    assert len(set(written.blocks())) == len(written.blocks())


@pytest.mark.parametrize("kind", SMALL)
def test_the_seed_decides_every_byte(write: Write, kind: str) -> None:
    seeds = [write(kind, seed) for seed in range(4)]
    assert [write(kind, seed).bytes for seed in range(4)] == [written.bytes for written in seeds]
    assert len({written.bytes for written in seeds}) == 4
    # A story has one of 240 prompts, and an addition one of some thousands.
    if kind not in ("free-text", "tasks"):
        prompts = [prompt for written in seeds for prompt in written.prompts]
        assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("words", [8, 50, 120])
def test_a_list_to_copy_is_as_long_as_its_answer(
    write: Write, checkpoints: list[Path], words: int
) -> None:
    for checkpoint in checkpoints:
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        written = write("repetitive-text", checkpoint=checkpoint, output_tokens=words)
        for prompt, output_tokens in zip(written.prompts, written.output_tokens):
            answer = prompt.removeprefix("Copy: ")
            assert len(tokenizer.encode(answer, add_special_tokens=False).ids) == words
            assert output_tokens == words
            times = [answer.split().count(word) for word in set(answer.split())]
            assert max(times) == -(-words // len(WORDS))


def test_free_text_asks_for_stories(write: Write) -> None:
    written = write("free-text")
    for prompt in written.prompts:
        assert re.fullmatch(r"Tell a story about a (\w+) and a (?!\1)\w+\.", prompt)
    assert written.output_tokens == [8] * 6


def test_tasks_ask_for_as_much_as_the_right_answer_has(write: Write) -> None:
    written = write("tasks", num_requests=300)
    found = dict(zip(written.prompts, written.output_tokens))
    sums = {prompt: re.fullmatch(r"What is (\d+) \+ (\d+)\?", prompt) for prompt in found}
    sums = {prompt: match for prompt, match in sums.items() if match}
    # A third of the examples: with 300 of them, a quarter is three deviations below.
    assert len(sums) > 300 / 4
    for prompt, match in sums.items():
        assert match is not None
        # A digit is a token.
        assert found[prompt] == len(str(int(match[1]) + int(match[2])))
    words = {prompt.split()[0] for prompt in found}
    assert {"What", "Write", "f", "Copy:", "Reverse:", "Tell"} <= words
    assert any("What colour is" in prompt for prompt in found)


@pytest.mark.parametrize("kind", SMALL)
def test_the_load_generator_is_told_to_send_the_file_as_it_is(write: Write, kind: str) -> None:
    flags = prompt_sets.bench_flags({"kind": kind, **SMALL[kind]})
    assert flags["num-prompts"] == len(write(kind).prompts)
    # With a template round it, a prompt would no longer have the length it was written with.
    assert flags.get("skip-chat-template", False) is (kind in OF_EXACT_LENGTH)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({}, "There is no kind of prompts None; there are agent-loop, separate-turns, "),
        ({"kind": "sonnets", "num_requests": 3}, "There is no kind of prompts 'sonnets'; "),
        ({"kind": "tasks"}, "Prompts of the kind 'tasks' cannot be made: num_requests: Field req"),
        ({"kind": "tasks", "num_requests": 0}, "num_requests: Input should be greater than"),
        ({"kind": "tasks", "num_requests": "3"}, "num_requests: Input should be a valid integer"),
        ({"kind": "tasks", "num_requests": 3, "turns": 1}, "unknown key 'turns'; known keys: kind"),
        (
            {"kind": "agent-loop", **SMALL["agent-loop"], "output_tokens": 25},
            "added_tokens (25) hold an answer of output_tokens (25) and a question, so they must",
        ),
        (
            {"kind": "mixed-lengths", **SMALL["mixed-lengths"], "short_input_tokens": 15},
            "short_input_tokens: Input should be greater than or equal to 16",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_sentence(prompts: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecificationError, match=re.escape(said)):
        prompt_sets.read(prompts)


@pytest.mark.parametrize(
    ("takes_the_space_before", "kind", "said"),
    [
        # Fewer tokens than words.
        (True, "mixed-lengths", r"of 0 tokens and 300 words it makes 2\d\d tokens"),
        # As many, but what is put behind a prompt changes its last token.
        (False, "agent-loop", r"of 140 tokens and 25 words it makes 165 tokens, or"),
    ],
)
def test_a_tokenizer_that_joins_words_is_refused(
    write: Write, tmp_path: Path, takes_the_space_before: bool, kind: str, said: str
) -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    pairs = [f"{word} fox" for word in WORDS if word != "fox"]
    tokenizer.add_tokens([AddedToken(pair, lstrip=takes_the_space_before) for pair in pairs])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    many = {"long_every": 1} if kind == "mixed-lengths" else {"conversations": 12, "turns": 9}
    with pytest.raises(SpecificationError, match=said):
        write(kind, seed=3, checkpoint=tmp_path, **many)


def test_a_tokenizer_without_the_words_is_refused(write: Write, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=40, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    said = rf"Of {len(WORDS)} words only \d+ are one token .* need {FEWEST_WORDS}\."
    with pytest.raises(SpecificationError, match=said):
        write("mixed-lengths", checkpoint=tmp_path)


def test_the_tokenizer_of_a_hugging_face_name_is_the_downloaded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    prompts = {"kind": "mixed-lengths", **SMALL["mixed-lengths"]}
    file = tmp_path / "prompts.jsonl"
    with pytest.raises(SpecificationError, match="run `hf download acme/llama` first"):
        prompt_sets.write(prompts, "acme/llama", 0, file)
    assert not file.exists()
    downloaded = tmp_path / "models--acme--llama"
    (downloaded / "refs").mkdir(parents=True)
    (downloaded / "refs" / "main").write_text("0" * 40)
    snapshot = downloaded / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    with_a_beginning().save(str(snapshot / "tokenizer.json"))
    prompt_sets.write(prompts, "acme/llama", 0, file)
    lengths = [len(json.loads(line)["prompt"].split()) for line in file.read_text().splitlines()]
    # One token less for words: the special one counts.
    assert lengths == [19, 19, 19, 299, 19, 19, 19, 299, 19, 19]


def test_a_full_disk_leaves_the_former_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, prompts = tmp_path / "prompts.jsonl", {"kind": "tasks", "num_requests": 3}
    prompt_sets.write(prompts, str(TINY), 0, file)
    former = file.read_text()

    def fail(path: Path, text: str) -> None:
        path.write_bytes(text[: len(text) // 2].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        prompt_sets.write(prompts, str(TINY), 1, file)
    assert file.read_text() == former

"""Commands on pages and of specifications: found, read, and held against what programs know."""

import json

import pytest

from inferlab.lab import specification
from inferlab.publish import commands
from inferlab.publish.commands import addressed, command_problems, mistakes
from inferlab.publish.page import read_page
from inferlab.publish.problems import PublishError
from inferlab.publish.programs import INDEX, PROGRAMS, Program, load_programs, write_index
from inferlab.publish.shell import commands_in_markdown, commands_in_shell
from inferlab.publish.site import build_site
from tests.site_fixture import CHAPTER, REPOSITORY, make_repository

KNOWN = load_programs(REPOSITORY)
PAGE = """\
---
title: --not-a-flag
---

# A page

Prose that says vllm serve MODEL --in-prose is not a command, `vllm serve
--in-a-span` is, and on the next line
`!sglang serve --in-a-second-span` too, but {src}`vllm serve --in-a-role` is not.

| in | a table |
|---|---|
| `lmcache server --in-a-table` | |

```bash
# Don't start: vllm serve MODEL --in-a-comment
VLLM_CPU_OMP_THREADS_BIND='0|1' nohup .venv-engines/bin/vllm serve <a model> --port $PORT \\
    --continued '{"a": "b",
                  "c": 1}' > server.log 2>&1 &   # don't --comment-behind
curl -s localhost:8000/health && vllm bench serve --model $(cat model.txt) ... | tee "a;b"
```

- A list.

  ```console
  $ python3 -m sglang.benchmark.serving --in-a-list
  the program didn't say vllm, and printed "
  ```

```python
"vllm serve --in-python"
```

:::{admonition} Note
```{code-block} bash
sglang-router launch --in-an-admonition
```
:::
"""


def test_commands_are_found_where_they_stand_with_their_words():
    found = [
        (command.line, *addressed(command.words, KNOWN)) for command in commands_in_markdown(PAGE)
    ]
    serve = ["PLACEHOLDER", "--port", "PLACEHOLDER", "--continued"]
    assert [entry for entry in found if entry[1]] == [
        (7, "vllm serve", ["--in-a-span"]),
        (9, "sglang serve", ["--in-a-second-span"]),
        (13, "lmcache server", ["--in-a-table"]),
        (17, "vllm serve", [*serve, '{"a": "b",\n                  "c": 1}']),
        (20, "vllm bench serve", ["--model", "PLACEHOLDER"]),
        (26, "python -m sglang.benchmark.serving", ["--in-a-list"]),
        (36, "sglang-router launch", ["--in-an-admonition"]),
    ]


def test_a_flag_is_found_on_its_own_line_of_a_long_command():
    (command,) = [c for c in commands_in_markdown(PAGE) if "--continued" in c.words]
    assert command.line == 17
    assert command.line_of("--continued") == 18


def wrong(text: str) -> list[tuple[str, str]]:
    return [found for command in commands_in_shell(text) for found in mistakes(command, KNOWN)]


@pytest.mark.parametrize(
    "text",
    [
        "vllm serve MODEL --max_model_len=1024 --no-enable-prefix-caching -tp 2 -O3",
        "vllm serve MODEL -cc.mode=none --compilation-config.cudagraph_mode NONE",
        """vllm serve MODEL --speculative-config '{"method": "ngram", "model": "a b"}'""",
        "vllm serve MODEL --dtype <one of them> --served-model-name one two --seed -1",
        "sglang serve MODEL --sleep-on-idle --port 30000",
        "sglang-router launch --worker-urls http://a:1 http://b:2 --policy cache_aware",
        "lmcache server --l1-size-gb 5",
        "python -m inferlab.engine.server --model MODEL --block-size 16 --no-enable-prefix-caching",
        "python -m inferlab.lab run week04/block-size --profile a100",
        "python -m inferlab.handin notebook.ipynb --save repaired.ipynb",
        "vllm serve --help=all",
        "vllm --version",
        "vllm 0.32.0",
        "python -m http.server --no-such-flag",
        "pip install vllm sglang --no-deps",
    ],
)
def test_what_a_program_understands_is_no_mistake(text):
    assert wrong(text) == []


@pytest.mark.parametrize(
    ("text", "word", "said"),
    [
        ("vllm serve M --max-model-length 8", "--max-model-length", "knows: --max-model-len,"),
        ("vllm serve M --max-model 8", "--max-model", "has no flag"),
        ("vllm serve M --qqqq=1", "--qqqq", "book/commands.json lists its flags"),
        ("vllm serve M --dtype flot", "--dtype", "invalid choice: 'flot'"),
        ("vllm serve M --port", "--port", "expected one argument"),
        ("vllm serve M --enforce-eager true", "true", "takes no 'true' there"),
        ("vllm serve M --enforce-eager=true", "--enforce-eager", "ignored explicit argument"),
        ("vllm bench serve --disable-tqmd", "--disable-tqmd", "--disable-tqdm"),
        ("vllm bench sonnet --model M", "sonnet", "`vllm bench sonnet` is none of the programs"),
        ("nohup sglang serve M --sleep-on-idel", "--sleep-on-idel", "--sleep-on-idle"),
        ("sglang serve M --sleep_on_idle", "--sleep_on_idle", "--sleep-on-idle"),
        ("python -m sglang.launch_server --port 1", "sglang.launch_server", "is none of the"),
        ("sglang-router launch --policy best", "--policy", "invalid choice: 'best'"),
        ("lmcache server --l1-size 5", "--l1-size", "--l1-size-gb"),
        ("python -m inferlab.engine.server --block-sise 1", "--block-sise", "--block-size"),
        ("python -m inferlab.lab run week04 --profil cpu", "--profil", "--profile"),
        ("python -m inferlab.lab rnu week04", "rnu", "`python -m inferlab.lab rnu` is none of"),
    ],
)
def test_a_mistake_names_the_word_and_what_to_write(text, word, said):
    ((found, sentence),) = wrong(text)
    assert found == word
    assert said in sentence


def test_every_mistake_of_a_command_is_named():
    assert [word for word, _ in wrong("vllm serve M --aaaa 1 --port 8000 --bbbb")] == [
        "--aaaa",
        "--bbbb",
    ]


def test_a_flag_that_the_engine_renamed_stops_the_build_with_file_line_and_both_names(tmp_path):
    repository = make_repository(tmp_path / "repository")
    index = json.loads((REPOSITORY / INDEX).read_text())
    serve = index["programs"]["vllm serve"]
    serve["--max-model-tokens"] = serve.pop("--max-model-len")
    write_index(repository, index)
    path = repository / CHAPTER
    lines = path.read_text().splitlines()
    line = next(n for n, text in enumerate(lines) if text.startswith("Write one paragraph."))
    lines[line:line] = ["```bash", "vllm serve MODEL \\", "  --max-model-len 1024", "```", ""]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(PublishError) as failure:
        build_site(repository, repository / "build", lambda step: None)
    (problem,) = failure.value.problems
    assert (problem.path, problem.line) == (CHAPTER, line + 3)
    assert "no flag --max-model-len; the nearest it knows: --max-model-tokens" in problem.message
    # The control: with the index of the pinned engines the same chapter has no problem.
    write_index(repository, json.loads((REPOSITORY / INDEX).read_text()))
    assert command_problems(repository, [read_page(repository, CHAPTER)]) == []


def test_the_text_beside_the_book_is_checked_too(tmp_path):
    (tmp_path / "README.md").write_text("# Here\n\nRun `python -m inferlab.lab run x --nothing`.\n")
    (problem,) = command_problems(tmp_path, [])
    assert str(problem).startswith(
        "README.md:3: `python -m inferlab.lab run` has no flag --nothing"
    )


PROFILES = """\
here:
  hardware: {name: this machine, bandwidth_gb_per_s: 1}
  model: m
  dtype: float32
  servers:
    sglang:
      dtype: float32
    vllm:
      dtype: float32
"""
MODELS = "m: {decode_weight_bytes: 1, kv_bytes_per_token: 1}\n"
WORKLOADS = """\
one:
  description: one request
  flags:
    num-prompts: 1
"""
WEEK = """\
week: 99
experiments:
  other:
    question: Does dtype stand here?
    prediction: No.
    metrics: [duration_s]
    repeats: 1
    profiles: [here]
    arms: [{engine: vllm, workload: one, server: {max-num-seqs: 2}}]
  tiny:
    question: Does it parse?
    prediction: Yes.
    metrics: [duration_s]
    repeats: 1
    profiles: [here]
    arms:
      - engine: vllm
        workload: one
        server:
          block-size: [16, 32]
          enable-prefix-caching: false
"""


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    """A folder of small specifications, to be broken."""
    texts = {"profiles": PROFILES, "models": MODELS, "workloads": WORKLOADS, "week99": WEEK}
    for name, text in texts.items():
        (tmp_path / f"{name}.yml").write_text(text)
    monkeypatch.setattr(specification, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(commands, "EXPERIMENTS", tmp_path)
    return tmp_path


def test_small_specifications_have_no_problem(experiments):
    assert commands.specification_problems(KNOWN) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "said"),
    [
        (
            "week99.yml",
            "block-size",
            "blck-size",
            20,
            "no flag --blck-size; the nearest it knows: --block-size",
        ),
        ("week99.yml", "enable-prefix", "enable-prefx", 21, "no flag --no-enable-prefx-caching"),
        ("week99.yml", "[16, 32]", "true", 20, "refuses --block-size: expected one argument"),
        ("profiles.yml", "    vllm:\n      dtype", "    vllm:\n      dtpye", 9, "no flag --dtpye"),
        (
            "profiles.yml",
            "    vllm:\n      dtype: float32",
            "    vllm:\n      dtype: flot",
            9,
            "invalid choice: 'flot'",
        ),
        ("workloads.yml", "num-prompts", "num-prmpts", 4, "no flag --num-prmpts"),
    ],
)
def test_a_mistake_in_a_specification_is_named_once_at_its_line(
    experiments, file, old, new, line, said
):
    text = (experiments / file).read_text()
    assert text.count(old) == 1
    (experiments / file).write_text(text.replace(old, new))
    problems = commands.specification_problems(KNOWN)
    assert {(problem.path.name, problem.line) for problem in problems} == {(file, line)}
    assert all(said in problem.message for problem in problems)
    # Named once for each experiment that uses it, not for each of its points.
    assert len(problems) == (1 if file == "week99.yml" else 2)


def test_a_malformed_specification_is_a_problem(experiments):
    (experiments / "week99.yml").write_text("week: four\n")
    (problem,) = commands.specification_problems(KNOWN)
    assert "week99.yml, line 1" in problem.message


def test_the_committed_specifications_pass_and_start_known_programs():
    printed = [command for _, _, command in commands.specification_commands()]
    # Before a program that writes into a folder.
    printed = [command for command in printed if command.words[0] != "mkdir"]
    started = {addressed(command.words, KNOWN)[0] for command in printed}
    assert {"vllm serve", "vllm bench serve"} <= started <= set(KNOWN)
    assert [found for command in printed for found in mistakes(command, KNOWN)] == []


def test_the_index_is_that_of_the_pinned_engines_and_holds_every_program():
    index = json.loads((REPOSITORY / INDEX).read_text())
    assert list(index["programs"]) == list(PROGRAMS)
    lock = (REPOSITORY / "requirements" / "engines-cpu.txt").read_text().splitlines()
    assert index["versions"]
    assert {f"{name}=={version}" for name, version in index["versions"].items()} <= set(lock)


def test_writing_the_index_again_changes_nothing(tmp_path):
    (tmp_path / "book").mkdir()
    write_index(tmp_path, json.loads((REPOSITORY / INDEX).read_text()))
    assert (tmp_path / INDEX).read_text() == (REPOSITORY / INDEX).read_text()


def test_an_open_place_is_filled_with_something_the_flag_takes():
    program = Program("p", {"--dtype": {"choices": ["half", "float"]}, "--port": {}})
    open_places = ["--dtype", "PLACEHOLDER", "--port", "PLACEHOLDER"]
    assert program.filled(open_places) == ["--dtype", "half", "--port", "1"]

"""Specifications: what is accepted, and that a mistake is named with its file, line and key."""

import json
from math import prod
from pathlib import Path

import pytest
import yaml

from inferlab import models
from inferlab.lab import specification
from inferlab.lab.plan import plan_experiment
from inferlab.lab.specification import Experiment, Week
from inferlab.lab.yaml_file import SpecificationError, read_model
from inferlab.models import quantized
from tests.scratch_experiments import scratch_experiments

GOOD = """\
week: 4
experiments:
  small:
    question: Why?
    prediction: How much?
    metrics: [output_tokens_per_s]
    repeats: 2
    profiles: [cpu]
    arms:
      - engine: vllm
        workload: varied-lengths
        server: {max-num-seqs: [1, 4], block-size: 32, enable-prefix-caching: false}
"""


def read(folder: Path, text: str) -> Week:
    (folder / "week04.yml").write_text(text)
    return read_model(folder / "week04.yml", Week)


def line_number(text: str, part: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if part in line)


def test_good_specification_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD).experiments["small"].arms[0].server["block-size"] == 32


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("repeats: 2", "repeat: 2", ["unknown key 'repeat'", "repeats", "question"]),
        (
            "        server:",
            "        sever:",
            ["unknown key 'sever'", "known keys: engine, label"],
        ),
        ("repeats: 2", "repeats: two", ["experiments → small → repeats", "'two'"]),
        ("repeats: 2", "repeats: 0", ["repeats", "greater than or equal to 1"]),
        ("engine: vllm", "engine: vlm", ["engine", "'vlm'", "transformers"]),
        ("metrics: [output_tokens_per_s]", "metrics: []", ["metrics", "at least 1 item"]),
        ("block-size: 32", "block-size: {a: 1}", ["block-size"]),
        ("    question: Why?", "    question: Why?\n    question: What?", ["given twice"]),
    ],
)
def test_mistake_names_file_line_and_key(
    tmp_path: Path, right: str, wrong: str, named: list[str]
) -> None:
    text = GOOD.replace(right, wrong)
    with pytest.raises(SpecificationError) as caught:
        read(tmp_path, text)
    line = line_number(text, wrong.splitlines()[-1].strip())
    assert f"week04.yml, line {line}:" in str(caught.value)
    for part in named:
        assert part in str(caught.value)


def test_missing_key_names_the_section_that_lacks_it(tmp_path: Path) -> None:
    text = GOOD.replace("    question: Why?\n", "")
    with pytest.raises(SpecificationError) as caught:
        read(tmp_path, text)
    assert f"line {line_number(text, 'small:')}: experiments → small → question" in str(
        caught.value
    )


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match=r"week04.yml, line \d+: not valid YAML"):
        read(tmp_path, GOOD.replace("profiles: [cpu]", "profiles: [cpu"))


def test_unknown_names_list_what_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scratch_experiments(tmp_path, monkeypatch)
    read(tmp_path, GOOD.replace("workload: varied", "workload: unvaried"))
    monkeypatch.setattr(specification, "EXPERIMENTS", tmp_path)
    with pytest.raises(SpecificationError, match=r"no workload 'unvaried-lengths'.*varied-lengths"):
        plan_experiment("week04/small", "cpu")
    with pytest.raises(SpecificationError, match=r"no experiment 'big'.*small"):
        plan_experiment("week04/big", "cpu")
    with pytest.raises(SpecificationError, match=r"no profile 'b100'.*cpu"):
        plan_experiment("week04/small", "b100")
    with pytest.raises(SpecificationError, match="does not run on the profile 'a100'"):
        plan_experiment("week04/small", "a100")
    with pytest.raises(SpecificationError, match=r"no file .*week05.yml"):
        plan_experiment("week05/small", "cpu")


def test_grid_makes_every_combination(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scratch_experiments(tmp_path, monkeypatch)
    read(
        tmp_path,
        GOOD.replace("varied-lengths", "[varied-lengths, four-at-a-time]").replace(
            "block-size: 32", "block-size: [32, 64]"
        ),
    )
    monkeypatch.setattr(specification, "EXPERIMENTS", tmp_path)
    points = plan_experiment("week04/small", "cpu").points
    assert [tuple(p.parameters.values())[1:] for p in points] == [
        (seqs, block, workload)
        for seqs in (1, 4)
        for block in (32, 64)
        for workload in ("varied-lengths", "four-at-a-time")
    ]
    context = {"models": {"tiny-chat": {"weights_sha256": "a"}}, "versions": {"vllm": "0"}}
    assert len({p.key(context) for p in points}) == len(points)
    for change in (
        {"versions": {"vllm": "1"}},
        {"models": {"tiny-chat": {"weights_sha256": "b"}}},
    ):
        assert points[0].key(context) != points[0].key(context | change)
    other_model = {"models": {**context["models"], "tiny-moe": {}}}
    assert points[0].key(context) == points[0].key(context | other_model)


def committed() -> list[tuple[str, Experiment]]:
    files = sorted(specification.EXPERIMENTS.glob("week*.yml"))
    return [
        (f"{file.stem}/{name}", experiment)
        for file in files
        for name, experiment in read_model(file, Week).experiments.items()
    ]


def test_committed_experiments_plan_on_each_of_their_profiles() -> None:
    experiments = committed()
    assert experiments
    for identifier, experiment in experiments:
        for profile in experiment.profiles:
            points = plan_experiment(identifier, profile).points
            assert len(points) >= 2, f"{identifier} compares nothing on {profile}"


def test_models_yml_knows_what_a_step_reads_of_our_checkpoints() -> None:
    """The physics checks are worth what these two numbers are worth."""
    profile = specification.load_profile("cpu")
    # Stored in half precision or not, every engine computes in float32.
    assert profile.dtype == "float32"
    assert all(profile.servers[engine]["dtype"] == "float32" for engine in ("vllm", "sglang"))
    known = read_model(specification.EXPERIMENTS / "models.yml", specification.Models).root
    ours = [name for name in known if name in models.names()]
    assert profile.model in ours
    for name in ours:
        config = json.loads((models.path(name) / "config.json").read_text())
        with (models.path(name) / "model.safetensors").open("rb") as file:
            tensors = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        read = 0.0
        for tensor in tensors.keys() - {"__metadata__"}:
            share = 1.0
            if "embed_tokens" in tensor:
                # A gather, unless it is the head as well.
                share = float(config["tie_word_embeddings"])
            elif "experts" in tensor:
                share = config["num_experts_per_tok"] / config["num_local_experts"]
            read += share * 4 * prod(tensors[tensor]["shape"])
        assert known[name].decode_weight_bytes == read, name
        per_layer = 2 * config["num_key_value_heads"] * config["head_dim"] * 4
        assert known[name].kv_bytes_per_token == config["num_hidden_layers"] * per_layer
    made = [name for name in known if name in quantized.names()]
    assert made
    for name in made:
        read = quantized.decode_weight_bytes(quantized.path(name), "bfloat16")
        assert known[name].decode_weight_bytes == read, name
        assert known[name].kv_bytes_per_token == known[profile.model].kv_bytes_per_token / 2


def test_yaml_files_are_plain_yaml() -> None:
    for file in specification.EXPERIMENTS.glob("*.yml"):
        assert yaml.safe_load(file.read_text())

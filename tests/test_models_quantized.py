"""Quantised checkpoints: the bytes, the weights they stand for, and that only whole ones appear."""

import hashlib
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from inferlab import models
from inferlab.engine import LlamaModel
from inferlab.engine.checkpoint import EMBEDDING, ModelConfig, load_weights
from inferlab.engine.layers import GatedMLP, Linear
from inferlab.engine.quantization import (
    Int4Linear,
    Int8Linear,
    replace_projections,
    unpack_int4,
)
from inferlab.models import quantized

ROOT = Path(__file__).parents[1]
# SHA-256 of what VERSION 1 writes for tiny-chat, settings and weights. Other bytes under the same
# VERSION would leave a reader with yesterday's checkpoint: raise it, then replace these.
WRITTEN = {
    "int8": "4bf222fd7d441652058c4831d3a69aadd8131d9cc1c549a634c73b2a331c5279",
    "int4": "3d9bf90fd61b0231d68310920e3d1726bd294fcf98c2ae7035a93f25f9d4b3c1",
    "int4-awq": "15dac31d6716168b52625f2e46c3de19ce92824a41c3fb4dc842e8dfe2971977",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setattr(quantized, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


IN_ORDER = [0, 1, 2, 3, 4, 5, 6, 7]
# `_REVERSE_AWQ_PACK_ORDER` in `vllm/model_executor/layers/quantization/auto_awq.py`.
IN_AWQ = [0, 4, 1, 5, 2, 6, 3, 7]


def unpacked(words: np.ndarray, where: list[int]) -> np.ndarray:
    """The values -8 to 7 in rows of int32; of each eight, where they lie, in fours from the low."""
    found = np.stack([(words.astype(np.int64) >> 4 * place) & 15 for place in where], axis=-1)
    return found.reshape(len(words), -1) - 8


def stored_weight(tensors: dict[str, np.ndarray], stem: str, group_size: int) -> np.ndarray:
    """The weight `[input, output]` in float64 that the file stands for.

    By the definitions of the formats, not by the code that wrote them.
    """
    parts = {name.removeprefix(f"{stem}."): t for name, t in tensors.items() if stem in name}
    if "weight" in parts:
        assert parts["weight"].dtype == np.int8
        return (parts["weight"] * parts["weight_scale"].astype(float)).T
    if "weight_packed" in parts:
        values, scales = unpacked(parts["weight_packed"], IN_ORDER).T, parts["weight_scale"].T
        assert parts["weight_shape"].tolist() == [*values.T.shape]
    else:
        values, scales = unpacked(parts["qweight"], IN_AWQ), parts["scales"]
        values = values - np.repeat(unpacked(parts["qzeros"], IN_AWQ), group_size, axis=0)
    return values * np.repeat(scales, group_size, axis=0).astype(float)


def engine_weight(linear: Linear) -> np.ndarray:
    """The weight `[input, output]` in float64 that a layer of our engine multiplies by."""
    if isinstance(linear, Int8Linear):
        return linear.weight * linear.scales.astype(float)
    assert isinstance(linear, Int4Linear)
    values = unpack_int4(linear.packed)
    return values * np.repeat(linear.scales, len(values) // len(linear.scales), 0).astype(float)


@pytest.mark.parametrize("name", ["tiny-chat", "tiny-draft"])
@pytest.mark.parametrize(
    ("form", "group_size"),
    [("int8", 128), ("int4", 128), ("int4", 32), ("int4-awq", 128), ("int4-awq", 64)],
)
def test_the_file_holds_what_our_engine_multiplies_by(
    name: str, form: str, group_size: int, tmp_path: Path
) -> None:
    quantized.write(name, form, tmp_path / "made", group_size)
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    model = LlamaModel.from_pretrained(models.path(name))
    rounding = {
        "int8": Int8Linear.from_dense,
        "int4": partial(Int4Linear.from_dense, group_size=group_size),
    }
    replace_projections(model, rounding[form.removesuffix("-awq")])
    for number, layer in enumerate(model.layers):
        assert isinstance(layer.mlp, GatedMLP)
        for linear, stems in (
            (layer.qkv, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            (layer.output, ["self_attn.o_proj"]),
            (layer.mlp.gate_up, ["mlp.gate_proj", "mlp.up_proj"]),
            (layer.mlp.down, ["mlp.down_proj"]),
        ):
            parts = [
                stored_weight(tensors, f"model.layers.{number}.{s}", group_size) for s in stems
            ]
            assert np.array_equal(np.concatenate(parts, axis=1), engine_weight(linear))
    for stem, weight in load_weights(models.path(name)).items():
        if "_proj" not in stem:
            assert tensors[stem].dtype == np.float32
            assert np.array_equal(tensors[stem], weight), stem


@pytest.mark.parametrize("form", WRITTEN)
def test_the_bytes_are_the_same_in_every_process(form: str, tmp_path: Path) -> None:
    run_command("tiny-chat", form, str(tmp_path / "other process"))
    quantized.write("tiny-chat", form, tmp_path / "here")
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()}
        for folder in ("other process", "here")
    ]
    assert contents[0] == contents[1]
    decisive = contents[0]["config.json"] + contents[0]["model.safetensors"]
    found = quantized.VERSION, hashlib.sha256(decisive).hexdigest()
    assert found == (1, WRITTEN[form]), "See the comment at WRITTEN."
    kept = models.path("tiny-chat")
    assert contents[0]["tokenizer.json"] == (kept / "tokenizer.json").read_bytes()
    assert "card.json" not in contents[0], "the accuracies on the card are another model's"


def expected_bytes(form: str, floats: int) -> int:
    """What a step of tiny-chat reads, from the shapes; a floating point takes `floats` bytes."""
    config = ModelConfig.from_json(models.path("tiny-chat") / "config.json")
    shapes = config.tensor_shapes()
    projections = [shape for name, shape in shapes.items() if "_proj" in name]
    others = [s for name, s in shapes.items() if "_proj" not in name and name != EMBEDDING]
    num_weights = sum(outputs * inputs for outputs, inputs in projections)
    total = floats * sum(int(np.prod(shape)) for shape in others)
    if form == "int8":
        return total + num_weights + 4 * sum(outputs for outputs, _ in projections)
    total += num_weights // 2 + floats * num_weights // 128
    return total + (num_weights // 128 // 2 if form == "int4-awq" else 0)


@pytest.mark.parametrize(("dtype", "floats"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
@pytest.mark.parametrize("form", WRITTEN)
def test_a_step_reads_the_bytes_of_the_formula(form: str, dtype: str, floats: int) -> None:
    folder = quantized.path(f"tiny-chat-{form}")
    read = quantized.decode_weight_bytes(folder, dtype)
    assert read == expected_bytes(form, floats)
    if dtype == "float32":
        # Nothing is changed when it is loaded: the file holds what is read, the embedding, and the
        # shapes of the packed layers.
        tensors = load_file(folder / "model.safetensors")
        stored = sum(tensor.nbytes for tensor in tensors.values())
        shapes = 28 * 16 if form == "int4" else 0
        assert stored == read + tensors[EMBEDDING].nbytes + shapes


def test_of_a_checkpoint_that_is_not_quantised_a_step_reads_all_but_the_embedding() -> None:
    folder = models.path("tiny-chat")
    parameters = sum(weight.size for weight in load_weights(folder).values())
    read = parameters - load_weights(folder)[EMBEDDING].size
    assert quantized.decode_weight_bytes(folder, "float32") == 4 * read
    assert quantized.decode_weight_bytes(folder, "bfloat16") == 2 * read


def test_an_embedding_that_is_the_head_too_is_read(tmp_path: Path) -> None:
    quantized.write("tiny-chat", "int8", tmp_path / "made")
    before = quantized.decode_weight_bytes(tmp_path / "made", "float32")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (tmp_path / "made" / "config.json").write_text(json.dumps(config))
    after = quantized.decode_weight_bytes(tmp_path / "made", "float32")
    assert after - before == 4 * config["vocab_size"] * config["hidden_size"]


def test_what_a_step_reads_of_experts_is_not_told() -> None:
    with pytest.raises(ValueError, match="tiny-moe has experts, and which ones a step reads is up"):
        quantized.decode_weight_bytes(models.path("tiny-moe"), "float32")


@pytest.mark.parametrize(
    ("name", "form", "group_size", "sentence"),
    [
        ("tiny-cat", "int8", 128, "There is no checkpoint 'tiny-cat'; choose one of"),
        ("tiny-chat", "int3", 128, "There is no format 'int3'; choose one of int8, int4, int4-awq"),
        ("tiny-chat", "int4", 100, "inputs cannot be divided into groups of 100; choose an even"),
        ("tiny-chat", "int4-awq", 512, "inputs cannot be divided into groups of 512"),
        ("tiny-moe", "int8", 128, "tiny-moe has experts, which are not written; choose a dense"),
    ],
)
def test_impossible_requests_are_refused_and_leave_nothing(
    name: str, form: str, group_size: int, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        quantized.write(name, form, tmp_path / "made", group_size)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="exists already; name a new folder, or remove it"):
        quantized.write("tiny-chat", "int8", tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inferlab.models.quantized", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_says_in_a_sentence_what_is_wrong(tmp_path: Path) -> None:
    done = run_command("tiny-chat", "int4", str(tmp_path / "made"), "--group-size", "96")
    assert done.returncode == 1
    assert done.stderr.startswith("256 inputs cannot be divided into groups of 96; choose an even")
    assert len(done.stderr.splitlines()) == 1


def test_every_name_has_a_folder_that_is_made_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"tiny-chat-int8", "tiny-chat-int4", "tiny-draft-int4-awq"} <= {*quantized.names()}
    folders = [quantized.path(name) for name in quantized.names()]
    assert {*folders} == {*cache.iterdir()}
    assert len(folders) == len({*folders})
    for name, folder in zip(quantized.names(), folders):
        assert folder.name.startswith(f"{name}-")
        assert "quantization_config" in json.loads((folder / "config.json").read_text())

    def write(*_: object) -> None:
        raise AssertionError("it is there already")

    monkeypatch.setattr(quantized, "write", write)
    assert [quantized.path(name) for name in quantized.names()] == folders


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        ValueError, match="no checkpoint 'tiny-moe-int8'; choose one of tiny-chat-i"
    ):
        quantized.path("tiny-moe-int8")


def test_another_version_or_another_source_is_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantized.path("tiny-chat-int8")
    monkeypatch.setattr(quantized, "VERSION", quantized.VERSION + 1)
    second = quantized.path("tiny-chat-int8")
    monkeypatch.undo()
    monkeypatch.setattr(quantized, "CACHE", first.parent)
    copies = tmp_path / "checkpoints"
    for name in models.names():
        (copies / name).mkdir(parents=True)
        for file in models.path(name).iterdir():
            (copies / name / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(models, "CHECKPOINTS", copies)
    (copies / "tiny-chat" / "card.json").write_text("{}")
    assert quantized.path("tiny-chat-int8") == first, "neither the card nor the place matters"
    (copies / "tiny-chat" / "tokenizer_config.json").write_text("{}")
    third = quantized.path("tiny-chat-int8")
    assert len({first, second, third}) == 3
    assert (third / "tokenizer_config.json").read_text() == "{}"


def test_of_two_runners_the_slower_takes_what_the_faster_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, finished = Path.rename, []

    def rename_second(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        finished.append(quantized.path("tiny-chat-int8"))  # the other runner, from start to end
        assert finished[0].exists()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_second)
    assert [quantized.path("tiny-chat-int8")] == finished
    assert [*cache.iterdir()] == finished


def test_a_runner_that_was_killed_leaves_no_half_of_a_checkpoint(cache: Path) -> None:
    killed = (
        "import os, signal, sys; from pathlib import Path; from inferlab.models import quantized\n"
        "quantized.CACHE = Path(sys.argv[1])\n"
        "Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "quantized.path('tiny-chat-int8')"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(cache)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert (left / "checkpoint" / "model.safetensors").exists(), "it was killed after its work"
    folder = quantized.path("tiny-chat-int8")
    assert folder != left
    quantized.write("tiny-chat", "int8", cache / "whole")
    for file in (cache / "whole").iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_an_error_in_the_middle_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(quantized.shutil, "copyfile", fail)
    with pytest.raises(OSError, match="No space left"):
        quantized.path("tiny-chat-int8")
    assert not list(cache.iterdir())

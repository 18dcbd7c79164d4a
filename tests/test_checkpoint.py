"""A checkpoint is loaded whole or refused in one sentence, and what is loaded is all used."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from inferlab import models
from inferlab.engine.checkpoint import ModelConfig, load_weights
from inferlab.engine.model import LlamaModel

DRAFT = models.path("tiny-draft")
EMBEDDING = "model.embed_tokens.weight"
LAYER = "model.layers.0"
UP = f"{LAYER}.mlp.up_proj.weight"  # [256, 128]
Tensors = dict[str, np.ndarray]


def write(
    folder: Path, tensors: Tensors, settings: dict[str, Any] | None = None, source: Path = DRAFT
) -> Path:
    """A checkpoint with the configuration of `source`, except for `settings`."""
    config = json.loads((source / "config.json").read_text()) | (settings or {})
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def shard(folder: Path, shards: list[Tensors], listed: list[Tensors] | None = None) -> Path:
    """Replace the one file of a checkpoint by `shards`, and an index that names those `listed`."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, tensors in enumerate(listed or shards):
        weight_map |= dict.fromkeys(tensors, f"model-{i + 1:05}-of-{len(shards):05}.safetensors")
    for i, tensors in enumerate(shards):
        save_file(tensors, folder / f"model-{i + 1:05}-of-{len(shards):05}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def draft() -> Tensors:
    return load_file(DRAFT / "model.safetensors")


def halves() -> list[Tensors]:
    tensors = draft()
    names = sorted(tensors)
    return [{name: tensors[name] for name in part} for part in (names[::2], names[1::2])]


@pytest.mark.parametrize("name", models.names())
def test_the_committed_checkpoints_are_read_as_safetensors_reads_them(name: str) -> None:
    stored = load_file(models.path(name) / "model.safetensors")
    weights = load_weights(models.path(name))
    assert weights.keys() == stored.keys()
    for tensor in stored:
        assert weights[tensor].dtype == np.float32
        assert np.array_equal(weights[tensor], stored[tensor].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["Llama", "tied Llama", "Mixtral"])
def test_what_transformers_writes_is_accepted(kind: str, dtype: str, tmp_path: Path) -> None:
    """Freshly initialised, in one file and in shards, with the padding token's zeros at the end."""
    import torch
    import transformers

    sizes: dict[str, Any] = dict(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=49,
        tie_word_embeddings=kind.startswith("tied"),
    )
    torch.manual_seed(0)
    if kind == "Mixtral":
        config = transformers.MixtralConfig(**sizes, num_local_experts=4)
        model = transformers.MixtralForCausalLM(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    whole, shards = load_weights(tmp_path / "whole"), load_weights(tmp_path / "shards")
    assert whole.keys() == shards.keys()
    assert all(np.array_equal(whole[name], shards[name]) for name in whole)
    assert sum(tensor.size for tensor in whole.values()) == model.num_parameters()
    for name, parameter in model.state_dict().items():
        if name in whole and name != "lm_head.weight":
            assert np.array_equal(whole[name], parameter.float().numpy())
    assert not whole[EMBEDDING][-1].any(), "the row that the rule has to let through"


REFUSED_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["OPTForCausalLM"]}, "OPTForCausalLM; this engine computes LlamaFor"),
    ({"architectures": None}, "is a nameless model; this engine computes LlamaFor"),
    ({"num_attention_heads": 3, "num_key_value_heads": 2}, "3 heads cannot share 2 KV heads"),
    ({"head_dim": 63}, "head_dim is 63; .* make it even"),
    ({"vocab_size": "640"}, "vocab_size is '640'; expected a whole number, 1 or more"),
    ({"num_hidden_layers": 0}, "num_layers is 0; expected a whole number, 1 or more"),
    ({"num_key_value_heads": 0}, "num_kv_heads is 0; expected a whole number, 1 or more"),
    ({"hidden_size": 128.0}, "hidden_size is 128.0; expected a whole number"),
    ({"eos_token_id": [2, 3]}, r"eos_token_id is \[2, 3\]; expected one id or null"),
    ({"attention_bias": True}, "attention_bias True; this engine computes False"),
    ({"mlp_bias": True}, "mlp_bias True; this engine computes False"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'; this engine computes 'silu'"),
    ({"sliding_window": 4096}, "sliding_window 4096; this engine computes None"),
    ({"quantization_config": {"bits": 4}}, "quantization_config .* computes None"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling .*llama3.* computes None"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5; this engine computes 1.0"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'; .*default"),
]


@pytest.mark.parametrize(("changed", "sentence"), REFUSED_SETTINGS, ids=lambda x: str(x)[:40])
def test_settings_that_cannot_be_computed_are_refused(
    changed: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write(tmp_path, draft(), changed)
    with pytest.raises(ValueError, match=sentence):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    ("experts", "chosen", "sentence"),
    [
        (8, 9, "cannot be sent to 9 of 8 experts"),
        (8, 0, "cannot be sent to 0 of 8 experts"),
        (0, 2, "cannot be sent to 2 of 0 experts"),
        (-1, 0, "num_experts is -1"),
    ],
)
def test_a_token_needs_experts_that_exist(
    experts: int, chosen: int, sentence: str, tmp_path: Path
) -> None:
    changed = {"num_local_experts": experts, "num_experts_per_tok": chosen}
    write(tmp_path, draft(), changed, source=models.path("tiny-moe"))
    with pytest.raises(ValueError, match=sentence):
        load_weights(tmp_path)


NEEDED = [
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads",
    "num_key_value_heads rms_norm_eps max_position_embeddings tie_word_embeddings eos_token_id",
    "num_local_experts num_experts_per_tok rope_parameters",
]


@pytest.mark.parametrize("key", " ".join(NEEDED).split())
def test_a_missing_setting_is_named(key: str, tmp_path: Path) -> None:
    config = json.loads((models.path("tiny-moe") / "config.json").read_text())
    del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    named = "rope_theta" if key == "rope_parameters" else key
    with pytest.raises(ValueError, match=f"config.json lacks the setting '{named}'"):
        ModelConfig.from_json(tmp_path / "config.json")


def test_older_configurations_mean_the_same(tmp_path: Path) -> None:
    """Before transformers 5 `rope_theta` stood by itself, and `head_dim` was often left out."""
    new = ModelConfig.from_json(DRAFT / "config.json")
    config = json.loads((DRAFT / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    del config["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ModelConfig.from_json(tmp_path / "config.json") == new


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensors[key] for key in tensors if key != name}


def filled(name: str, rows: slice, value: float) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        tensor = tensors[name].copy()
        tensor[rows] = value
        return tensors | {name: tensor}

    return change


EXTRA = np.ones(32, np.float16)
BROKEN: list[tuple[Callable[[Tensors], Tensors], str]] = [
    (without(UP), f"lacks 1 of 11 tensors, first {UP}"),
    (without("model.norm.weight"), "lacks 1 of 11 tensors, first model.norm.weight"),
    (lambda t: t | {"lm_head.weight": t[EMBEDDING]}, "lm_head.weight in .* no place"),
    (lambda t: t | {"model.layers.1.extra.weight": EXTRA}, "model.layers.1.extra.* no place"),
    (
        # Older checkpoints held this buffer; transformers 5 writes none (the test above).
        lambda t: t | {f"{LAYER}.self_attn.rotary_emb.inv_freq": EXTRA},
        "inv_freq in .* has no place in the model",
    ),
    (lambda t: t | {UP: t[UP].T.copy()}, r"up_proj.* has the shape \(128, 256\); .* \(256, 128\)"),
    (lambda t: t | {UP: t[UP][:-1].copy()}, r"has the shape \(255, 128\); expected \(256, 128\)"),
    (lambda t: t | {UP: t[UP].ravel()}, r"has the shape \(32768,\); expected \(256, 128\)"),
    (lambda t: t | {UP: t[UP].astype(np.int8)}, "up_proj.* is stored as I8; expected F32, F16, BF"),
    (filled(UP, slice(7, 10), np.nan), "up_proj.* is NaN or infinite in rows 7 to 9"),
    (filled(UP, slice(7, 8), -np.inf), "up_proj.* is NaN or infinite in rows 7 to 7"),
    (filled(UP, slice(128, None), 0), "up_proj.* is zero in rows 128 to 255, the last"),
    (filled(UP, slice(255, None), -0.0), "up_proj.* is zero in rows 255 to 255, the last"),
    (filled(UP, slice(None), 0), "up_proj.* is zero in rows 0 to 255, the last"),
    (filled("model.norm.weight", slice(100, None), 0), "norm.* is zero in rows 100 to 127"),
    (filled(EMBEDDING, slice(638, None), 0), "embed.* is zero in rows 638 to 639, the last"),
]


@pytest.mark.parametrize(("change", "sentence"), BROKEN, ids=[s[:40] for _, s in BROKEN])
def test_a_broken_tensor_is_named(
    change: Callable[[Tensors], Tensors], sentence: str, tmp_path: Path
) -> None:
    write(tmp_path, change(draft()))
    with pytest.raises(ValueError, match=sentence) as refusal:
        load_weights(tmp_path)
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [('{"architectures": [', "is not JSON .*; copy it again"), ("[]", "holds no JSON object")],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_settings_file_that_was_cut_short_is_named(
    name: str, contents: str, sentence: str, tmp_path: Path
) -> None:
    write(tmp_path, draft())
    if name != "config.json":
        shard(tmp_path, [draft()])
    (tmp_path / name).write_text(contents)
    with pytest.raises(ValueError, match=f"{name} {sentence}"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors,
        filled(EMBEDDING, slice(0, 1), 0),
        filled(EMBEDDING, slice(639, None), 0),
        filled(UP, slice(0, 200), 0),
    ],
    ids=["as it is", "padding token first", "padding token last", "pruned rows"],
)
def test_zeros_that_no_interrupted_copy_leaves_are_let_through(
    change: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    """Control: the refusals above are due to what each of them changed."""
    assert len(load_weights(write(tmp_path, change(draft())))) == 11


FILE = (DRAFT / "model.safetensors").read_bytes()
HEADER = 8 + int.from_bytes(FILE[:8], "little")
anywhere = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@anywhere
@given(st.integers(0, len(FILE) - 1))
@example(0)
@example(4)
@example(HEADER)
@example(len(FILE) - 1)
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    write(tmp_path, draft())
    (tmp_path / "model.safetensors").write_bytes(FILE[:length])
    with pytest.raises(ValueError, match=r"model.safetensors is no whole file \(.*\); copy it"):
        load_weights(tmp_path)


@anywhere
@given(st.integers(HEADER, len(FILE) - 2))
@example(HEADER)
@example(len(FILE) - 2)
def test_a_file_whose_end_is_zeros_is_refused_wherever_they_begin(
    tmp_path: Path, length: int
) -> None:
    """As a download into a file of the final size leaves it; the header alone cannot tell."""
    write(tmp_path, draft())
    (tmp_path / "model.safetensors").write_bytes(FILE[:length] + bytes(len(FILE) - length))
    with pytest.raises(ValueError, match=r"is zero in rows .*, the last; copy it again"):
        load_weights(tmp_path)


def test_shards_are_put_together(tmp_path: Path) -> None:
    whole, shards = draft(), load_weights(shard(write(tmp_path, draft()), halves()))
    assert shards.keys() == whole.keys()
    assert all(np.array_equal(shards[name], whole[name]) for name in whole)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard(write(tmp_path, draft()), halves())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is missing"):
        load_weights(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (write(tmp_path, draft()) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        load_weights(tmp_path)


def test_a_shard_that_the_index_forgot_leaves_its_tensors_missing(tmp_path: Path) -> None:
    first, second = halves()
    shard(write(tmp_path, draft()), [first, second], listed=[first])
    with pytest.raises(ValueError, match=f"lacks {len(second)} of 11 tensors, first {min(second)}"):
        load_weights(tmp_path)


@pytest.mark.parametrize("same", [True, False])
def test_a_tensor_in_two_shards_is_refused(same: bool, tmp_path: Path) -> None:
    first, second = halves()
    name = min(first)
    shard(write(tmp_path, draft()), [first, second | {name: first[name] * (1 if same else 2)}])
    with pytest.raises(ValueError, match=f"{name} in .*00002-of-00002.* is in an earlier file too"):
        load_weights(tmp_path)


def test_shards_beside_a_whole_file_are_refused(tmp_path: Path) -> None:
    """transformers would read the file, vLLM the shards."""
    shard(write(tmp_path, draft()), halves())
    save_file(draft(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"index\.json and model\.safetensors exclude each other"):
        load_weights(tmp_path)


def arrays(part: Any) -> Iterator[np.ndarray]:
    """Every array of a layer, through the linear layers and experts it is made of."""
    if isinstance(part, np.ndarray):
        yield part
    elif isinstance(part, list):
        for item in part:
            yield from arrays(item)
    elif is_dataclass(part):
        for field in fields(part):
            yield from arrays(getattr(part, field.name))


def times_used(config: ModelConfig, tensors: Tensors) -> np.ndarray:
    """How often each number that the tensors are made of is found in a model built from them."""
    model = LlamaModel(config, tensors)
    parts = [model.embedding, model.final_norm, model.head, model.layers]
    found = np.concatenate([array.ravel() for part in parts for array in arrays(part)])
    return np.bincount(found.astype(int), minlength=1 + sum(t.size for t in tensors.values()))[1:]


def numbered(name: str, folder: Path) -> tuple[ModelConfig, Tensors]:
    """The checkpoint `name`, loaded after its elements were replaced by 1, 2, 3, …"""
    source = models.path(name)
    tensors, first = {}, 1
    for tensor, values in sorted(load_file(source / "model.safetensors").items()):
        numbers = np.arange(first, first + values.size, dtype=np.float32)
        tensors[tensor] = numbers.reshape(values.shape)
        first += values.size
    assert first < 2**24, "float32 counts no further"
    write(folder, tensors, source=source)
    return ModelConfig.from_json(folder / "config.json"), load_weights(folder)


@pytest.mark.parametrize("name", ["tiny-chat", "tiny-draft", "tiny-moe"])
def test_every_stored_element_is_used_exactly_once(name: str, tmp_path: Path) -> None:
    """Once more in the head, where it shares the embedding."""
    config, tensors = numbered(name, tmp_path)
    expected = np.ones(sum(tensor.size for tensor in tensors.values()), dtype=int)
    if config.tie_word_embeddings:
        expected[tensors[EMBEDDING].astype(int).ravel() - 1] = 2
    assert np.array_equal(times_used(config, tensors), expected)


@pytest.mark.parametrize(
    ("name", "read", "instead_of"),
    [
        ("tiny-chat", f"{LAYER}.self_attn.k_proj.weight", f"{LAYER}.self_attn.v_proj.weight"),
        (
            "tiny-moe",
            f"{LAYER}.block_sparse_moe.experts.3.w1.weight",
            f"{LAYER}.block_sparse_moe.experts.3.w3.weight",
        ),
    ],
)
def test_a_matrix_fused_twice_would_be_noticed(
    name: str, read: str, instead_of: str, tmp_path: Path
) -> None:
    """Control: one of two fused matrices in the place of the other."""
    config, tensors = numbered(name, tmp_path)
    used = times_used(config, tensors | {instead_of: tensors[read]})
    assert (used == 2).sum() == (used == 0).sum() == tensors[read].size


def test_the_refusals_name_the_file(tmp_path: Path) -> None:
    write(tmp_path, filled(UP, slice(3, 4), np.nan)(draft()))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "model.safetensors"))):
        LlamaModel.from_pretrained(tmp_path)

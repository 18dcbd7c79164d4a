"""Quantised linear layers: exact bytes, bounded errors, and what they do to a real model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from inferlab import models
from inferlab.engine import LLM, LlamaModel, SamplingParams, SequenceChunk, make_batch
from inferlab.engine.checkpoint import ModelConfig, load_weights
from inferlab.engine.layers import DenseLinear, GatedMLP, Linear
from inferlab.engine.quantization import (
    Int4Linear,
    Int8Linear,
    Observed,
    num_bytes,
    pack_int4,
    quantize,
    replace_projections,
    smooth,
    smooth_scales,
    symmetric_scales,
    unpack_int4,
)
from inferlab.models import corpus
from tests.test_engines_oracle import write_int4_checkpoint

CHECKPOINT = models.path("tiny-chat")
W8A8 = partial(Int8Linear.from_dense, int8_activations=True)


def weights(rows: int, columns: int) -> st.SearchStrategy[np.ndarray]:
    """Any finite float32, of any exponent, zeros and subnormals among them."""
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return arrays(np.float32, (rows, columns), elements=numbers)


def dense(linear: Linear) -> np.ndarray:
    """The weight `[input, output]` in float64 that a quantised layer stands for."""
    if isinstance(linear, Int8Linear):
        return linear.weight * linear.scales.astype(float)
    assert isinstance(linear, Int4Linear)
    values = unpack_int4(linear.packed)
    return values * np.repeat(linear.scales, len(values) // len(linear.scales), 0).astype(float)


def half_scales(linear: Linear) -> np.ndarray:
    """Half the scale of every element; the quotient w / s is rounded before it is rounded to a
    whole number, so that a tie may be missed by 127 half units of 2⁻²⁴."""
    assert isinstance(linear, Int8Linear | Int4Linear)
    scales = np.atleast_2d(linear.scales).astype(float)
    return scales * (0.5 + 127 * 2.0**-24)


@given(weights(12, 3))
def test_int8_is_off_by_half_a_scale_at_most(weight: np.ndarray) -> None:
    linear = Int8Linear.from_dense(DenseLinear(weight))
    assert linear.weight.dtype == np.int8
    assert (np.abs(dense(linear) - weight) <= half_scales(linear)).all()
    assert np.abs(linear.weight.astype(int)).max() <= 127, "symmetric: -128 is never used"


@given(weights(12, 3), st.sampled_from([2, 4, 6, 12]))
def test_int4_is_off_by_half_a_scale_at_most(weight: np.ndarray, group_size: int) -> None:
    linear = Int4Linear.from_dense(DenseLinear(weight), group_size)
    bound = np.repeat(half_scales(linear), group_size, axis=0)
    assert (np.abs(dense(linear) - weight) <= bound).all()
    assert unpack_int4(linear.packed).min() >= -7


def test_the_largest_weight_of_a_channel_is_kept_and_ties_go_to_even() -> None:
    weight = np.array([[127, 7], [0.5, 0.5], [1.5, 1.5], [2.5, -2.5], [-3.5, 3.5]], np.float32)
    int8 = Int8Linear.from_dense(DenseLinear(weight))
    assert int8.weight[:, 0].tolist() == [127, 0, 2, 2, -4]
    int4 = Int4Linear.from_dense(DenseLinear(np.concatenate([weight, weight[:1]])), 6)
    assert unpack_int4(int4.packed)[:, 1].tolist() == [7, 0, 2, -2, 4, 7]


def test_what_a_given_scale_cannot_hold_saturates() -> None:
    x = np.array([1e9, 127.6, 127.4, -128.4, -128.6, -1e9], dtype=np.float32)
    assert quantize(x, np.float32(1), 8).tolist() == [127, 127, 127, -128, -128, -128]
    assert quantize(x, np.float32(1), 4).tolist() == [7, 7, 7, -8, -8, -8]


def test_subnormal_weights_do_not_saturate() -> None:
    """190 steps of 2⁻¹⁴⁹ over 127 would round to a scale of one step, and 190 is more than 127."""
    weight = np.array([[190], [60]], dtype=np.float32) * np.float32(2.0**-149)
    linear = Int8Linear.from_dense(DenseLinear(weight))
    assert (np.abs(dense(linear) - weight) <= half_scales(linear)).all()


@pytest.mark.parametrize("make", [Int8Linear.from_dense, W8A8, Int4Linear.from_dense])
def test_rows_channels_and_tokens_of_zeros_give_zeros(make: Callable[..., Linear]) -> None:
    weight = np.random.default_rng(0).standard_normal((256, 4), dtype=np.float32)
    weight[:, 1] = weight[3] = 0
    weight[:128, 2] = 0  # one group of the channel
    x = np.random.default_rng(1).standard_normal((3, 256), dtype=np.float32)
    x[1] = 0
    output = make(DenseLinear(weight))(x)
    assert np.isfinite(output).all()
    assert not output[:, 1].any()
    assert not output[1].any()
    assert output[0, 2] != 0


@given(arrays(np.int8, (10, 3), elements=st.integers(-8, 7)))
def test_unpacking_undoes_packing_in_half_the_bytes(values: np.ndarray) -> None:
    packed = pack_int4(values)
    assert packed.dtype == np.uint8
    assert packed.nbytes * 2 == values.nbytes
    assert np.array_equal(unpack_int4(packed), values)
    assert np.array_equal(pack_int4(unpack_int4(packed)), packed)


def test_the_even_row_is_in_the_low_nibble() -> None:
    assert pack_int4(np.array([[-8, 7], [-7, 0]])).tolist() == [[0x10, 0x8F]]


@pytest.mark.parametrize("values", [[[1], [2], [3]], [[8], [0]], [[0], [-9]]])
def test_what_does_not_fit_is_not_packed(values: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="cannot be packed; expected an even number, -8 to 7"):
        pack_int4(np.array(values))


@pytest.mark.parametrize(("inputs", "group_size"), [(100, 128), (192, 128), (9, 3), (8, 0)])
def test_groups_that_do_not_divide_the_inputs_are_refused(inputs: int, group_size: int) -> None:
    linear = DenseLinear(np.ones((inputs, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=f"{inputs} inputs cannot be divided into groups of"):
        Int4Linear.from_dense(linear, group_size)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [Int8Linear.from_dense, Int4Linear.from_dense])
def test_weights_that_are_not_finite_are_refused(make: Callable[..., Linear], bad: float) -> None:
    weight = np.ones((128, 2), dtype=np.float32)
    weight[5, 1] = bad
    with pytest.raises(ValueError, match="1 of 256 weights are infinite or NaN"):
        make(DenseLinear(weight))


@pytest.mark.parametrize(("inputs", "outputs"), [(128, 1), (256, 7), (384, 33)])
def test_the_bytes_are_those_of_the_formula(inputs: int, outputs: int) -> None:
    linear = DenseLinear(np.ones((inputs, outputs), dtype=np.float32))
    assert num_bytes(linear) == 4 * inputs * outputs
    assert num_bytes(Int8Linear.from_dense(linear)) == inputs * outputs + 4 * outputs
    for group_size in (128, 64):
        expected = inputs * outputs // 2 + 4 * (inputs // group_size) * outputs
        assert num_bytes(Int4Linear.from_dense(linear, group_size)) == expected


@pytest.mark.parametrize("make", [Int8Linear.from_dense, W8A8, Int4Linear.from_dense])
def test_no_float_copy_of_the_weight_outlives_a_call(make: Callable[..., Linear]) -> None:
    linear = make(DenseLinear(np.random.default_rng(0).standard_normal((256, 64), np.float32)))
    before = {name: id(value) for name, value in vars(linear).items()}
    linear(np.ones((2, 256), dtype=np.float32))
    assert {name: id(value) for name, value in vars(linear).items()} == before
    assert num_bytes(linear) < 4 * 256 * 64 / 2


@given(st.integers(1, 5), st.sampled_from([Int8Linear.from_dense, Int4Linear.from_dense]))
def test_a_layer_multiplies_by_the_weight_it_stands_for(
    num_tokens: int, make: Callable[..., Linear]
) -> None:
    rng = np.random.default_rng(num_tokens)
    linear = make(DenseLinear(rng.standard_normal((256, 24), dtype=np.float32)))
    x = rng.standard_normal((num_tokens, 256), dtype=np.float32)
    bound = 2 * 256 * 2.0**-24 * (np.abs(x).astype(float) @ np.abs(dense(linear)))
    assert (np.abs(linear(x) - x.astype(float) @ dense(linear)) <= bound).all()


@given(st.integers(0, 10**6))
def test_int8_activations_are_off_by_half_a_scale_each(seed: int) -> None:
    """Each activation is off by half its token's scale at most; and rows stay independent."""
    rng = np.random.default_rng(seed)
    linear = W8A8(DenseLinear(rng.standard_normal((64, 16), dtype=np.float32)))
    x = rng.standard_normal((5, 64), dtype=np.float32) * 10.0 ** rng.integers(-9, 9, (5, 1))
    x = x.astype(np.float32)
    token_scales = np.abs(x).max(axis=1, keepdims=True).astype(float) / 127
    bound = (0.5 + 1e-4) * token_scales * np.abs(dense(linear)).sum(axis=0)
    output = linear(x)
    assert (np.abs(output - x.astype(float) @ dense(linear)) <= bound).all()
    assert np.array_equal(linear(x[2:3]), output[2:3]), "a sum of whole numbers has no last bits"


def test_int8_activations_of_a_damaged_token_do_not_hide() -> None:
    linear = W8A8(DenseLinear(np.ones((4, 2), dtype=np.float32)))
    output = linear(np.array([[1, np.nan, 0, 0], [1, 2, 3, 4]], dtype=np.float32))
    assert np.isnan(output[0]).all()
    assert np.isfinite(output[1]).all()


def test_our_nibbles_are_the_bytes_of_compressed_tensors(tmp_path: Path) -> None:
    """The checkpoint that real vLLM loads and answers from, in `test_engines_oracle`."""
    write_int4_checkpoint(tmp_path)
    theirs, originals = load_file(tmp_path / "model.safetensors"), load_weights(CHECKPOINT)
    stems = [name.removesuffix("_packed") for name in theirs if name.endswith("weight_packed")]
    assert len(stems) == 7 * 4
    for stem in stems:
        ours = Int4Linear.from_dense(DenseLinear(originals[stem].T))
        assert np.array_equal(ours.packed, theirs[f"{stem}_packed"].view(np.uint8).T)
        assert np.array_equal(ours.scales.T.astype(np.float16), theirs[f"{stem}_scale"])


def test_what_replacing_replaces_and_leaves() -> None:
    """Exactly the projections: 12 arrays a layer would else be easy to miss one of."""
    model = LlamaModel.from_pretrained(CHECKPOINT)
    total, config = num_bytes(model), model.config
    kept = [model.embedding, model.head, *(layer.input_norm for layer in model.layers)]
    replaced: list[tuple[int, ...]] = []

    def to_int4(linear: DenseLinear) -> Int4Linear:
        replaced.append(linear.weight.shape)
        return Int4Linear.from_dense(linear)

    replace_projections(model, to_int4)
    hidden, ffn = config.hidden_size, config.intermediate_size
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    width = config.num_heads * config.head_dim
    layer_shapes = [(hidden, heads), (width, hidden), (hidden, 2 * ffn), (ffn, hidden)]
    assert replaced == layer_shapes * config.num_layers
    now = [model.embedding, model.head, *(layer.input_norm for layer in model.layers)]
    assert all(a is b for a, b in zip(kept, now))
    num_weights = config.num_layers * sum(a * b for a, b in layer_shapes)
    others = 4 * (2 * config.vocab_size * hidden + (2 * config.num_layers + 1) * hidden)
    assert total == 4 * num_weights + others
    assert num_bytes(model) == num_weights // 2 + num_weights // 128 * 4 + others


def test_the_experts_of_a_mixture_are_quantised_and_its_router_is_not() -> None:
    model = LlamaModel.from_pretrained(models.path("tiny-moe"))
    config = model.config
    replaced = []
    replace_projections(model, lambda linear: replaced.append(linear) or W8A8(linear))
    assert len(replaced) == config.num_layers * (2 + 2 * config.num_experts)
    for layer in model.layers:
        assert isinstance(vars(layer.mlp)["gate"], DenseLinear)
    hidden = logits(model, list(range(6, 30)))
    assert np.isfinite(hidden).all()


def logits(model: LlamaModel, token_ids: list[int]) -> np.ndarray:
    """Logits `[num_tokens, vocab_size]` of one prompt."""
    num_blocks = -(-len(token_ids) // 16) + 1
    batch = make_batch([SequenceChunk(token_ids, 0, range(1, num_blocks))], 16)
    return model.logits(model.forward(batch, model.new_kv_cache(num_blocks, 16)))


def chats(count: int) -> list[list[int]]:
    tokenizer = LLM(CHECKPOINT, num_blocks=2).tokenizer
    cases = [c for task in corpus.CHECKED_TASKS for c in corpus.held_out_examples(task, count)]
    texts = [f"<|bos|><|user|>{c.prompt}<|end|><|assistant|>{c.answer}" for c in cases]
    return [tokenizer.encode(text).ids for text in texts]


@given(
    arrays(np.float32, 6, elements=st.floats(0, 1e3, width=32)),
    arrays(np.float32, 6, elements=st.floats(0, 1e3, width=32)),
    st.floats(0, 1),
)
def test_smoothing_shares_the_difficulty_by_alpha(
    activations: np.ndarray, weights: np.ndarray, alpha: float
) -> None:
    """x / s and W * s then have maxima a**(1 - alpha) * w**(1 - alpha) and a**alpha * w**alpha."""
    activations[activations < 1e-6] = 0
    weights[weights < 1e-6] = 0
    scales = smooth_scales(activations, weights, alpha)
    used = (activations > 0) & (weights > 0)
    assert (scales[~used] == 1).all()
    assert ((scales > 0) & np.isfinite(scales)).all()
    products = activations[used].astype(float) * weights[used]
    np.testing.assert_allclose(activations[used] / scales[used], products ** (1 - alpha), rtol=1e-4)
    np.testing.assert_allclose(weights[used] * scales[used], products**alpha, rtol=1e-4)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_smoothing_one_layer_preserves_its_function(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((7, 16)) * 10.0 ** rng.integers(-2, 3, 16)
    norm, weight = rng.standard_normal(16), rng.standard_normal((16, 5))
    scales = smooth_scales(np.abs(x * norm).max(axis=0), np.abs(weight).max(axis=1), alpha)
    smoothed = (x * (norm / scales)) @ (weight * scales[:, None])
    np.testing.assert_allclose(smoothed, (x * norm) @ weight, rtol=1e-9, atol=1e-9)


def model_with_outliers() -> LlamaModel:
    """`tiny-chat` with 100 times larger activations in six channels of every norm.

    The rows of the weights make up for it, so it is the same function: large models grow such
    channels by themselves (Dettmers et al., "LLM.int8()", NeurIPS 2022, section 4), tiny ones
    do not.
    """
    model = LlamaModel.from_pretrained(CHECKPOINT)
    factors = np.ones(model.config.hidden_size, dtype=np.float32)
    factors[::43] = 100
    for layer in model.layers:
        assert isinstance(layer.mlp, GatedMLP)
        layer.input_norm = layer.input_norm * factors
        layer.post_attention_norm = layer.post_attention_norm * factors
        for linear in (layer.qkv, layer.mlp.gate_up):
            assert isinstance(linear, DenseLinear)
            linear.weight = linear.weight / factors[:, None]
    return model


def smoothed(model: LlamaModel, prompts: list[list[int]], alpha: float) -> LlamaModel:
    replace_projections(model, Observed)
    for prompt in prompts:
        logits(model, prompt)
    smooth(model, alpha)
    return model


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
def test_smoothing_preserves_the_function_of_the_model(alpha: float) -> None:
    prompts = chats(2)
    plain = LlamaModel.from_pretrained(CHECKPOINT)
    model = smoothed(LlamaModel.from_pretrained(CHECKPOINT), prompts[:5], alpha)
    for prompt in prompts:
        np.testing.assert_allclose(logits(model, prompt), logits(plain, prompt), atol=2e-3)
    for layer, original in zip(model.layers, plain.layers):
        assert isinstance(layer.mlp, GatedMLP)
        linears = layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down
        assert all(type(linear) is DenseLinear for linear in linears)
        assert not np.allclose(layer.input_norm, original.input_norm, rtol=0.1)
        assert not np.allclose(layer.post_attention_norm, original.post_attention_norm, rtol=0.1)


def test_smoothing_helps_most_where_both_sides_share_the_outliers() -> None:
    """Six of 256 inputs are a hundred times larger, their weights like the others.

    Controls: at alpha 0 the activations keep the outliers and at 1 the weights have them, each as
    bad as no smoothing. The root mean square errors are 6.8 without, then 6.6, 1.6 and 7.1.
    """
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in ((64, 256), (256, 64)))
    x[:, ::43] *= 100
    expected = x.astype(float) @ weight

    def error(scales: np.ndarray) -> float:
        output = W8A8(DenseLinear(weight * scales[:, None]))(x / scales)
        return float(np.sqrt(np.mean((output - expected) ** 2)))

    maxima = np.abs(x).max(axis=0), np.abs(weight).max(axis=1)
    none, shared = error(np.ones(256, np.float32)), error(smooth_scales(*maxima, 0.5))
    assert shared < none / 3
    assert error(smooth_scales(*maxima, 0.0)) > 0.8 * none
    assert error(smooth_scales(*maxima, 1.0)) > 0.8 * none


def test_smoothing_saves_a_model_with_outliers_in_int8() -> None:
    """Mean error of the logits on prompts that calibration has not seen: 1.24 unsmoothed, 0.03
    smoothed, 0.05 if there are no outliers to begin with.

    Control: in float32 the outliers change nothing. (Alpha 0 is no control here: a planted outlier
    has a weight as much smaller, so that making the weights alike takes it out as well.)
    """
    prompts = chats(3)
    calibration, checked = prompts[::2], prompts[1::2]
    plain = LlamaModel.from_pretrained(CHECKPOINT)
    expected = [logits(plain, prompt) for prompt in checked]

    def error(model: LlamaModel) -> float:
        pairs = zip(expected, (logits(model, prompt) for prompt in checked))
        return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))

    assert error(model_with_outliers()) < 1e-4
    models_in_int8 = (
        plain,
        model_with_outliers(),
        smoothed(model_with_outliers(), calibration, 0.5),
    )
    for model in models_in_int8:
        replace_projections(model, W8A8)
    without_outliers, unsmoothed, saved = map(error, models_in_int8)
    assert unsmoothed > 10 * without_outliers
    assert saved < 1.2 * without_outliers


def test_observed_layers_keep_the_largest_of_all_calls_and_change_nothing() -> None:
    layer = Observed(DenseLinear(np.eye(2, dtype=np.float32)))
    for x in ([[1, -5], [2, 3]], [[-4, 0]]):
        assert layer(np.array(x, dtype=np.float32)).tolist() == x
    assert np.asarray(layer.maxima).tolist() == [4, 5]


def test_smoothing_without_calibration_is_refused() -> None:
    model = LlamaModel.from_pretrained(CHECKPOINT)
    with pytest.raises(ValueError, match="has seen no prompt"):
        smooth(model)
    replace_projections(model, Observed)
    with pytest.raises(ValueError, match="has seen no prompt"):
        smooth(model)


def rounded_checkpoint(group_size: int) -> dict[str, np.ndarray]:
    """The rule of `inferlab.models.evaluate.round_to_int4`, which measured the card, in NumPy."""
    tensors = load_weights(CHECKPOINT)
    for name, weight in tensors.items():
        if "_proj" in name:
            groups = weight.reshape(len(weight), -1, group_size)
            scale = np.abs(groups).max(-1, keepdims=True) / 7
            rounded = np.clip(np.round(groups / scale), -8, 7) * scale
            tensors[name] = rounded.reshape(weight.shape).astype(np.float32)
    return dict(tensors)


@pytest.mark.parametrize("group_size", [128, 64])
def test_the_int4_model_is_the_dense_one_with_rounded_weights(group_size: int) -> None:
    """Fusing q, k and v (or gate and up) first changes no group, for groups lie along the input."""
    config = ModelConfig.from_json(CHECKPOINT / "config.json")
    rounded = LlamaModel(config, rounded_checkpoint(group_size))
    model = LlamaModel.from_pretrained(CHECKPOINT)
    replace_projections(model, partial(Int4Linear.from_dense, group_size=group_size))
    plain = LlamaModel.from_pretrained(CHECKPOINT)
    for prompt in chats(1):
        theirs = logits(rounded, prompt)
        np.testing.assert_allclose(logits(model, prompt), theirs, atol=1e-3)
        assert np.abs(logits(plain, prompt) - theirs).max() > 0.1


def num_right(llm: LLM, task: str, count: int) -> int:
    cases = corpus.held_out_examples(task, count)
    texts = [f"<|bos|><|user|>{case.prompt}<|end|><|assistant|>" for case in cases]
    done = llm.generate(texts, SamplingParams(max_tokens=64, temperature=0))
    answers = [llm.tokenizer.decode(completion.token_ids) for completion in done]
    return sum(answer == case.answer for answer, case in zip(answers, cases))


@pytest.mark.slow
def test_int4_loses_what_the_card_says_and_the_others_lose_little() -> None:
    """The card's own 200 questions of the task that int4 hurts most."""
    card = models.card("tiny-chat")
    right = {}
    replacements: dict[str, Callable[..., Linear] | None] = {
        "float32": None,
        "int8": Int8Linear.from_dense,
        "W8A8": W8A8,
        "int4": Int4Linear.from_dense,
    }
    for name, replace in replacements.items():
        llm = LLM(CHECKPOINT)
        if replace is not None:
            replace_projections(llm.model, replace)
        right[name] = num_right(llm, "json", 200)
    low, high = card["accuracy_int4_group128"]["json"]["interval"]
    assert low <= right["int4"] / 200 <= high
    assert abs(right["float32"] - card["accuracy"]["json"]["right"]) <= 1
    low, _ = card["accuracy"]["json"]["interval"]
    assert min(right["int8"], right["W8A8"]) / 200 >= low
    assert right["int4"] < right["float32"]


@given(weights(6, 4))
def test_scales_are_positive_and_leave_nothing_to_clip(x: np.ndarray) -> None:
    for bits, axis in ((8, 0), (8, 1), (4, 0)):
        scales = symmetric_scales(x, bits, axis)
        assert (scales > 0).all()
        assert np.abs(quantize(x, scales, bits)).max() <= 2 ** (bits - 1) - 1
